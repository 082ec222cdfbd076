"""Protocols of published metrics: number of samples, real images and feature networks."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentfaces.data.images import open_image
from latentfaces.data.pack import FFHQ_SIZE, Pack, is_whole_ffhq
from latentfaces.data.sources import Photos
from latentfaces.errors import UserError
from latentfaces.evaluation.features import Features
from latentfaces.evaluation.generation import density_and_coverage, generator_metrics
from latentfaces.evaluation.probe import FEWEST
from latentfaces.labels import Label

ReferenceName = Literal["all", "train", "held_out"]
FFHQ_SIDE = 1024
PAPER_FILTERS = {64: "lanczos", 256: "box", FFHQ_SIDE: "none"}
"""Filters by which papers resized FFHQ: Karras et al. 2022 (64 pixels), Karras et al. 2020 (256 pixels)."""
NUM_SIZES = 32
"""Source images whose size is read, evenly spaced."""
RESULT = "protocol.json"
METRICS = ("frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage")
COLUMNS = {
    ("inception", "frechet_distance"): "FID",
    ("inception", "kernel_distance"): "KID",
    ("inception", "precision"): "precision",
    ("inception", "recall"): "recall",
    ("inception", "density"): "density",
    ("inception", "coverage"): "coverage",
    ("dinov2", "frechet_distance"): "FD-DINOv2",
}
"""Published names of metrics, by network and metric."""


@dataclass(frozen=True)
class Protocol:
    """Settings that published numbers share.

    Args:
        name: value of `task.protocol`.
        num_samples: number of samples.
        reference: real images that samples are compared with.
        features: networks of the features.
    """

    name: str
    num_samples: int
    reference: ReferenceName
    features: tuple[str, ...] = ("inception", "dinov2")


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("fid50k_full", 50_000, "all"),  # Karras et al. 2020
        Protocol("fid50k_train", 50_000, "train"),  # Rombach et al. 2022
        Protocol("fid10k", 10_000, "all"),
    )
}


def protocol_named(name: str) -> Protocol:
    """Return the protocol of a name.

    Raises:
        UserError: there is none.
    """
    if name not in PROTOCOLS:
        raise UserError(f"task.protocol={name} is unknown. Choose one of {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]


@dataclass(frozen=True)
class Reference:
    """Real images that samples are compared with.

    Args:
        pack: the run's pack.
        name: "all" images, those of "train", or "held_out": those that task=tune does not see.
        source_size: height and width in pixels of the source images; None if it is unknown.
    """

    pack: Pack
    name: ReferenceName
    source_size: int | None

    @property
    def indices(self) -> NDArray[np.int64]:
        """Indices in the pack."""
        everything = np.arange(self.pack.manifest["num_images"])
        return {"all": everything, "train": self.pack.train_indices, "held_out": self.pack.test_indices}[self.name]

    @property
    def resize_filter(self) -> str:
        """Filter that resized the images: "none" where their size is that of the source."""
        resolution, name = self.pack.manifest["resolution"], self.pack.manifest["settings"]["filter"]
        if self.source_size == resolution:
            return "none"
        if name != "auto" or self.source_size is None:
            return str(name)
        return "lanczos" if self.source_size % resolution else "box"


def source_size(data: Mapping[str, Any], names: Sequence[str]) -> int | None:
    """Return the shorter side in pixels of source images; None if sizes differ or the images are not here.

    Args:
        data: config of the data module.
        names: names of the images.
    """
    if data.get("align"):  # the names are those of the aligned faces
        return None
    with suppress(UserError, OSError, ValueError):
        photos, sides = Photos(data.get("root") or Path(data["folder"]) / "ffhq.zip"), set[int]()
        for name in names[:: -(-len(names) // NUM_SIZES)]:
            with open_image(io.BytesIO(photos.file_bytes(name))) as image:
                sides.add(min(image.size))
        return sides.pop() if len(sides) == 1 else None
    return None


def differences(
    protocol: Protocol,
    reference: Reference,
    num_samples: int,
    features: Sequence[str],
    asked: Mapping[str, object],
) -> list[str]:
    """Return each reason why a row is not comparable with published rows of FFHQ.

    Args:
        protocol: protocol of the published rows.
        reference: the real images.
        num_samples: number of samples.
        features: networks of the features.
        asked: labels that were requested for all samples.
    """
    networks = [Path(name).name for name in features]
    names, resolution = reference.pack.manifest["names"], reference.pack.manifest["resolution"]
    size, resized, usual = reference.source_size, reference.resize_filter, PAPER_FILTERS.get(resolution)
    of_papers = f"papers at {resolution} px use {usual}" if usual else f"no paper at {resolution} px is known"
    of_images = {
        "images that are not PNG": not all(name.lower().endswith(".png") for name in names),
        "source of unknown size" if size is None else f"{size} px source": size != FFHQ_SIDE,
        f"resized by {resized}, {of_papers}": resized != usual,
    }
    of_samples = {
        f"reference {reference.name} instead of {protocol.reference}": reference.name != protocol.reference,
        f"{num_samples:,} instead of {protocol.num_samples:,} samples": num_samples != protocol.num_samples,
        f"features of {' and '.join(networks)}": not set(features) <= set(protocol.features),
        f"samples with {' '.join(f'{key}={value}' for key, value in asked.items())}": bool(asked),
    }
    if not is_whole_ffhq(names):
        of_images = {f"images other than the {FFHQ_SIZE:,} of FFHQ": True}
    return [reason for reason, differs in (of_images | of_samples).items() if differs]


class JoinedFeatures:
    """Features of several networks, one after the other: each image is sampled once."""

    def __init__(self, networks: Sequence[Features]) -> None:
        self.networks, self.key = networks, "+".join(network.key for network in networks)

    def __call__(self, images: Tensor) -> Tensor:
        """Map images (n, 3, H, W) uint8 to features (n, d) float32 on the CPU."""
        return torch.cat([network(images) for network in self.networks], dim=1)


def label_groups(labels: Sequence[Label], real: Tensor, asked: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield each value of each label, as "Smiling=1", and the images and samples with it as masks.

    Numbers are left out, and so are values with too few images or samples.

    Args:
        labels: schema of the labels.
        real: labels (n, L) of the images.
        asked: labels (m, L) of the samples.
    """
    for index, label in enumerate(labels):
        if label.kind == "number":
            continue
        for value, name in enumerate(label.choices or ("0", "1")):
            masks = real[:, index] == value, asked[:, index] == value
            if min(int(mask.sum()) for mask in masks) >= FEWEST:
                yield f"{label.name}={name}", *masks


