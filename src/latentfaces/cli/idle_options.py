"""Options of sample.py that would have no effect."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from latentfaces.config.overrides import overridden_keys
from latentfaces.errors import UserError

UNLABELED = ("reconstruct", "tune")
"""Tasks without requested labels: they use the VAE alone, or compare with images of all labels."""
FROM_IMAGES = ("edit", "inpaint", "invert", "variations")
"""Tasks that start from images, where labels that are not requested are unknown."""
AUDITS = ("dataset", "evaluate", "neighbours", "tune")
"""Tasks that compare samples with the run's training or held-out images."""

OF_DENOISER = ("compile", "ema", "guidance", "sampler")
FROM_RUN = ("task.directions", "task.folder", "task.pack")
"""Settings that are filled in from the run."""
OF_SEEDS = ("task.number", "task.to_number", "task.to_seed")
"""Settings of task=interpolate between seeds."""


def refuse_idle_options(cfg: DictConfig, stage: str, is_fast: bool) -> None:
    """Reject the first option that the task would not use, on a run of this stage or of model=fast."""
    choices, overridden = HydraConfig.get().runtime.choices, overridden_keys()
    task, has_image = choices["task"], cfg.image is not None
    if task in AUDITS and cfg.task.pack is None:
        raise UserError(f"task={task} needs the training images, which a model folder does not have. Give run=RUN.")
    if task == "tune" and is_fast:
        raise UserError("task=tune has no effect on a run of model=fast: its sampler and guidance are fixed.")
    for key in ("image", "direction"):
        if cfg[key] is not None and key not in cfg.task:
            raise UserError(f"{key}=... has no effect with task={task}. Leave it out.")
    for key in overridden:
        if key in FROM_RUN:
            raise UserError(f"{key}=... has no effect, since it is filled in from the run. Leave it out.")
        if key in OF_SEEDS and has_image:
            raise UserError(f"{key}=... has no effect between photos. Leave it out, or leave out image.")
    if "align" in overridden and not (has_image and "align" in cfg.task):
        raise UserError("align=... has no effect without a photo. Give image=... to a task that takes one.")
    if cfg.labels and task in UNLABELED:
        raise UserError(f"labels.{next(iter(cfg.labels))}=... has no effect with task={task}. Leave it out.")
    from_images = task in FROM_IMAGES or (task in ("interpolate", "slide") and has_image)
    if from_images and not cfg.labels and choices.get("guidance") == "labels":
        raise UserError(f"guidance=labels has no effect with task={task} without labels.NAME=... Add it.")
    if task == "directions" and cfg.task.names:
        allow_only(("run", "output", "task", "task.names"), "with task.names, which only renames")
    if task == "edit":
        idle = ("num_images", "task.strength", "task.skips") if cfg.labels else ("task.photo_labels", "task.mask")
        if given := [key for key in idle if key in overridden]:
            where = "in an edit by labels" if cfg.labels else "without labels.NAME=..."
            raise UserError(f"{given[0]}=... has no effect {where}. Leave it out.")
    if cfg.ema is not None and task == "tune":
        raise UserError("ema=... has no effect with task=tune, which tries those of task.emas. Leave it out.")
    given = [key for key in overridden if key.partition(".")[0] in OF_DENOISER]
    if given and (stage == "vae" or "sampler" not in cfg.task):
        where = f"with task={task}" if "sampler" not in cfg.task else "on a run of stage 1"
        raise UserError(f"{given[0]}=... has no effect {where}, which uses the VAE alone. Leave it out.")


def refuse_varied_labels(settings: Mapping[str, Any], labels: Mapping[str, Any]) -> None:
    """Reject a requested label that the task varies."""
    for key in ("rows", "columns", "labels"):
        if twice := labels.keys() & (settings.get(key) or {}).keys():
            raise UserError(f"labels.{min(twice)}=... has no effect, since task.{key} sets it. Leave one out.")


def allow_only(keys: Sequence[str], where: str) -> None:
    """Reject an override of any other key."""
    for key in overridden_keys():
        if key not in keys and not key.startswith("hydra"):
            raise UserError(f"{key}=... has no effect {where}. Leave it out.")
