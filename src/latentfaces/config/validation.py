"""Checks of a composed config."""

import contextlib
import inspect
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from latentfaces.config.compose import compose_config
from latentfaces.config.overrides import key_of, names_its_run, overridden_keys
from latentfaces.config.paths import CONF, GROUPS
from latentfaces.config.schema import OPTIMIZER, TrainConfig
from latentfaces.config.type_checks import check_keys, check_types, check_value
from latentfaces.errors import UserError, warn


def check_training(cfg: DictConfig) -> None:
    """Check a composed config of train.py before anything is built.

    Raises:
        UserError: naming the key and the fix.
    """
    overridden = overridden_keys()
    check_groups(cfg, overridden)
    check_types(OmegaConf.to_container(cfg, resolve=True))
    check_keys(cfg, TrainConfig)
    check_run(cfg, overridden)
    check_model(cfg, overridden)


NETWORKS = {"model/autoencoder": "model.autoencoder", "model/denoiser": "model.denoiser.network"}
"""Groups of networks, and where their values are in the config."""


FILLED_IN = ("pack", "stage", "version")
"""Keys that train.py sets."""


def refuse_filled_in() -> None:
    """Reject an override of a key that train.py sets."""
    for key in overridden_keys():
        if key in FILLED_IN:
            raise UserError(f"{key}=... has no effect, since train.py sets it. Leave it out.")


def check_groups(cfg: DictConfig, overridden: Sequence[str]) -> None:
    """Reject a group that is written with dots, and an experiment that is not for this model or replaces a network.

    Raises:
        UserError: naming the override and the fix.
    """
    choices, overrides = HydraConfig.get().runtime.choices, HydraConfig.get().overrides.task
    for override in overrides:
        key, _, value = override.partition("=")
        group = key.replace(".", "/")
        if "." in key and group in GROUPS and re.fullmatch(r"\w+", value) and value != "null":
            raise UserError(f"{key} is a group. Use {group}={value}")
    experiment = choices.get("experiment")
    models = [path.stem for path in sorted((CONF / "experiment" / f"{experiment}").glob("*.yaml"))]
    if models and choices["model"] not in models:
        raise UserError(f"experiment={experiment} is for model={' or model='.join(models)}. Use that, or leave it out.")
    for group, network in NETWORKS.items():
        if group not in overridden or experiment is None:
            continue
        chosen: Any = OmegaConf.to_container(OmegaConf.select(cfg, network))
        if network_without("experiment", network, overrides) == chosen:
            continue
        without = network_without(group, network, overrides)
        if without == chosen or without.get("_target_") != chosen["_target_"]:
            raise UserError(
                f"{group}={choices[group]} conflicts with experiment={experiment}, which sets the network "
                f"size. Leave one out, or set single values with {network}.KEY=..."
            )


def network_without(key: str, network: str, overrides: Sequence[str]) -> Any:
    """Return the config of a network if `key` were not overridden; an empty one if the others need that override."""
    with contextlib.suppress(ConfigCompositionException):
        others = compose_config("train", [override for override in overrides if key_of(override) != key])
        return OmegaConf.to_container(OmegaConf.select(others, network))
    return {}


