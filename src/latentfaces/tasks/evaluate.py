"""How good a finished run's faces are, in figures."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from latentfaces.data.pack import Pack, open_pack
from latentfaces.diffusion import Sampler
from latentfaces.errors import UserError
from latentfaces.evaluation.features import Features, features_by_name
from latentfaces.evaluation.generation import generator_metrics
from latentfaces.files import written_whole
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks.output import PictureFolder

SHOWN = 64
FEWEST = 50
EVERY = 10
"""Batches between two notes of how far the faces are."""


@dataclass
class Evaluate:
    """`num_images` new faces against the run's held-out photos: metrics.json, and a grid of the first 64.

    Frechet and kernel distance, precision and recall, the share of faces that come twice and of those that are nearer
    to a training photo than real new photos are. With features "inception" the Frechet distance is the FID against the
    held-out photos as this project resized them; with others it is not called so. Of the faces only features are kept;
    those of the photos stay with the pack; and what a killed evaluation has made is not made again when it is given
    the same `output`.

    Args:
        sampler: from noise to latents.
        pack: the run's pack.
        features: "encoder", "inception", or the file of a network (see `latentfaces.evaluation.features`).
        weights: file of weights for "inception", where they cannot be fetched.
        num_images: at least 50.
        seed: names the faces.
        batch_size: how many at once.
    """

    sampler: Sampler
    pack: str
    features: str
    weights: str | None
    num_images: int
    seed: int
    batch_size: int

    def __post_init__(self) -> None:
        if self.num_images < FEWEST:
            raise UserError(f"num_images={self.num_images} are too few to measure by: take at least {FEWEST}")

    def __call__(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write and print the metrics; the grid's path."""
        pack = open_pack(Path(self.pack))
        if len(pack.val_indices) < FEWEST:
            raise UserError(f"{pack.folder} has {len(pack.val_indices)} held-out photos, too few to measure against")
        look = features_by_name(self.features, pipeline.vae, self.weights)
        photos = torch.from_numpy(photo_features(look, pack, self.batch_size))
        fakes, shown = self.face_features(look, pipeline, pictures)
        held_out, train = photos[pack.val_indices], photos[pack.train_indices]
        values = generator_metrics(held_out, fakes, train)
        if self.features == "inception":
            values["fid"] = values.pop("frechet_distance")
        told = {"features": look.key, "num_images": self.num_images, "num_photos": len(held_out), **values}
        (pictures.folder / "metrics.json").write_text(json.dumps(told, indent=1))
        for name, value in values.items():
            print(f"{name} {value:.4g}")
        return pictures.grid(shown, columns=8)

    def face_features(self, look: Features, pipeline: FacePipeline, pictures: PictureFolder) -> tuple[Tensor, Tensor]:
        """Features (num_images, d) of the new faces, going on from what is there; and the first faces."""
        kept = pictures.folder / f"features-{look.key}.npz"
        made: list[Tensor] = []
        if kept.exists():
            with np.load(kept) as stored:
                if str(stored["origin"]) != pictures.text()["latentfaces"]:
                    raise UserError(f"{kept} is of other faces than these: give another output=...")
                made = list(torch.from_numpy(stored["features"]).split(self.batch_size))
        names = [(self.seed, number) for number in range(self.num_images)]
        shown = torch.cat(list(pipeline.faces(names[:SHOWN], self.sampler, self.batch_size)))
        rest = pipeline.faces(names[sum(map(len, made)) :], self.sampler, self.batch_size)
        left = -(-(self.num_images - sum(map(len, made))) // self.batch_size)
        for number, faces in enumerate(track(rest, "Generating", total=left), start=1):
            made.append(look(faces))
            if number % EVERY == 0 or number == left:
                with written_whole(kept) as file:
                    np.savez(file, features=torch.cat(made).numpy(), origin=pictures.text()["latentfaces"])
        return torch.cat(made), shown


def photo_features(look: Features, pack: Pack, batch_size: int) -> NDArray[np.float32]:
    """Features (N, d) of all photos of a pack, kept beside it under the names of both."""
    path = pack.folder / f"features-{look.key}-{pack.sha256[:8]}.npy"
    if not path.exists():
        count = pack.manifest["num_images"]
        starts = track(range(0, count, batch_size), f"Features of {pack.folder.name}")
        batches = (torch.from_numpy(pack.images[start : start + batch_size].copy()) for start in starts)
        made = torch.cat([look(batch) for batch in batches]).numpy()
        with written_whole(path) as file:
            np.save(file, made)
    features: NDArray[np.float32] = np.load(path)
    return features
