"""Recipe of an image: what its PNG metadata has, so that it can be made again."""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentfaces.errors import UserError

FILE_KEYS = ("image", "to_image", "mask", "directions")
VERSION = 3
"""Version of recipes. It changes where the same recipe makes another image."""


@dataclass
class Recipe:
    """Everything that determines an image, as its PNG metadata has it.

    Args:
        run: the run's folder.
        task: name of the task.
        settings: config of the task.
        guidance: config of the guidance.
        ema: width of the weights' average; None for that of the best weights.
        precision: "fp32" or "bf16".
        files: the first 12 digits of the SHA-256 of each file in the settings, by its key.
        labels: requested labels.
        weights: hashes of the weights; None before they are loaded.
        version: see `VERSION`.
    """

    run: str
    task: str
    settings: dict[str, Any]
    guidance: dict[str, Any]
    ema: float | None = None
    precision: str = "fp32"
    files: dict[str, str] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    version: int = VERSION


def named_files(settings: dict[str, Any]) -> dict[str, str]:
    """Return the hash of each photo and mask in the settings, and of the names and sizes in a folder."""
    from latentfaces.data.sources import Photos
    from latentfaces.data.verify import file_sha256

    paths = {key: Path(settings[key]) for key in FILE_KEYS if settings.get(key) is not None}
    hashes: dict[str, str] = {}
    for key, path in paths.items():
        if path.is_file():
            hashes[key] = file_sha256(path)
        elif path.is_dir():
            with contextlib.suppress(UserError):  # the task reports it with its key
                hashes[key] = Photos(path).fingerprint
    return {key: digest[:12] for key, digest in hashes.items()}


def describe(recipe: Recipe) -> str:
    """Return guidance, average and sampler as text."""
    sampler = recipe.settings["sampler"]
    guidance, solver = (str(config["_target_"]).rpartition(".")[2] for config in (recipe.guidance, sampler))
    weight = f" with weight {recipe.guidance['weight']:.3g}" if "weight" in recipe.guidance else ""
    average = "best weights" if recipe.ema is None else f"ema={recipe.ema:.3g}"
    noise = f" with eta={sampler['eta']:g}" if "eta" in sampler else ""
    return f"guidance: {guidance}{weight}, {average}; {sampler['num_steps']} steps of {solver}{noise}"