def check_run(cfg: DictConfig, overridden: Sequence[str]) -> None:
    """Check the top-level keys and those of the Trainer that need others, or that this project replaces.

    Raises:
        UserError: naming the key and the fix.
    """
    if not cfg.name.strip() or "/" in cfg.name or cfg.name in (".", ".."):
        raise UserError(f"name={cfg.name} must name a folder in outputs/{cfg.stage}. Elsewhere, use hydra.run.dir=...")
    if cfg.stage == "vae" and cfg.vae is not None:
        raise UserError("vae=... has no effect with model=vae, which trains one. Leave it out.")
    if cfg.trainable != "all" and cfg.init is None:
        raise UserError(f"trainable={cfg.trainable} has no effect without init=RUN. Add it, or leave trainable out.")
    if cfg.trainable == "decoder" and cfg.stage == "ldm":
        raise UserError("trainable=decoder is for model=vae. Use trainable=all, last or norms.")
    for key in overridden:
        if key.startswith("annealing."):
            raise UserError(f"{key} has no effect. Use model.kl_weight.{key.removeprefix('annealing.')}=...")
    for optimizer in ("model.optimizer", "model.adversary.optimizer"):
        for name, value in (OmegaConf.select(cfg, optimizer) or {}).items():
            if name in OPTIMIZER:
                check_value(f"{optimizer}.{name}", value, OPTIMIZER[name])
    for group in ("callbacks", "logger"):
        for name, part in cfg[group].items():
            if part is not None and not isinstance(part, DictConfig):
                raise UserError(f"{group}.{name}={part} is invalid. Use {group}.{name}=null to leave it out.")
    if cfg.logger.get("csv") is None:
        raise UserError("logger.csv is missing: the report of the run needs metrics.csv. Use logger=csv for it alone.")
    if cfg.callbacks.get("best_weights") is None:
        raise UserError("callbacks.best_weights is missing: without it a run leaves no weights to use. Restore it.")
    if "max_skipped_steps" in overridden and cfg.on_nonfinite == "fail":
        raise UserError("max_skipped_steps has no effect without on_nonfinite=skip")
    if cfg.requeue and cfg.resume.lower() != "auto":
        raise UserError("requeue=true repeats the command. It needs name=... and resume=auto")
    if cfg.requeue and "SLURM_JOB_ID" not in os.environ:
        raise UserError("requeue=true needs a SLURM job. Leave it out.")
    if cfg.resume.lower() != "false" and not names_its_run() and not is_sweep_job(cfg):
        raise UserError(f"resume={cfg.resume} finds no earlier run without name=... Add it.")
    if "median_stop" in cfg.callbacks and not is_sweep_job(cfg):
        raise UserError("pruning=median compares the jobs of a sweep. Start one with -m, or leave it out.")
    if "data.on_bad_image" in overridden and cfg.data.get("align"):
        raise UserError("data.on_bad_image has no effect with data.align=true, which leaves out unreadable photos.")
    if isinstance(cfg.trainer.strategy, str) and cfg.trainer.strategy != "auto":
        raise UserError(f"trainer.strategy={cfg.trainer.strategy} is a strategy of Lightning alone. Use strategy=...")
    time = cfg.trainer.max_time
    if time is not None and not (re.fullmatch(r"\d+(:\d+){3}", time) and re.search("[1-9]", time)):
        raise UserError(f"trainer.max_time={time} is invalid: use days:hours:minutes:seconds, e.g. 00:01:30:00")
    if time is None and cfg.trainer.max_steps == -1 and cfg.trainer.max_epochs in (None, -1):
        warn(
            "the training has no limit: the learning rate does not decay, and stage 2 saves no guide and no snapshots. "
            "Set trainer.max_steps or trainer.max_time."
        )


def is_sweep_job(cfg: DictConfig) -> bool:
    """Return whether this training is a job of a sweep, or resumes one."""
    return HydraConfig.get().mode == RunMode.MULTIRUN or (Path(cfg.run_dir).parent / "multirun.yaml").exists()


def check_optimizers(module: Any) -> None:
    """Build the optimizers of a LightningModule once, so that their errors come before the data is prepared.

    Raises:
        UserError: naming the key.
    """
    parts = {"model.optimizer": (module.make_optimizer, module.network)}
    if (adversary := getattr(module, "adversary", None)) is not None:
        parts["model.adversary.optimizer"] = (adversary.make_optimizer, adversary.discriminator)
    for key, (make, network) in parts.items():
        try:
            make((name, p) for name, p in network.named_parameters() if p.requires_grad)
        except (ValueError, TypeError) as error:
            raise UserError(f"{key}: {error}") from None


