"""Print what a training costs before it runs: parameters, FLOPs, memory, disk and hours on some GPUs."""

import argparse
import sys
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from latentfaces.cli.errors import explain
from latentfaces.config.compose import compose_config
from latentfaces.config.overrides import as_text
from latentfaces.config.suggestions import format_error
from latentfaces.config.validation import check_training, downsampling
from latentfaces.errors import UserError, escape_stdout

if TYPE_CHECKING:
    from latentfaces.cost.estimate import Plan

STAGES = ("vae", "ldm")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the cost of each stage."""
    parser = argparse.ArgumentParser(prog="latentfaces-budget", description=__doc__)
    parser.add_argument("overrides", nargs="*", help="as for train.py; both stages unless model=vae or model=ldm")
    parser.add_argument("--images", type=int, help="number of images, for the size of the pack and the latents")
    options = parser.parse_intermixed_args(arguments)
    if options.images is not None and options.images < 1:
        parser.error(f"--images={options.images} must be at least 1")
    escape_stdout()
    from latentfaces.cost.estimate import report  # imports torch: only once the arguments are valid

    try:
        for plan in plans([as_text(override) for override in options.overrides], options.images):
            print(report(plan), end="\n\n")
    except (UserError, InstantiationException) as error:
        sys.exit(f"error: {explain(error)}")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {format_error(error, 'train', options.overrides)}")


def plans(overrides: Sequence[str], num_images: int | None = None) -> "list[Plan]":
    """Return the trainings that the overrides describe: the stages of `model=`, or both.

    `model.autoencoder` is for stage 1 and `model.denoiser` for stage 2. Other overrides are for all stages.
    """
    chosen = [override.partition("=")[2] for override in overrides if override.startswith("model=")]
    if "fast" in chosen:
        raise UserError("model=fast has no budget. Use model=vae or model=ldm.")
    others = [override for override in overrides if not override.startswith("model=")]
    return [plan_of(stage_config(stage, others), num_images) for stage in (chosen or STAGES)]


def stage_config(stage: str, overrides: Sequence[str]) -> DictConfig:
    """Return the checked config of a stage. Stage 2 gets the VAE of `vae=RUN`, or the one that stage 1 would train."""
    from latentfaces.cli.init_run import add_init_run
    from latentfaces.cli.vae_run import add_trained_vae, is_chosen_resolution

    foreign = ("model/denoiser", "model.denoiser") if stage == "vae" else ("model/autoencoder", "model.autoencoder")
    own = [override for override in overrides if not override.lstrip("+~").startswith(foreign)]
    cfg = compose_config("train", [f"model={stage}", *own])
    with open_dict(cfg):
        cfg.run_dir = "."
    add_init_run(cfg)
    HydraConfig.instance().set_config(cfg)
    if stage == "ldm" and cfg.vae is not None:
        add_trained_vae(cfg)
    elif stage == "ldm":
        of_vae = ("experiment=", "data", "model/autoencoder", "model.autoencoder")
        trained = stage_config("vae", [override for override in overrides if override.lstrip("+~").startswith(of_vae)])
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            cfg.model.autoencoder = trained.model.autoencoder
            if "_target_" not in cfg.data:
                cfg.data = OmegaConf.merge(trained.data, cfg.data)
            elif not is_chosen_resolution(cfg.data):
                cfg.data.resolution = trained.data.resolution
    with open_dict(cfg):
        del cfg.hydra  # it has no values outside of Hydra's main
    check_training(cfg)
    return cfg


def plan_of(cfg: DictConfig, num_images: int | None) -> "Plan":
    """Return the plan of a checked config."""
    from latentfaces.cli.devices import num_processes
    from latentfaces.cost.estimate import Plan
    from latentfaces.data.pack import FFHQ_SIZE

    trainer, data, model, callbacks = cfg.trainer, cfg.data, cfg.model, cfg.callbacks or {}
    if num_images is None:
        num_images = FFHQ_SIZE if data.get("_target_", "").endswith("from_ffhq") else data.get("num_images")
    is_vae = cfg.stage == "vae"
    channels = model.autoencoder.latent_channels
    side = data.resolution // downsampling(model.autoencoder)
    on_disk = {f"pack of {num_images:,} images": 3 * data.resolution**2 * num_images} if num_images else {}
    if num_images and not is_vae:
        moments = 2 * channels * side**2 * 2  # mean and std in float16
        on_disk["latents and their mirror images"] = 2 * moments * num_images
    if is_vae and model.loss.perceptual is not None:
        with open_dict(cfg):  # random weights are enough to count
            model.loss.perceptual._target_ += ".untrained"
            model.loss.perceptual.pop("weights", None)
    ema, last, best = (callbacks.get(name) or {} for name in ("ema", "last", "best"))
    tracks = ema.get("tracks", [])
    files = {
        "checkpoints": 2 * bool(last) + (max(best.get("save_top_k", 1), 1) if best else 0),  # also last.previous.ckpt
        "best weights": 1,
        "snapshots": ema.get("snapshots", 0) * len(tracks),
        "guide": int(bool(callbacks.get("guide"))),
        "VAE copy": int(not is_vae),
    }
    return Plan(
        f"Stage {1 if is_vae else 2}: {data.resolution} pixels, latents of {side}x{side}x{channels}, "
        f"batch size {data.batch_size}, devices: {num_processes(trainer)}",
        partial(instantiate, model),
        data.batch_size,
        data.resolution,
        bfloat16=not str(trainer.precision).startswith("32"),
        accumulate=trainer.accumulate_grad_batches,
        max_steps=trainer.max_steps if trainer.max_steps > 0 else None,
        max_hours=hours(trainer.max_time),
        num_averages=len({ema.get("sigma_rel"), *tracks} - {None}),
        files=files,
        data=on_disk,
    )


def hours(max_time: str | None) -> float | None:
    """Return the hours of a limit days:hours:minutes:seconds."""
    if max_time is None:
        return None
    days, hours, minutes, seconds = map(int, max_time.split(":"))
    return timedelta(days, seconds, hours=hours, minutes=minutes) / timedelta(hours=1)
