"""Between Hydra and `latentfaces-budget`: from overrides to the trainings that they describe."""

import argparse
import sys
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from latentfaces.cli.devices import num_processes
from latentfaces.cli.errors import explain
from latentfaces.cli.vae_run import add_trained_vae
from latentfaces.config.overrides import key_of
from latentfaces.config.paths import CONF
from latentfaces.config.schema import register
from latentfaces.config.suggestions import format_error
from latentfaces.config.validation import ModelLimits, check_length, check_ranges, check_types
from latentfaces.cost.estimate import CPU_SHARE, GPUS, SHARE, Plan, compare, report, this_machine
from latentfaces.data.pack import FFHQ_SIZE
from latentfaces.errors import UserError

STAGES = ("vae", "ldm")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what each stage costs."""
    parser = argparse.ArgumentParser(prog="latentfaces-budget", description=__doc__)
    parser.add_argument("overrides", nargs="*", help="as for train.py; both stages unless model=vae or model=ldm")
    parser.add_argument("--share", type=float, help=f"of the peak, assumed (GPU {SHARE}, CPU {CPU_SHARE})")
    parser.add_argument("--images", type=int, help="pictures in the data set, for the size of packs and caches")
    parser.add_argument("--measure", type=int, default=0, metavar="STEPS", help="compare with so many real steps here")
    options = parser.parse_intermixed_args(arguments)
    if options.share is not None and not 0 < options.share <= 1:
        parser.error(f"--share={options.share} must be above 0 and at most 1")
    if options.images is not None and options.images < 1:
        parser.error(f"--images={options.images} must be at least 1")
    if options.measure < 0:
        parser.error(f"--measure={options.measure} must be at least 0")
    try:
        described = plans(options.overrides, options.images)  # first: the machine takes a while to measure
        here = this_machine()
        for plan in described:
            print(report(plan, [*GPUS, here], options.share), end="\n\n")
            if options.measure:
                print(compare(plan, here, options.measure, options.share), end="\n\n")
    except InstantiationException as error:
        sys.exit(f"error: {explain(error)}")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {format_error(error, 'train', options.overrides)}")
    except UserError as error:
        sys.exit(f"error: {error}")


def plans(overrides: Sequence[str], num_images: int | None = None) -> list[Plan]:
    """The trainings that the overrides describe: of one stage where they say which, else of both.

    `model.autoencoder` belongs to stage 1 and `model.denoiser` to stage 2; all else is said to the stages asked for.
    """
    register()
    said = [override.partition("=")[2] for override in overrides if override.startswith("model=")]
    rest = [override for override in overrides if not override.startswith("model=")]
    return [planned(composed(stage, rest), num_images) for stage in (said or STAGES)]


def composed(stage: str, overrides: Sequence[str]) -> DictConfig:
    """The checked config of one stage; stage 2 gets the VAE of `vae=RUN`, or else the one that stage 1 would train."""
    foreign = ("model/denoiser", "model.denoiser") if stage == "vae" else ("model/autoencoder", "model.autoencoder")
    mine = [override for override in overrides if not override.lstrip("+~").startswith(foreign)]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"model={stage}", *mine], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        cfg.run_dir = "."
    if stage == "ldm" and cfg.vae is not None:
        add_trained_vae(cfg)
    elif stage == "ldm":
        of_vae = ("experiment=", "data", "model/autoencoder", "model.autoencoder")
        trained = composed("vae", [override for override in overrides if override.lstrip("+~").startswith(of_vae)])
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            cfg.model.autoencoder = trained.model.autoencoder
            if "_target_" not in cfg.data:
                cfg.data = OmegaConf.merge(trained.data, cfg.data)
    for key in ("model", "data"):
        check_types(OmegaConf.to_container(cfg[key], resolve=True, throw_on_missing=False), key)
    check_ranges(cfg)
    check_length(cfg.trainer)
    ModelLimits(cfg, [key_of(override) for override in mine]).check()
    return cfg


def planned(cfg: DictConfig, num_images: int | None) -> Plan:
    """The training of a checked config."""
    trainer, data, model = cfg.trainer, cfg.data, cfg.model
    callbacks = cfg.callbacks or {}
    if num_images is None:
        num_images = FFHQ_SIZE if data.get("_target_", "").endswith("from_ffhq") else data.get("num_images")
    first_stage = cfg.stage == "vae"
    side = data.resolution // (model.autoencoder.patch_size * 2 ** (len(model.autoencoder.multipliers) - 1))
    pixels, moments = 3 * data.resolution**2, 4 * model.autoencoder.latent_channels * side**2  # mean and std, float16
    ema = callbacks.get("ema") or {}
    disk = {f"the pack of {num_images:,} pictures": pixels * num_images} if num_images else {}
    if num_images and not first_stage:
        disk["the latents and their mirror images"] = 2 * moments * num_images
    with open_dict(cfg):
        if first_stage and model.loss.perceptual is not None:  # its weights are not needed to count it
            net = model.loss.perceptual.get("net", "vgg")
            model.loss.perceptual = {"_target_": "latentfaces.autoencoder.PerceptualDistance.untrained", "net": net}
    num_devices = num_processes(trainer)
    return Plan(
        title=f"Stage {1 if first_stage else 2}: {data.resolution} pixels, latents of "
        f"{side}x{side}x{model.autoencoder.latent_channels}, {data.batch_size} items a batch, {num_devices} device(s)",
        make=partial(instantiate, model),
        batch_size=data.batch_size,
        resolution=data.resolution,
        item=pixels if first_stage else moments,
        bfloat16=not str(trainer.precision).startswith("32"),
        num_devices=num_devices,
        sharded="fsdp" in str(trainer.strategy).lower(),
        accumulate=trainer.accumulate_grad_batches,
        max_steps=trainer.max_steps if trainer.max_steps > 0 else None,
        max_hours=hours(trainer.max_time),
        num_averages=len({ema.get("sigma_rel"), *ema.get("tracks", [])} - {None}),
        num_checkpoints=kept(callbacks),
        snapshots=ema.get("snapshots", 0) * len(ema.get("tracks", [])),
        disk=disk,
    )


def kept(callbacks: Any) -> int:
    """How many whole checkpoints a run keeps."""
    best = callbacks.get("best")
    return (callbacks.get("last") is not None) + (max(best.get("save_top_k", 1), 1) if best is not None else 0)


def hours(max_time: str | None) -> float | None:
    """Of a limit days:hours:minutes:seconds."""
    if max_time is None:
        return None
    days, *rest = (int(number) for number in max_time.split(":"))
    return timedelta(days=days, **dict(zip(("hours", "minutes", "seconds"), rest, strict=True))) / timedelta(hours=1)
