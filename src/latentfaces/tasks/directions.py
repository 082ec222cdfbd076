"""Interpretable directions of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor
from torchvision.utils import make_grid

from latentfaces.bounds import Positive
from latentfaces.data.pack import Pack, pack_if_here
from latentfaces.diffusion.directions import (
    FeatureDirections,
    direction_of_label,
    explained_variance,
    principal_directions,
    recorded_features,
)
from latentfaces.errors import UserError
from latentfaces.evaluation.features import EncoderFeatures
from latentfaces.evaluation.probe import Probe, WithPixels, known_rows
from latentfaces.files import atomic_write
from latentfaces.pipeline import FacePipeline
from latentfaces.run import DIRECTIONS
from latentfaces.tasks.base import SamplingTask
from latentfaces.tasks.output import PictureFolder
from latentfaces.tasks.relabel import usual_distance
from latentfaces.tasks.slide import slid

STRENGTHS = (-3.0, -1.5, 0.0, 1.5, 3.0)
"""Columns of a strip."""
NUM_FACES = 8
"""Rows of a strip."""
FEWEST = 8
"""Samples with and without a label that its direction needs."""
NUM_PROBED = 2048
"""Training images of the probes that recognize labels."""
MAX_MOVED = 1 / 3
"""Distance per std above which a direction is flagged: at strength 3 the face is another face."""


@dataclass(kw_only=True)
class Directions(SamplingTask):
    """Find directions in the features of `num_images` samples, and write directions.npz into the run's folder.

    They are the first principal components, named pc1, pc2, ..., and a direction for each binary label. Each is
    measured on a strip, an image with the first samples along the direction. The grid has the first row of every strip.

    Args:
        folder: the run's folder.
        pack: the run's pack, for the scale of distances and for the probes of labels.
        num_components: number of principal components.
        names: new names by the present ones. If given, the run's directions are renamed, and nothing else is done.
    """

    folder: str
    pack: str | None
    num_components: Positive
    names: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if self.sampler.num_steps < 2:
            raise UserError(f"sampler.num_steps={self.sampler.num_steps} must be at least 2 to find directions")
        if self.num_components >= self.num_images:
            raise UserError(
                f"task.num_components={self.num_components} must be below num_images={self.num_images}. Lower it."
            )

    def __call__(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write the directions and their strips. Return the path of the grid, or of the renamed directions."""
        path = Path(self.folder) / DIRECTIONS
        if self.names:
            with atomic_write(path) as file:
                FeatureDirections.load(path).renamed(self.names).save(file)
            return path
        measure = Measurement(pipeline, pack_if_here(self.pack))
        directions, first_rows = self.found(pipeline), []
        with atomic_write(path) as file:
            directions.save(file)
        print(f"{path}\n{'direction':<20} variance  moved per std")
        for name, explained in zip(directions.names, directions.explained.tolist(), strict=True):
            faces = self.strip(pipeline, directions, name)
            print(f"{name:<20} {explained:8.1%}  {measure(name, faces)}")
            pictures.add(make_grid(faces.flatten(0, 1), len(STRENGTHS), pad_value=255)[None])
            first_rows.append(faces[0])
        return pictures.grid(torch.cat(first_rows), len(STRENGTHS))

    def found(self, pipeline: FacePipeline) -> FeatureDirections:
        """Return the directions of samples, at the times of the sampler."""
        network, recorded, times = pipeline.required_denoiser().network, [], list[float]()
        names = [(self.seed, number) for number in range(self.num_images)]
        for start in track(range(0, len(names), self.batch_size), "Sampling"):
            batch = names[start : start + self.batch_size]
            draw = pipeline.draws(batch)
            condition = pipeline.condition(pipeline.labels_for(batch))
            with recorded_features(network, len(batch)) as features_at:
                pipeline.sample(draw(), self.sampler, draw, condition)
            times = sorted(features_at)
            recorded.append(torch.stack([features_at[time] for time in times], dim=1))
        features = torch.cat(recorded)
        flat = features.flatten(1)
        components = principal_directions(flat, self.num_components)
        by_label = self.of_labels(pipeline, flat)
        vectors = torch.stack([*components, *by_label.values()])
        return FeatureDirections(
            [*(f"pc{number}" for number in range(1, len(components) + 1)), *by_label],
            torch.tensor(times),
            vectors.view(-1, *features.shape[1:]),
            explained_variance(flat, vectors),
        )

    def of_labels(self, pipeline: FacePipeline, features: Tensor) -> Mapping[str, Tensor]:
        """Return the direction of each binary label that enough of the samples, with features (n, values), have."""
        found = {}
        labels = pipeline.labels_for([(self.seed, number) for number in range(len(features))])
        schema = pipeline.conditioning.labels if pipeline.conditioning is not None else []
        for index, label in enumerate(schema):
            rows, classes = known_rows(features, labels, index)
            if label.kind == "binary" and min((classes == value).sum() for value in (0, 1)) >= FEWEST:
                found[label.name] = direction_of_label(rows, classes == 1)
        return found

    def strip(self, pipeline: FacePipeline, directions: FeatureDirections, name: str) -> Tensor:
        """Return the first samples (NUM_FACES, len(STRENGTHS), 3, R, R) uint8 along a direction."""
        pairs = [*product(range(NUM_FACES), STRENGTHS)]
        names, strengths = [(self.seed, number) for number, _ in pairs], torch.tensor([s for _, s in pairs])
        faces = slid(pipeline, directions, name, strengths, names, self.sampler, self.batch_size)
        return faces.unflatten(0, (NUM_FACES, len(STRENGTHS)))


