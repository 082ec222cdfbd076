"""Metrics of a finished run."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from latentfaces.data.arrays import ResumableArray
from latentfaces.data.images import to_float, to_uint8
from latentfaces.data.pack import Pack, open_pack
from latentfaces.errors import UserError
from latentfaces.evaluation.features import Features, features_by_name
from latentfaces.evaluation.generation import Memorisation, generator_metrics, memorisation
from latentfaces.evaluation.plots import plot_distances, plot_neighbours
from latentfaces.files import require_space
from latentfaces.pipeline import FacePipeline
from latentfaces.ranks import Ranks
from latentfaces.report import write_report
from latentfaces.tasks.base import SamplingTask
from latentfaces.tasks.output import PictureFolder

SHOWN = 64
FEWEST = 50
SUSPECTS, NEIGHBOURS = 8, 4
"""Faces shown beside their nearest training photos, and how many of these; half as many pairs of twins."""
FREE = ("num_images", "batch_size", "features", "weights")
"""Settings that change how many faces there are, or what is measured, but no face."""


@dataclass(kw_only=True)
class Evaluate(SamplingTask):
    """`num_images` new faces, or a VAE's reconstructions, against held-out photos: metrics.json, plots, a grid.

    Frechet and kernel distance, precision and recall; of new faces also the share that comes twice and the share that
    is nearer to a training photo than real new photos are, with the faces that come nearest. Beside them stands what
    as many training photos score. With features "inception" the Frechet distance is the FID against the held-out
    photos as this project resized them; with others it is not called so.

    Several processes make the faces, and look at the photos, together; the first one compares.

    Faces are not kept: their features are written to a file as they are made, so that memory does not grow with
    `num_images` and a killed evaluation goes on, also towards more faces, when it is given the same `output`. The
    features of the photos stay with the pack, by the hash of its pixels and of the network.

    Args:
        pack: the run's pack.
        features: "encoder", one of `latentfaces.evaluation.features.NETWORKS`, or the file of a network.
        weights: file of that network's weights, where they cannot be fetched.
        folder: of the run. Its page shows the metrics if the output is inside it.
    """

    pack: str
    features: str
    weights: str | None
    folder: str | None = None

    def __post_init__(self) -> None:
        if self.num_images < FEWEST:
            raise UserError(f"num_images={self.num_images} are too few to measure by: take at least {FEWEST}")

    def __call__(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write and print the metrics. Return the path of the grid."""
        pack = open_pack(Path(self.pack))
        if len(pack.val_indices) < FEWEST:
            raise UserError(f"{pack.folder} has {len(pack.val_indices)} held-out photos, too few to measure against")
        look = features_by_name(self.features, pipeline.vae, self.weights)
        photos = photo_features(look, pack, self.batch_size, pictures.ranks)
        made = MadePictures(self, pipeline, pack)
        fakes, shown = made.features(look, pictures)
        if pictures.ranks.rank > 0:
            return pictures.folder
        # A GPU compares all pairs of 50,000 in seconds, two cores of a CPU in half an hour.
        device = pipeline.device if pipeline.device.type == "cuda" else torch.device("cpu")
        fakes, held_out, train = (
            rows.to(device) for rows in (fakes, photos[pack.val_indices], photos[pack.train_indices])
        )
        print(f"comparing {len(fakes):,} {made.kind} with {len(held_out):,} held-out photos")
        values = self.named(generator_metrics(held_out, fakes))
        figures: list[Figure] = []
        if pipeline.denoiser is not None:
            heart = memorisation(fakes, train, held_out, min(NEIGHBOURS, len(train))).cpu()
            values |= {"duplicates": heart.duplicates, "memorised": heart.memorised}
            figures = suspicious(heart, made, pack)
        alike = train[np.random.default_rng(0).permutation(len(train))[: len(fakes)]]
        reference = self.named(generator_metrics(held_out, alike))
        told = {
            "kind": made.kind,
            "features": self.features,
            "num_images": len(fakes),
            "num_photos": len(held_out),
            **values,
            "training_photos": reference,
        }
        (pictures.folder / "metrics.json").write_text(json.dumps(told, indent=1))
        for name, value in values.items():
            print(f"{name} {value:.4g}")
        for number, figure in enumerate(figures, start=1):
            figure.savefig(pictures.folder / f"memorisation_{number}.png", dpi=120)
        if self.folder is not None and Path(self.folder) in pictures.folder.parents:
            write_report(self.folder)
        return pictures.grid(shown, columns=8)

    def named(self, values: dict[str, float]) -> dict[str, float]:
        """Return the metrics with the Frechet distance named FID where it is the FID."""
        if self.features != "inception":
            return values
        return {"fid": values["frechet_distance"], **{k: v for k, v in values.items() if k != "frechet_distance"}}


