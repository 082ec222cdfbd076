"""Print what a training costs before it runs: parameters, FLOPs, memory, disk and hours on some GPUs."""

import argparse
from collections.abc import Sequence
from functools import partial

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from latentfaces.cli.errors import one_line_errors
from latentfaces.config.compose import compose_config
from latentfaces.config.overrides import as_text, key_of
from latentfaces.config.validation import check_training, downsampling
from latentfaces.errors import UserError, escape_stdout


def main() -> None:
    """Print the cost of each stage."""
    parser = argparse.ArgumentParser(prog="latentfaces-budget", description=__doc__)
    parser.add_argument("overrides", nargs="*", help="as for train.py; both stages unless model=vae or model=ldm")
    overrides = [as_text(override) for override in parser.parse_args().overrides]
    stages = [override.partition("=")[2] for override in overrides if key_of(override) == "model"]
    escape_stdout()
    with one_line_errors("train", overrides):
        for stage in stages or ("vae", "ldm"):
            print(describe(stage_config(stage, overrides)), end="\n\n")


def stage_config(stage: str, overrides: Sequence[str]) -> DictConfig:
    """Return the checked config of a stage. Stage 2 gets the VAE of `vae=RUN`, or the one that stage 1 would train.

    `model.autoencoder` is for stage 1 and `model.denoiser` for stage 2. Other overrides are for both.
    """
    from latentfaces.cli.init_run import add_init_run
    from latentfaces.cli.vae_run import add_trained_vae, is_chosen_resolution

    if stage == "fast":
        raise UserError("model=fast has no budget. Use model=vae or model=ldm.")
    keys = [(key_of(override).replace("/", "."), override) for override in overrides]
    foreign = "model.denoiser" if stage == "vae" else "model.autoencoder"
    own = [override for key, override in keys if key != "model" and not key.startswith(foreign)]
    cfg = compose_config("train", [f"model={stage}", *own])
    with open_dict(cfg):
        cfg.run_dir = "."
        add_init_run(cfg)
        if stage == "ldm" and cfg.vae is None:
            of_vae = [override for key, override in keys if key.startswith(("experiment", "data", "model.autoencoder"))]
            first = compose_config("train", ["model=vae", *of_vae])
            cfg.model.autoencoder = first.model.autoencoder
            if "_target_" not in cfg.data:
                cfg.data = OmegaConf.merge(first.data, cfg.data)
            elif not is_chosen_resolution(cfg.data):
                cfg.data.resolution = first.data.resolution
        HydraConfig.instance().set_config(cfg)  # composing another config has replaced it
        if stage == "ldm" and cfg.vae is not None:
            add_trained_vae(cfg)
        del cfg.hydra  # it has no values outside of Hydra's main
        check_training(cfg)
        if stage == "vae" and cfg.model.loss.perceptual is not None:  # random weights are enough to count
            cfg.model.loss.perceptual._target_ += ".untrained"
            cfg.model.loss.perceptual.pop("weights", None)
    return cfg


def describe(cfg: DictConfig) -> str:
    """Return the cost of a stage as Markdown."""
    from latentfaces.cost.estimate import report
    from latentfaces.cost.step import count_step
    from latentfaces.data.pack import FFHQ_SIZE
    from latentfaces.training import TimeLimit

    vae, data, trainer, ema = cfg.model.autoencoder, cfg.data, cfg.trainer, cfg.callbacks.get("ema") or {}
    is_vae, tracks = cfg.stage == "vae", ema.get("tracks", [])
    pixels, channels, side = data.resolution, vae.latent_channels, data.resolution // downsampling(vae)
    shape = (3, pixels, pixels) if is_vae else (2, channels, side, side)
    bfloat16 = not str(trainer.precision).startswith("32")
    num_averages = len({ema.get("sigma_rel"), *tracks} - {None})
    cost = count_step(partial(instantiate, cfg.model), (data.batch_size, *shape), bfloat16, num_averages)
    cost = cost._replace(flops=trainer.accumulate_grad_batches * cost.flops)
    num_images = FFHQ_SIZE if data._target_.endswith("from_ffhq") else data.get("num_images", 1000)
    disk = {f"pack of {num_images:,} images": 3 * pixels**2 * num_images}
    if not is_vae:  # in float16: mean and std of images and mirror images, and averages of the denoiser
        disk["latents"] = 2 * 2 * 2 * channels * side**2 * num_images
        disk["snapshots"] = 2 * cost.parameters["denoiser"] * len(tracks) * ema.get("snapshots", 0)
    disk["3 checkpoints"] = 3 * cost.checkpoint  # last.ckpt, last.previous.ckpt and best.ckpt
    title = f"Stage {1 if is_vae else 2}: {pixels} pixels, latents of {side}x{side}x{channels}"
    seconds = TimeLimit(trainer.max_time).limit if trainer.max_time else 0
    figures = report(cost, disk, bfloat16, trainer.max_steps, seconds)
    return f"## {title}, batch size {data.batch_size}\n\n{figures}"