class Measurement:
    """Effect of a direction on samples: the distance that faces move, and the labels that change.

    Args:
        pipeline: the run.
        pack: the run's pack. Without it distances have no scale, and labels are not measured.
    """

    def __init__(self, pipeline: FacePipeline, pack: Pack | None) -> None:
        self.features = EncoderFeatures(pipeline.vae)
        self.usual = usual_distance(self.features, pack) if pack is not None else None
        self.probes = probes_of(pipeline, pack) if pack is not None else {}

    def __call__(self, name: str, faces: Tensor) -> str:
        """Return text about a strip (n, len(STRENGTHS), 3, R, R) uint8."""
        ends = faces[:, [0, -1]]
        features = self.features(faces.flatten(0, 1)).unflatten(0, faces.shape[:2])
        unchanged = features[:, [STRENGTHS.index(0)]]
        moved = (features[:, [0, -1]] - unchanged).norm(dim=2).mean().item() / STRENGTHS[-1] / (self.usual or 1)
        seen = WithPixels(self.features)(ends.flatten(0, 1))
        changes = {}
        for label, probe in self.probes.items():
            low, high = probe(seen).float().unflatten(0, (-1, 2)).mean(0).tolist()
            changes[label] = round(100 * (high - low))
        text = f"{moved:.2f}  " + "  ".join(f"{label} {points:+d}" for label, points in changes.items() if points)
        flags = []
        if self.usual is not None and moved > MAX_MOVED:
            flags.append("another face")
        if name in changes and abs(changes[name]) < max(map(abs, changes.values())):
            flags.append("another label")
        return text + "".join(f"  ! {flag}" for flag in flags)


def probes_of(pipeline: FacePipeline, pack: Pack) -> dict[str, Probe]:
    """Return a probe for each binary label of the run, fitted to training images of its pack."""
    rows, conditioning = pipeline.label_rows, pipeline.conditioning
    if conditioning is None or rows is None or len(rows) != len(pack.train_indices):
        return {}
    images = torch.from_numpy(pack.images[pack.train_indices[:NUM_PROBED]])
    features = WithPixels(EncoderFeatures(pipeline.vae))(images)
    probes = {}
    for index, label in enumerate(conditioning.labels):
        known, classes = known_rows(features, rows[:NUM_PROBED], index)
        if label.kind == "binary" and len(classes.unique()) == 2:
            probes[label.name] = Probe(known, classes)
    return probes
