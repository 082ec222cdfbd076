"""Metrics of a finished run."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from latentfaces.bounds import Ge
from latentfaces.data.arrays import ResumableArray
from latentfaces.data.pack import Pack, open_pack
from latentfaces.errors import UserError
from latentfaces.evaluation.feature_cache import image_features, resumed
from latentfaces.evaluation.features import Features, features_by_name
from latentfaces.evaluation.generation import generator_metrics, memorization
from latentfaces.evaluation.probe import WithPixels
from latentfaces.evaluation.protocol import (
    RESULT,
    JoinedFeatures,
    Protocol,
    Reference,
    ReferenceName,
    Row,
    as_markdown,
    differences,
    label_groups,
    protocol_named,
    source_size,
    table,
)
from latentfaces.marks import EDITED
from latentfaces.pipeline import FacePipeline
from latentfaces.report import write_report
from latentfaces.run import in_words, open_run
from latentfaces.tasks.base import SamplingTask
from latentfaces.tasks.labels import evaluate_labels, labels_of_run
from latentfaces.tasks.output import PictureFolder
from latentfaces.tasks.suspects import NUM_NEIGHBORS, suspicious

SHOWN = 32
MIN_IMAGES = 50
FREE = ("num_images", "batch_size", "features", "weights", "protocol", "reference", "per_label")
"""Settings that change the number of images or the features, but no image."""
Make = Callable[[Sequence[int]], Tensor]
"""Returns the images (n, 3, R, R) uint8 with these numbers."""


@dataclass(kw_only=True)
class Evaluate(SamplingTask):
    """Compare `num_images` samples, or reconstructions of a VAE, with held-out images. Writes metrics.json and plots.

    The held-out images are the half that task=tune and callbacks.face_metrics do not see.

    The metrics are Frechet and kernel distance, precision and recall. Samples also get the fraction of duplicates, and
    the fraction nearer to a training image, as it is or mirrored, than new images are. The same metrics of as many
    training images are the reference. With features "inception" the Frechet distance is the FID. For a run with labels
    a probe recognizes the asked labels in the samples.

    Ranks share the images, and rank 0 compares the features. Images are not kept: their features go to a file, so that
    memory does not grow with `num_images`. A killed evaluation with the same `output` resumes, also for more images.
    Features of the pack's images are cached in the pack.

    With a protocol the task prints a row for a table with published rows instead, and why it is not comparable.

    Args:
        pack: the run's pack.
        features: "encoder", one of `latentfaces.evaluation.features.NETWORKS`, or the file of a network. By default
            "encoder", or the networks of the protocol.
        weights: file of that network's weights, for machines without network.
        folder: the run's folder. Its page shows the metrics if the output is inside it.
        protocol: one of `latentfaces.evaluation.protocol.PROTOCOLS`.
        reference: real images instead of those of the protocol.
        per_label: add a row for each value of each label to that of the protocol.
    """

    num_images: Annotated[int, Ge(MIN_IMAGES)]
    pack: str
    features: str | None
    weights: str | None
    folder: str
    protocol: str | None
    reference: ReferenceName | None
    per_label: bool

    def __post_init__(self) -> None:
        if self.protocol is None:
            for key in ("reference", "per_label"):
                if getattr(self, key):
                    raise UserError(f"task.{key}={getattr(self, key)} has no effect without task.protocol=...")
        elif self.weights is not None and self.features is None:
            raise UserError(f"task.weights={self.weights} is for one network. Add task.features=inception.")

    def __call__(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write and print the metrics. Return the path of the grid."""
        pack = open_pack(Path(self.pack))
        make = partial(self.images, pipeline, pack)
        if self.protocol is None:
            rows = self.compare(pipeline, pictures, pack, make)
        else:
            rows = self.publish(protocol_named(self.protocol), pipeline, pictures, pack, make)
        if pictures.ranks.rank > 0:
            return pictures.folder
        if Path(self.folder) in pictures.folder.parents:  # the page of the run shows the result
            write_report(self.folder)
        grid = pictures.grid(make(range(SHOWN)), columns=8)
        rows.discard()  # large, and the folder takes no further evaluation
        return grid

    def compare(self, pipeline: FacePipeline, pictures: PictureFolder, pack: Pack, make: Make) -> ResumableArray:
        """Compare the images with held-out ones. Write metrics.json and the plots. Return the features' file."""
        if len(pack.test_indices) < MIN_IMAGES:
            raise UserError(
                f"{pack.folder} has {len(pack.val_indices)} held-out images. task=evaluate reports on half of them and "
                f"needs at least {2 * MIN_IMAGES}. Add images, or train with more held out, as with data.val_every=2."
            )
        kind, count, ranks = "new faces", self.num_images, pictures.ranks
        is_stage_2 = pipeline.denoiser is not None
        if not is_stage_2:
            kind, count = "reconstructions", min(self.num_images, len(pack.test_indices))
            pictures.source = EDITED
        features, conditioning = self.features or "encoder", pipeline.conditioning
        extract = features_by_name(features, pipeline.vae, self.weights)
        labels = labels_of_run(self.folder, pack, conditioning) if conditioning else None
        real = image_features(extract, pack, self.batch_size, ranks)
        mirrored = image_features(extract, pack, self.batch_size, ranks, mirrored=True) if is_stage_2 else real
        of_samples = extract if labels is None else WithPixels(extract)
        rows, with_pixels = self.sample_features(of_samples, make, count, pictures)
        if ranks.rank > 0:
            return rows

        device = device_for_pairs(pipeline)
        with_pixels = with_pixels.to(device)
        fake, held_out = with_pixels[:, : real.shape[1]], real[pack.test_indices].to(device)
        train = real[pack.train_indices].to(device)
        print(f"comparing {len(fake):,} {kind} with {len(held_out):,} held-out images")
        values, figures = generator_metrics(held_out, fake), list[Figure]()
        if is_stage_2:
            views = torch.stack([train, mirrored[pack.train_indices].to(device)], dim=1)
            result = memorization(fake, views, held_out, min(NUM_NEIGHBORS, len(train)))
            values |= {"duplicates": result.duplicates, "memorized_fraction": result.memorized_fraction}
            figures = suspicious(result, make, pack)
        alike = train[np.random.default_rng(0).permutation(len(train))[: len(fake)]]
        of_training = generator_metrics(held_out, alike)
        if features == "inception":
            for measured in (values, of_training):
                measured["fid"] = measured.pop("frechet_distance")
        metrics = {
            "kind": kind,
            "of": open_run(self.folder).best_hash,
            "weights": pipeline.weights,
            "sampling": sampling_in_words(pictures) if is_stage_2 else {},
            "features": features,
            "num_images": len(fake),
            "num_photos": len(held_out),
            **values,
            "training_photos": of_training,
        }
        if labels is not None and conditioning is not None:
            asked = pipeline.labels_for([(self.seed, number) for number in range(len(fake))])
            metrics["labels"] = evaluate_labels(pack, conditioning, labels, real, with_pixels, asked)
        (pictures.folder / "metrics.json").write_text(json.dumps(metrics, indent=1))
        for name, value in values.items():
            print(f"{name} {value:.4g}")
        for number, figure in enumerate(figures, start=1):
            pictures.figure(figure, f"memorization_{number}.png")
        return rows

    def publish(
        self, protocol: Protocol, pipeline: FacePipeline, pictures: PictureFolder, pack: Pack, make: Make
    ) -> ResumableArray:
        """Write and print the row of a protocol. Return the features' file."""
        pipeline.required_denoiser()
        names = (self.features,) if self.features else protocol.features
        conditioning, run = pipeline.conditioning, open_run(self.folder)
        if self.per_label and conditioning is None:
            raise UserError("task.per_label needs a run that was trained with data.labels. Choose another run=...")
        size = source_size(run.config["data"], pack.manifest["names"])
        reference = Reference(pack, self.reference or protocol.reference, size)
        chosen = reference.indices
        if len(chosen) < MIN_IMAGES:
            raise UserError(f"task.reference={reference.name} has {len(chosen)} images. Use at least {MIN_IMAGES}.")
        labels = labels_of_run(self.folder, pack, conditioning) if self.per_label and conditioning else None
        networks = [features_by_name(name, pipeline.vae, self.weights) for name in names]
        of_pack = [image_features(network, pack, self.batch_size, pictures.ranks) for network in networks]
        file, joined = self.sample_features(JoinedFeatures(networks), make, self.num_images, pictures)
        if pictures.ranks.rank > 0:
            return file

        device = device_for_pairs(pipeline)
        real = [features[chosen].to(device) for features in of_pack]
        fake = joined.to(device).split([features.shape[1] for features in real], dim=1)
        pairs = dict(zip(names, zip(real, fake, strict=True), strict=True))
        rows = [Row.measure(run.folder.name, pairs)]
        if labels is not None and conditioning is not None:
            asked = pipeline.labels_for([(self.seed, number) for number in range(len(joined))])
            for title, ours, theirs in label_groups(conditioning.labels, labels[chosen], asked):
                group = {name: (features[ours], others[theirs]) for name, (features, others) in pairs.items()}
                rows.append(Row.measure(f"{run.folder.name}, {title}", group))
        result = {
            "protocol": asdict(protocol),
            "of": run.best_hash,
            "weights": pipeline.weights,
            "reasons": differences(protocol, reference, len(joined), names, pictures.origin["labels"]),
            "rows": [asdict(row) for row in rows],
            "table": table(rows, reference),
        }
        (pictures.folder / RESULT).write_text(json.dumps(result, indent=1))
        text = as_markdown(result)
        print(text)
        (pictures.folder / "row.md").write_text(f"{text}\n")
        return file

    def images(self, pipeline: FacePipeline, pack: Pack, numbers: Sequence[int]) -> Tensor:
        """Return the samples or reconstructions (n, 3, R, R) uint8 with these numbers."""
        if pipeline.denoiser is not None:
            names = [(self.seed, number) for number in numbers]
            return pipeline.faces(names, self.sampler, self.batch_size)
        photos = torch.from_numpy(pack.images[pack.test_indices[list(numbers)]])
        return self.reconstructed(pipeline, photos)

    def sample_features(
        self, extract: Features, make: Make, count: int, pictures: PictureFolder
    ) -> tuple[ResumableArray, Tensor]:
        """Return a resumable file and its features (count, d) of what `make` returns; these are empty above rank 0."""
        settings = {k: v for k, v in pictures.origin.get("settings", {}).items() if k not in FREE}
        path = pictures.folder / f"features-{extract.key}.npy"
        rows = ResumableArray(path, count, {**pictures.origin, "settings": settings})
        if not rows.has_origin:
            raise UserError(f"{pictures.folder} contains features of other images. Choose another output=...")
        features = resumed(rows, lambda numbers: extract(make(numbers)), self.batch_size, pictures.ranks, "Sampling")
        return rows, features


def sampling_in_words(pictures: PictureFolder) -> dict[str, str]:
    """Return sampler, guidance and requested labels of the samples."""
    origin = pictures.origin
    words = {"sampler": in_words(origin["settings"]["sampler"]), "guidance": in_words(origin["guidance"])}
    labels = ", ".join(f"{name}={value}" for name, value in origin["labels"].items())
    return words | ({"requested labels": labels} if labels else {})


def device_for_pairs(pipeline: FacePipeline) -> torch.device:
    """Return where to compare all pairs: a GPU compares those of 50,000 in seconds, two CPU cores in half an hour."""
    return pipeline.device if pipeline.device.type == "cuda" else torch.device("cpu")