def check_model(cfg: DictConfig, overridden: Sequence[str]) -> None:
    """Check that sizes divide one another and that each overridden option has an effect.

    Args:
        cfg: the composed config of a training.
        overridden: its overridden keys.

    Raises:
        UserError: naming the key and the fix.
    """
    shape, resolution = cfg.model.autoencoder, cfg.data.resolution
    factor = downsampling(shape)
    nearest = factor * max(1, round(resolution / factor))
    if resolution % factor:
        raise UserError(
            f"data.resolution={resolution} is no multiple of the VAE's factor {factor}. Use {nearest}, or another "
            "model/autoencoder"
        )
    if cfg.stage == "ldm":
        check_denoiser(cfg, overridden, resolution // factor)
        return
    check_loss(cfg, overridden, resolution // factor)
    if resolution // factor % 2:
        warn(
            f"the denoisers of stage 2 need latents of even size, and data.resolution={resolution} gives "
            f"{resolution // factor}. Use {resolution - factor} or {resolution + factor}."
        )


def downsampling(shape: DictConfig) -> int:
    """Return the pixels per latent along each side of the VAE with this config."""
    if "multipliers" in shape:
        return shape.patch_size * 2 ** (len(shape.multipliers) - 1)
    return shape.get("downsampling", 8)  # the taesd family


def check_loss(cfg: DictConfig, overridden: Sequence[str], latent_size: int) -> None:
    """Check the options of stage 1."""
    model = cfg.model
    if model.loss.equivariance_weight and latent_size % 2:
        raise UserError(
            f"model.loss.equivariance_weight needs latents of even size, and these have {latent_size}. Set it to 0, or "
            "change data.resolution"
        )
    if model.adversary is not None:
        if cfg.trainable == "norms":
            raise UserError("model/loss=adversarial needs the gradient of the decoder's last layer. Use trainable=last")
        smallest = 3 * 2**model.adversary.discriminator.num_layers
        if cfg.data.resolution < smallest:
            raise UserError(
                f"The discriminator needs data.resolution={smallest} or more. Lower "
                "model.adversary.discriminator.num_layers"
            )
        if 0 < cfg.trainer.max_steps <= model.adversary.start_step:
            raise UserError(
                f"model.adversary.start_step={model.adversary.start_step} is never reached with "
                f"trainer.max_steps={cfg.trainer.max_steps}. Lower it, or train for longer."
            )
    for key in overridden:
        if "skip_dropout" in key and not model.autoencoder.get("skip_connections"):
            raise UserError(f"{key} has no effect without model.autoencoder.skip_connections=true")
        if key == "model.loss.perceptual_weight" and model.loss.perceptual is None:
            raise UserError(f"{key} has no effect without a perceptual loss. Use model/loss=perceptual_lite")


def check_denoiser(cfg: DictConfig, overridden: Sequence[str], latent_size: int) -> None:
    """Check the options of stage 2."""
    network, channels = cfg.model.denoiser.network, cfg.model.autoencoder.latent_channels
    arguments = inspect.signature(get_object(network["_target_"])).parameters
    if unknown := [str(key) for key in network if key not in arguments and not str(key).startswith("_")]:
        raise UserError(f"{network['_target_'].rpartition('.')[2]} has no option {', '.join(unknown)}. Leave it out.")
    if network.channels != channels:
        raise UserError(
            f"model.denoiser.network.channels={network.channels}, but the latents of this VAE have {channels} "
            "channels. Leave it out."
        )
    factor = network.patch_size if "patch_size" in network else 2 ** (len(network.multipliers) - 1)
    if latent_size % factor:
        fix = "model/denoiser=dit_s" + " model.denoiser.network.patch_size=1" * (latent_size % 2)
        raise UserError(
            f"Latents of {latent_size}x{latent_size} are no multiple of {factor}, which model.denoiser.network needs. "
            f"Use {fix}, or a VAE of another data.resolution"
        )
    beyond = [level for level in network.get("attention_levels", ()) if not 0 <= level < len(network.multipliers)]
    if beyond and "model.denoiser.network.attention_levels" in overridden:
        raise UserError(
            f"model.denoiser.network.attention_levels={beyond}: with {len(network.multipliers)} multipliers levels are "
            f"0 to {len(network.multipliers) - 1}"
        )
    if "model.loss.auxiliary_weight" in overridden and not network.get("auxiliary_depth", 0):
        raise UserError(
            "model.loss.auxiliary_weight has no effect without a second head. Set "
            "model.denoiser.network.auxiliary_depth of a DiT"
        )
    augmentation = cfg.model.augmentation
    needed = 0 if augmentation is None else get_object(augmentation["_target_"]).label_channels
    if network.label_channels != needed:  # those of labels are added later
        raise UserError(
            f"model.denoiser.network.label_channels={network.label_channels} must be {needed}, which "
            f"model/augmentation={'none' if augmentation is None else 'nonleaky'} sets. Leave it out."
        )
