"""A set of new faces, balanced over labels, to give away."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from latentfaces.bounds import Positive
from latentfaces.data.pack import Pack, open_pack
from latentfaces.errors import UserError
from latentfaces.evaluation.feature_cache import image_features
from latentfaces.evaluation.features import EncoderFeatures
from latentfaces.evaluation.generation import nearest, usual_limit
from latentfaces.export.card import INTENDED_USE, data_of, hub_license, table, training_data
from latentfaces.files import atomic_write
from latentfaces.pipeline import FacePipeline
from latentfaces.ranks import Ranks
from latentfaces.run import config_of, open_run
from latentfaces.tasks.base import SamplingTask
from latentfaces.tasks.compare import combinations, title
from latentfaces.tasks.evaluate import device_for_pairs
from latentfaces.tasks.face_set import IMAGES, LABELS, FaceSet
from latentfaces.tasks.output import PictureFolder

CARD = "README.md"
MAX_SAMPLES = 20
"""Samples per face at which the task ends: the run repeats its training images."""


LIMIT_NOTE = """A face was left out if its nearest training image, as it is or mirrored, or its nearest earlier face was
nearer than the nearest training image of 99 % of held-out images, in features of the model's encoder."""
LABELS_NOTE = "\n\nThe labels are those that the model was asked for. They were not checked."


@dataclass(kw_only=True)
class Dataset(SamplingTask):
    """Write `num_images` faces for each combination of `labels`, with labels.csv and a card.

    Copies of training images and near-twins are left out, see `Audit`. Further samples replace them. Each image has the
    metadata of task=generate. A killed task with the same output resumes, and results in the same bytes.

    Args:
        folder: the run's folder.
        pack: the run's pack.
        labels: values by label, as {"Smiling": [0, 1]}; of several labels every combination.
        shards: images per .tar of WebDataset; None for a folder of PNGs.
    """

    folder: str
    pack: str
    labels: dict[str, Any] | None
    shards: Positive | None

    def __call__(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write the set. Return the path of its card."""
        cells, conditioning = combinations("labels", self.labels), pipeline.conditioning
        if self.labels and conditioning is None:
            raise UserError("task.labels needs a run that was trained with data.labels. Choose another run=...")
        path, total = pictures.folder / CARD, len(cells) * self.num_images
        if path.exists():
            raise UserError(f"output={pictures.folder} already contains a set. Choose another folder.")
        audit = Audit(pipeline, open_pack(Path(self.pack)), self.batch_size)
        made = FaceSet(pictures, total, conditioning.names if conditioning else [], self.shards)
        asked = pipeline.asked
        wanted = [conditioning.parse(cell) if conditioning else asked for cell in cells]
        with Progress() as bar:
            task = bar.add_task("Sampling", total=total, completed=len(made.names))
            while (done := len(made.names)) < total:
                if made.next > MAX_SAMPLES * (done + self.batch_size):
                    raise UserError(
                        f"Only {done:,} of {made.next:,} samples are new: the run repeats its training images. Choose "
                        "another run=..."
                    )
                number = done // self.num_images
                pipeline.asked = torch.where(wanted[number].isnan(), asked, wanted[number])
                count = min(self.batch_size, self.num_images - done % self.num_images)
                names = [(self.seed, made.next + i) for i in range(count)]
                faces = pipeline.faces(names, self.sampler, self.batch_size)
                features = audit.extract(faces)
                new, copies = audit(features, made.known)
                labels = pipeline.described_labels(names)
                made.add(faces, features, labels, new, copies, self.recipe(pictures, cells[number]))
                bar.update(task, completed=len(made.names))
        made.finish()
        with atomic_write(path) as file:
            file.write(self.card(pipeline, cells, made).encode())
        print(f"{total:,} faces; left out: {made.copies:,} copies of training images, {made.twins:,} near-twins")
        return path

    def recipe(self, pictures: PictureFolder, cell: dict[str, Any]) -> dict[str, Any]:
        """Return the metadata with which task=generate makes a face of a combination of labels."""
        settings = {
            "_target_": "latentfaces.tasks.Generate",
            "sampler": config_of(self.sampler),
            "num_images": 1,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "first": 0,
            "npz": False,
        }
        return {"task": "generate", "settings": settings, "labels": {**pictures.origin.get("labels", {}), **cell}}

    def card(self, pipeline: FacePipeline, cells: Sequence[dict[str, Any]], made: FaceSet) -> str:
        """Return the card of the set as Markdown."""
        run = open_run(self.folder)
        data, size = data_of(run), f"{pipeline.resolution} x {pipeline.resolution}"
        place = f"shards of {self.shards:,} images" if self.shards else f"`{IMAGES}/`, with `{LABELS}`"
        rows = {"faces": f"{made.total:,} of {size} pixels, in {place}"}
        if self.labels:
            rows[f"{self.num_images:,} each of"] = "; ".join(title(cell).replace("\n", ", ") for cell in cells)
        rows["copies of training images left out"] = f"{made.copies:,}"
        rows["near-twins left out"] = f"{made.twins:,}"
        rows["run, weights"] = f"{run.folder.name}, {pipeline.weights}"
        rows["seed"] = f"{self.seed}; the name of an image is the number of its sample"
        note = LIMIT_NOTE + (LABELS_NOTE if pipeline.conditioning else "")
        return (
            f"---\nlicense: {hub_license(data)}\ntags: [faces, synthetic]\n---\n\n# {made.folder.name}\n\n"
            f"Faces of people who do not exist, generated with latentfaces.\n\n{table(rows)}\n\n{note}\n\n"
            f"## Training data of the model\n\n{training_data(data, 'these images')}\n\n"
            f"## Intended use\n\n{INTENDED_USE}\n"
        )


class Audit:
    """Decide which samples are new, by the distances of `EncoderFeatures`.

    A sample is a copy if its nearest training image, as it is or mirrored, is nearer than that of 99 % of held-out
    images. It is a twin if it is that near to an earlier sample. About 1 % of new samples are that near by chance.

    Args:
        pipeline: the run.
        pack: its pack.
        batch_size: images at once.
    """

    def __init__(self, pipeline: FacePipeline, pack: Pack, batch_size: int) -> None:
        self.extract, device = EncoderFeatures(pipeline.vae), device_for_pairs(pipeline)
        plain, mirrored = (image_features(self.extract, pack, batch_size, Ranks(), flip) for flip in (False, True))
        self.train = torch.stack([view[pack.train_indices].to(device) for view in (plain, mirrored)], dim=1)
        held_out = plain[pack.val_indices].to(device)
        self.limit = usual_limit(nearest(held_out, self.train).distances[:, 0])

    def __call__(self, features: Tensor, earlier: Tensor) -> tuple[list[int], int]:
        """Return the indices of the new samples among features (n, d), and the number of copies.

        Args:
            features: features of the samples.
            earlier: features (m, d) of earlier samples.
        """
        device = self.train.device
        copied = nearest(features.to(device), self.train).distances[:, 0] < self.limit
        twin = torch.zeros(len(features), dtype=torch.bool)
        if len(earlier):
            twin = nearest(features.to(device), earlier.to(device)).distances[:, 0] < self.limit
        near = torch.cdist(features.double(), features.double()) < self.limit
        new: list[int] = []
        for i in range(len(features)):
            if not copied[i] and not twin[i] and not near[i, new].any():
                new.append(i)
        return new, int(copied.sum())