class MadePictures:
    """Images under evaluation: samples of a stage 2 run, or reconstructions of held-out images by a VAE.

    Args:
        task: says which and how many.
        pipeline: makes them.
        pack: the photos.
    """

    def __init__(self, task: Evaluate, pipeline: FacePipeline, pack: Pack) -> None:
        self.task, self.pipeline, self.pack = task, pipeline, pack
        self.kind = "reconstructions" if pipeline.denoiser is None else "new faces"
        self.count = task.num_images
        if pipeline.denoiser is None:
            self.count = min(self.count, len(pack.val_indices))

    def make(self, numbers: list[int]) -> Iterator[Tensor]:
        """Batches (b, 3, R, R) uint8 of the pictures with these numbers."""
        size = self.task.batch_size
        if self.pipeline.denoiser is not None:
            names = [(self.task.seed, number) for number in numbers]
            yield from self.pipeline.faces(names, self.task.sampler, size)
            return
        for start in range(0, len(numbers), size):
            photos = torch.from_numpy(self.pack.images[self.pack.val_indices[numbers[start : start + size]]])
            yield to_uint8(self.pipeline.reconstruct(to_float(photos))).cpu()

    def features(self, look: Features, pictures: PictureFolder) -> tuple[Tensor, Tensor]:
        """Features (n, d) of all, mapped from a file that is gone on with, and the first pictures: at process 0."""
        ranks = pictures.ranks
        settings = {k: v for k, v in pictures.origin.get("settings", {}).items() if k not in FREE}
        origin = json.loads(json.dumps({**pictures.origin, "settings": settings}))
        # Never finished: a later call may add images.
        rows = ResumableArray(pictures.folder / f"features-{look.key}.npy", self.count, origin)
        first = ResumableArray(pictures.folder / "first.npy", SHOWN, origin)
        if not (rows.has_origin and first.has_origin):
            raise UserError(f"{pictures.folder} contains features of other images. Choose another output=...")
        done = 0
        if ranks.rank == 0:
            done = min(rows.resume(), self.count)
            done = done if first.resume() >= min(done, SHOWN) else 0
        done = ranks.agree(done)
        shares = ranks.rounds(range(done, self.count), self.task.batch_size)
        for share in track(shares, "Making", disable=ranks.rank > 0):
            images = torch.cat([torch.empty(0, dtype=torch.uint8), *self.make(list(share))])
            show = images[: max(SHOWN - share.start, 0)]
            gathered = ranks.join(show), ranks.join(look(images) if len(images) else torch.empty(0))
            if ranks.rank == 0:
                if len(gathered[0]):
                    first.write(share.start, gathered[0].numpy())
                rows.write(share.start, gathered[1].numpy())
        if ranks.rank > 0:
            return torch.empty(0), torch.empty(0)
        return torch.from_numpy(rows.read()[: self.count]), torch.from_numpy(first.read()[: min(self.count, SHOWN)])


def suspicious(heart: Memorisation, made: MadePictures, pack: Pack) -> list[Figure]:
    """Plot all distances, the faces closest to training photos, and the faces closest to one another.

    Distances below what 99 % of held-out photos keep are red.
    """
    worst = heart.nearest.distances[:, 0].argsort()[:SUSPECTS]
    faces = torch.cat(list(made.make(worst.tolist())))
    near = torch.from_numpy(pack.images[pack.train_indices[heart.nearest.indices[worst].numpy()]])
    samples = {made.kind: heart.nearest.distances[:, 0], "held-out photos": heart.held_out}
    closest = heart.twins.distances[:, 0].argsort()[: 2 * SUSPECTS].tolist()
    pairs = {tuple(sorted((n, int(heart.twins.indices[n, 0])))) for n in closest}
    distance = {pair: float(heart.twins.distances[list(pair), 0].max()) for pair in pairs}
    twins = sorted(distance, key=distance.__getitem__)[: SUSPECTS // 2]
    shown = torch.cat(list(made.make([number for pair in twins for number in pair]))).unflatten(0, (-1, 2))
    far = torch.tensor([[distance[pair]] for pair in twins])
    titles = ("new face", "another new face")
    return [
        plot_distances(samples, heart.limit),
        plot_neighbours(faces, near, heart.nearest.distances[worst], heart.limit),
        plot_neighbours(shown[:, 0], shown[:, 1:], far, heart.twin_limit, titles=titles),
    ]


def photo_features(look: Features, pack: Pack, batch_size: int, ranks: Ranks) -> Tensor:
    """Features (N, d) of all photos of a pack, kept beside it under the names of both, mapped from there.

    The processes share them out, and the first one gets them.

    Raises:
        UserError: they cannot be kept.
    """
    count = pack.manifest["num_images"]
    path = pack.folder / f"features-{look.key}-{pack.sha256[:8]}.npy"
    rows = ResumableArray(path, count)
    done = ranks.agree(rows.resume() if ranks.rank == 0 else 0)
    shares = ranks.rounds(range(done, count), batch_size)
    try:
        for share in track(shares, f"Features of {pack.folder.name}", disable=ranks.rank > 0 or not shares):
            images: NDArray[np.uint8] = pack.images[share.start : share.stop]
            features = ranks.join(look(torch.from_numpy(images.copy())) if len(images) else torch.empty(0))
            if ranks.rank == 0:
                if share.start == 0:
                    require_space(path, 4.0 * count * features.shape[1], f"the file of {count:,} features")
                rows.write(share.start, features.numpy())
        if ranks.rank == 0:
            rows.finish()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): make {pack.folder} writable") from error
    return torch.from_numpy(rows.read()) if ranks.rank == 0 else torch.empty(0)
