"""Search of guidance, EMA width and sampler."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from latentfaces.bounds import Ge, Gt
from latentfaces.data.pack import open_pack
from latentfaces.diffusion import Sampler
from latentfaces.errors import UserError, warn
from latentfaces.evaluation import FeatureDistance
from latentfaces.evaluation.features import features_by_name
from latentfaces.files import atomic_write
from latentfaces.pipeline import FacePipeline
from latentfaces.run import TUNED, Run, build, config_of, open_run
from latentfaces.tasks.base import SamplingTask
from latentfaces.tasks.output import PictureFolder

KINDS = {
    "none": "NoGuidance",
    "auto": "AutoGuidance",
    "internal": "InternalGuidance",
    "labels": "LabelGuidance",
}
MAX_PHOTOS = 2000
SHOWN = 16


@dataclass(frozen=True)
class Choice:
    """Sampling settings of a run.

    Args:
        sampler: name of the sampler, see `named`.
        guidance: "none", "auto", "internal" or "labels".
        weight: guidance weight; 1 for none.
        ema: width of the average; None for that of the best weights.
    """

    sampler: str
    guidance: str = "none"
    weight: float = 1.0
    ema: float | None = None

    def guidance_config(self) -> dict[str, Any]:
        """Return the config as in conf/guidance."""
        target = {"_target_": f"latentfaces.diffusion.{KINDS[self.guidance]}"}
        return target if self.guidance == "none" else {**target, "weight": self.weight, "start": 1.0, "end": 0.0}

    def __str__(self) -> str:
        average = "best weights" if self.ema is None else f"ema={self.ema:g}"
        return f"guidance={self.guidance}, weight {self.weight:g}, {average}, {self.sampler}"


def named(samplers: Sequence[Sampler]) -> dict[str, Sampler]:
    """Name samplers by class, steps and options without the default value, as "DPMpp2M 20 eta=1.0"."""
    names = {}
    for sampler in samplers:
        config = config_of(sampler)
        usual = {"shift": "auto", "spacing": "auto", "eta": 0.0}
        rest = [f"{key}={value}" for key, value in config.items() if key in usual and value != usual[key]]
        names[" ".join([type(sampler).__name__.removesuffix("Sampler"), str(sampler.num_steps), *rest])] = sampler
    return names


@dataclass(kw_only=True)
class Tune(SamplingTask):
    """Coordinate search of guidance kind and weight and EMA width, with `sampler`, then of the sampler.

    Every choice makes `num_images` samples of the same seeds. The best choice has the lowest `FeatureDistance` to one
    half of the held-out images. It goes to the run's tuned.json, which later commands use.

    Args:
        folder: the run's folder.
        pack: the run's pack.
        weights: guidance weights, each above 1 (no guidance).
        emas: widths of the average.
        samplers: other samplers, tried with the best guidance and average.
        features: as for task=evaluate. The run's encoder needs no download, but measures texture more than shape and
            prefers somewhat weaker guidance.
        feature_weights: file of the weights of `features`, for machines without network.
    """

    folder: str
    pack: str
    weights: Sequence[Annotated[float, Gt(1)]]
    emas: Sequence[float]
    samplers: Mapping[str, Sampler]
    features: str
    feature_weights: str | None
    num_images: Annotated[int, Ge(32)]

    def __call__(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write tuned.json, scores.csv and a grid: samples without guidance above the best ones."""
        best_weights = pipeline.required_denoiser()
        run = open_run(self.folder)
        pack = open_pack(Path(self.pack))
        extract = features_by_name(self.features, pipeline.vae, self.feature_weights, "task.feature_weights")
        chosen = np.random.default_rng(self.seed).permutation(pack.tuning_indices)[:MAX_PHOTOS]
        distance = FeatureDistance(extract, torch.from_numpy(pack.images[np.sort(chosen)]))
        scores = dict[Choice, float]()
        shown: dict[Choice, Tensor] = {}
        usual, *others = samplers = named([self.sampler, *self.samplers.values()])

        def score(choice: Choice) -> float:
            if choice not in scores:
                pipeline.denoiser = best_weights
                try:
                    if choice.ema is not None:
                        pipeline.denoiser = run.averaged("denoiser", choice.ema).to(pipeline.device)
                except UserError as error:  # the snapshots of the run cannot give this average
                    print(error)
                    return math.inf
                pipeline.guidance = build(choice.guidance_config())
                faces = pipeline.generate(self.num_images, self.seed, samplers[choice.sampler], self.batch_size)
                scores[choice], shown[choice] = distance(faces), faces[:SHOWN]
                print(f"{choice}: {scores[choice]:.4f}", flush=True)
            return scores[choice]

        plain = Choice(usual)
        fits = {
            "auto": pipeline.guide is not None,
            "internal": best_weights.has_auxiliary,
            "labels": pipeline.conditioning is not None,
        }
        guided = [Choice(usual, kind, weight) for kind in fits if fits[kind] for weight in self.weights]
        best = min([plain, *guided], key=score)
        if run.has_snapshots:
            best = min([best, *(replace(best, ema=ema) for ema in self.emas)], key=score)
        best = min([best, *(replace(best, sampler=other) for other in others)], key=score)
        best = min([best, *self.nearby(best)], key=score)
        print(f"best: {best}, {scores[best]:.4f} ({plain}: {scores[plain]:.4f})")
        self.write(run, best, samplers[best.sampler], scores, pictures)
        return pictures.grid(torch.cat([shown[plain], shown[best]]), columns=SHOWN)

    def nearby(self, best: Choice) -> list[Choice]:
        """Return choices with weights halfway to the neighbors of the best."""
        grid = sorted({1.0, *self.weights})
        if best.guidance == "none" or best.weight not in grid:
            return []
        at = grid.index(best.weight)
        others = [grid[i] for i in (at - 1, at + 1) if 0 <= i < len(grid)]
        return [replace(best, weight=round((best.weight + other) / 2, 4)) for other in others]

    @staticmethod
    def write(run: Run, best: Choice, sampler: Sampler, scores: dict[Choice, float], pictures: PictureFolder) -> None:
        """Write tuned.json to the output folder and to the run, and scores.csv to the output folder."""
        settings = {"guidance": best.guidance_config(), "ema": best.ema, "sampler": config_of(sampler)}
        result = {**settings, "score": scores[best], "of": run.best_hash}
        text = json.dumps(result, indent=1).encode()
        for folder in (pictures.folder, run.folder):
            try:
                with atomic_write(folder / TUNED) as file:
                    file.write(text)
            except OSError as error:  # the search took hours: keep its result
                warn(f"{folder / TUNED} cannot be written ({error.strerror}). Its content: {text.decode()}")
        with (pictures.folder / "scores.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, [*asdict(best), "distance"])
            table.writeheader()
            for choice, value in sorted(scores.items(), key=lambda item: item[1]):
                table.writerow({**asdict(choice), "distance": value})
