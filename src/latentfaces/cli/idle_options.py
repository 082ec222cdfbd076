"""Options of sample.py that would have no effect."""

from collections.abc import Sequence

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from latentfaces.config.overrides import overridden_keys
from latentfaces.errors import UserError

UNLABELED = ("reconstruct", "tune")
"""Tasks without requested labels: they use the VAE alone, or compare with images of all labels."""
AUDITS = ("dataset", "evaluate", "neighbours", "tune")
"""Tasks that compare samples with the run's training or held-out images."""
OF_THE_DENOISER = ("ema", "guidance", "compile", "sampler")
"""Options of the denoiser."""


def refuse_idle_options(cfg: DictConfig, stage: str) -> None:
    """Reject the first option that the task on a run of this stage would not use."""
    task, overridden = HydraConfig.get().runtime.choices["task"], overridden_keys()
    if task in AUDITS and cfg.task.pack is None:
        raise UserError(f"task={task} needs the training images, which a model folder does not have. Give run=RUN.")
    for key in ("image", "align", "direction"):
        if key in overridden and key not in cfg.task:
            raise UserError(f"{key}=... has no effect with task={task}. Leave it out.")
    if cfg.labels and task in UNLABELED:
        raise UserError(f"labels.{next(iter(cfg.labels))}=... has no effect with task={task}. Leave it out.")
    if task == "edit":
        idle = ("num_images", "task.strength", "task.skips") if cfg.labels else ("task.photo_labels", "task.mask")
        if given := [key for key in idle if key in overridden]:
            where = "in an edit by labels" if cfg.labels else "without labels.NAME=..."
            raise UserError(f"{given[0]}=... has no effect {where}. Leave it out.")
    if cfg.ema is not None and task == "tune":
        raise UserError("ema=... has no effect with task=tune, which tries those of task.emas. Leave it out.")
    given = [key for key in overridden if key.partition(".")[0] in OF_THE_DENOISER]
    if given and (stage == "vae" or "sampler" not in cfg.task):
        where = f"with task={task}" if "sampler" not in cfg.task else "on a run of stage 1"
        raise UserError(f"{given[0]}=... has no effect {where}, which uses the VAE alone. Leave it out.")


def allow_only(keys: Sequence[str], where: str) -> None:
    """Reject an override of any other key."""
    for key in overridden_keys():
        if key not in keys and not key.startswith("hydra"):
            raise UserError(f"{key}=... has no effect {where}. Leave it out.")