@dataclass(frozen=True)
class Row:
    """Metrics of one set of samples.

    Args:
        name: name of the samples.
        num_samples, num_real: numbers of samples and of real images.
        values: values of `METRICS`, for each network.
    """

    name: str
    num_samples: int
    num_real: int
    values: Mapping[str, Mapping[str, float]]

    @classmethod
    def measure(cls, name: str, features: Mapping[str, tuple[Tensor, Tensor]]) -> "Row":
        """Compare features (n, d) of real images and (m, d) of samples, for each network."""
        values = {}
        for network, (real, fake) in features.items():
            density, coverage = density_and_coverage(real, fake)
            values[network] = {**generator_metrics(real, fake), "density": density, "coverage": coverage}
        return cls(name, len(fake), len(real), values)


def table(rows: Sequence[Row], reference: Reference) -> list[list[str]]:
    """Return the cells of a table, its header first. It names the real images, their number and their filter."""
    networks = rows[0].values
    columns = {key: title for key, title in COLUMNS.items() if key[0] in networks}
    for name in networks.keys() - {network for network, _ in COLUMNS}:
        columns |= {(name, metric): f"{metric.replace('_', ' ')} ({Path(name).stem})" for metric in METRICS}
    resolution = reference.pack.manifest["resolution"]
    lines = [["model", "px", "samples", "reference", "filter", *columns.values()]]
    for row in rows:
        real = f"{row.num_real:,} ({reference.name})"
        metrics = [f"{row.values[network][metric]:.4g}" for network, metric in columns]
        lines.append([row.name, f"{resolution}", f"{row.num_samples:,}", real, reference.resize_filter, *metrics])
    return lines


def comparability(result: Mapping[str, Any]) -> str:
    """Return whether the rows of a protocol.json are comparable with published ones, and why not."""
    reasons = "; ".join(result["reasons"])
    state = f"not comparable with published rows of FFHQ: {reasons}" if reasons else "comparable"
    return f"{result['protocol']['name']}: {state}"


def as_markdown(result: Mapping[str, Any]) -> str:
    """Return the table of a protocol.json, and its verdict."""
    header, *rows = result["table"]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + f"\n\n{comparability(result)}"
