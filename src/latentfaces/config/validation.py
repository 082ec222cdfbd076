"""What is checked before a training starts: types, ranges, words."""

import contextlib
import inspect
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from latentfaces.config.compose import compose_config
from latentfaces.config.overrides import key_of, leaves_of, overridden_keys
from latentfaces.config.schema import TrainConfig
from latentfaces.config.suggestions import GROUPS
from latentfaces.errors import UserError


def check_types(node: Any, key: str = "") -> None:
    """Compare each value of each `_target_` in the config with the type of the constructor's argument.

    Raises:
        UserError: naming key, value and what is expected.
    """
    if isinstance(node, Mapping):
        hints = type_hints(node["_target_"]) if "_target_" in node else {}
        for name, value in node.items():
            path = f"{key}.{name}" if key else str(name)
            if name in hints and not isinstance(value, Mapping):
                check_value(path, value, hints[name])
            else:
                check_types(value, path)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for index, value in enumerate(node):
            check_types(value, f"{key}[{index}]")


def check_value(key: str, value: Any, valid: Any) -> None:
    """Check one value against a pydantic type.

    Raises:
        UserError: naming key, value and what is expected.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    try:
        TypeAdapter(valid, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        first, *others = dict.fromkeys(problem["msg"] for problem in error.errors())
        expected = ", or ".join([first, *(other.removeprefix("Input should be ") for other in others)])
        raise UserError(f"{key}={value} is invalid: {expected[0].lower()}{expected[1:]}.") from None


def check_keys(cfg: DictConfig, schema: type) -> None:
    """Check the top-level and `trainer.*` keys against the valid values that the schema states, and for NaN.

    Raises:
        UserError: naming key, value and what is expected; or a key that was added with a plus.
    """
    known = schema.__dataclass_fields__  # type: ignore[attr-defined]
    for name in map(str, cfg):
        if name not in known and name != "hydra":
            raise UserError(f"Unknown key {name}.")
    for name, field in known.items():
        if is_dataclass(field.default_factory):
            check_nested(cfg[name], field.default_factory, name)
        elif "valid" in field.metadata:
            check_value(name, cfg[name], field.metadata["valid"])
    for key, value in leaves_of(cfg):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key}={value} is invalid: a number must be finite.")


def check_nested(cfg: DictConfig, schema: Any, key: str) -> None:
    """Check the keys of a nested part of the schema."""
    for name, field in schema.__dataclass_fields__.items():
        if "valid" in field.metadata:
            check_value(f"{key}.{name}", cfg[name], field.metadata["valid"])


NETWORKS = {"model/autoencoder": "model.autoencoder", "model/denoiser": "model.denoiser.network"}
"""The groups of networks, and the keys whose values they are."""


def refuse_idle_choices(cfg: DictConfig, typed: Sequence[str]) -> None:
    """A recipe sizes its own network, and counts more than a network that was chosen beside it.

    Raises:
        UserError: naming both.
    """
    choices, overrides = HydraConfig.get().runtime.choices, HydraConfig.get().overrides.task
    for group, network in NETWORKS.items():
        if group not in typed or choices.get("experiment") is None:
            continue
        before: Any = {}
        now: Any = OmegaConf.to_container(OmegaConf.select(cfg, network))
        with contextlib.suppress(ConfigCompositionException):  # what else was typed is for the other kind of network
            without = compose_config("train", [override for override in overrides if key_of(override) != group])
            before = OmegaConf.to_container(OmegaConf.select(without, network))
        # It changed nothing, or the recipe's sizes are another kind's.
        if before == now or before.get("_target_") != now["_target_"]:
            raise UserError(
                f"{group}={choices[group]} would not have its own sizes, for experiment={choices['experiment']} sizes "
                f"the network: leave one out, or change single values with {network}.KEY=..."
            )


def refuse_values_of_groups(overrides: Sequence[str]) -> None:
    """A group is chosen with slashes; with dots its choice would be taken for a value.

    Raises:
        UserError: naming key and remedy.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        group = key.replace(".", "/")
        if "." in key and group in GROUPS and re.fullmatch(r"\w+", value) and value != "null":
            raise UserError(f"{key} is a group of choices: type {group}={value}")


def check_optimizers(module: Any) -> None:
    """Build the optimisers once and throw them away: what they refuse would else be told when training begins.

    Args:
        module: of either stage.

    Raises:
        UserError: naming the key.
    """
    parts = {"model.optimizer": (module.make_optimizer, module.network)}
    if (adversary := getattr(module, "adversary", None)) is not None:
        parts["model.adversary.optimizer"] = (adversary.make_optimizer, adversary.discriminator)
    for key, (make, network) in parts.items():
        try:
            optimizer = make(network.named_parameters())
        except ValueError as error:
            raise UserError(f"{key}: {error}") from None
        if optimizer.param_groups[0]["lr"] <= 0:
            raise UserError(f"{key}.lr={optimizer.param_groups[0]['lr']} must be above 0")


def type_hints(target: str) -> dict[str, Any]:
    """Types of the arguments of a class of ours, or of a class method that makes one; others state too little."""
    if not target.startswith("latentfaces."):
        return {}
    made = get_object(target)
    maker: Any = made.__self__ if inspect.ismethod(made) else made  # a class method's **options are the constructor's
    hints = get_type_hints(maker.__init__, include_extras=True)
    return hints | get_type_hints(made, include_extras=True) if inspect.ismethod(made) else hints


def check_training(cfg: DictConfig) -> None:
    """Check combinations of keys.

    Raises:
        UserError: naming the key and the remedy.
    """
    typed = overridden_keys()
    refuse_values_of_groups(HydraConfig.get().overrides.task)
    refuse_idle_choices(cfg, typed)
    check_types(OmegaConf.to_container(cfg, resolve=True))
    check_keys(cfg, TrainConfig)
    for key in typed:
        if key.startswith("annealing."):
            raise UserError(f"{key} has no effect here: type model.kl_weight.{key.removeprefix('annealing.')}=...")
    if not cfg.name.strip() or "/" in cfg.name or cfg.name in (".", ".."):
        raise UserError(f"name={cfg.name} must name a folder in outputs/{cfg.stage}; for others, hydra.run.dir=FOLDER")
    if cfg.stage == "vae" and cfg.vae is not None:
        raise UserError("vae=... is for model=ldm; with model=vae the VAE is what is trained")
    check_words(cfg, typed)
    check_length(cfg.trainer)
    ModelLimits(cfg, typed).check()


def check_words(cfg: DictConfig, typed: Sequence[str]) -> None:
    """Refuse words that are none of the choices, and switches that do nothing here.

    Raises:
        UserError: naming the key and the remedy.
    """
    if "max_skipped_steps" in typed and cfg.on_nonfinite == "fail":
        raise UserError("max_skipped_steps has no effect without on_nonfinite=skip")
    if cfg.requeue and cfg.resume.lower() != "auto":
        raise UserError("requeue=true starts the same command again: it needs name=... and resume=auto")
    if cfg.requeue and "SLURM_JOB_ID" not in os.environ:
        raise UserError("requeue=true is for jobs of SLURM, and this is none: leave it out")
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN or (Path(cfg.run_dir).parent / "multirun.yaml").exists()
    if "median_stop" in (cfg.callbacks or {}) and not in_sweep:
        raise UserError("pruning=median compares the jobs of a sweep. Start one with -m, or leave it out.")
    if cfg.trainer.sync_batchnorm:
        raise UserError("trainer.sync_batchnorm has no effect: no network here normalises over a batch; leave it out")
    if cfg.trainer.overfit_batches:
        raise UserError(
            "trainer.overfit_batches would not keep to the same batches here: give a small folder with data.root=..., "
            "or data=synthetic data.num_images=..."
        )
    if cfg.trainer.use_distributed_sampler:
        raise UserError("trainer.use_distributed_sampler must be false: the data module shares batches out itself")


def check_length(trainer: DictConfig) -> None:
    """Refuse a training that would have no step.

    Raises:
        UserError: naming the key.
    """
    if trainer.fast_dev_run:
        raise UserError("trainer.fast_dev_run leaves no run: type trainer.max_steps=2 trainer.val_check_interval=1")
    time = trainer.max_time
    if time is not None and not (re.fullmatch(r"\d+(:\d+){3}", time) and re.search("[1-9]", time)):
        raise UserError(f"trainer.max_time={time} must be days:hours:minutes:seconds, as 00:01:30:00, and not nothing")


class ModelLimits:
    """Sizes that must divide one another, and options that need one another.

    Args:
        cfg: the composed config of a training.
        typed: the keys that the person typed.
    """

    def __init__(self, cfg: DictConfig, typed: Sequence[str]) -> None:
        self.cfg = cfg
        shape = cfg.model.autoencoder
        self.typed = typed
        self.downsampling = shape.patch_size * 2 ** (len(shape.multipliers) - 1)

    def check(self) -> None:
        """Raise the first that does not fit."""
        resolution = self.cfg.data.resolution
        if resolution % self.downsampling:
            nearest = self.downsampling * max(1, round(resolution / self.downsampling))
            raise UserError(
                f"data.resolution={resolution} is not a multiple of the VAE's factor {self.downsampling}: "
                f"take {nearest}, or another model/autoencoder"
            )
        if self.cfg.stage == "vae":
            self.check_loss(resolution // self.downsampling)
        else:
            self.check_denoiser(resolution // self.downsampling)

    def check_loss(self, latent_side: int) -> None:
        """Options of the loss that the chosen parts cannot use."""
        model = self.cfg.model
        if model.loss.equivariance_weight and latent_side % 2:
            raise UserError(
                f"model.loss.equivariance_weight halves latents, and {latent_side}x{latent_side} is odd: "
                "set it to 0, or choose another data.resolution"
            )
        if model.adversary is not None:
            smallest = 3 * 2**model.adversary.discriminator.num_layers
            if self.cfg.data.resolution < smallest:
                raise UserError(
                    f"the discriminator needs data.resolution={smallest} or more: lower "
                    "model.adversary.discriminator.num_layers"
                )
        self.check_idle()

    def check_idle(self) -> None:
        """Keys that were typed and that the chosen parts do not look at."""
        model = self.cfg.model
        for key in self.typed:
            if "skip_dropout" in key and not model.autoencoder.skip_connections:
                raise UserError(f"{key} has no effect without model.autoencoder.skip_connections=true")
            schedule, _, part = key.rpartition(".")
            annealed = schedule in ("model.kl_weight", "model.skip_dropout") and part in ("start", "num_steps")
            if annealed and OmegaConf.select(self.cfg, schedule)._target_ == "latentfaces.annealing.Constant":
                raise UserError(f"{key} has no effect on a constant: leave it out, or choose another annealing")
            if key == "model.loss.perceptual_weight" and model.loss.perceptual is None:
                raise UserError(f"{key} has no effect without a perceptual loss: type model/loss=perceptual")

    def check_denoiser(self, latent_side: int) -> None:
        """The sizes are the chosen network's; its own factor must divide the latent."""
        network = self.cfg.model.denoiser.network
        known = inspect.signature(get_object(network["_target_"])).parameters
        if foreign := [str(key) for key in network if key not in known and not str(key).startswith("_")]:
            raise UserError(f"a {network['_target_'].rpartition('.')[2]} has no {', '.join(foreign)}: leave it out")
        latent_channels = self.cfg.model.autoencoder.latent_channels
        if network.channels != latent_channels:
            raise UserError(
                f"model.denoiser.network.channels={network.channels}, but the latents of this VAE have "
                f"{latent_channels} channels: leave it out"
            )
        factor = network.patch_size if "patch_size" in network else 2 ** (len(network.multipliers) - 1)
        if latent_side % factor:
            raise UserError(
                f"latents of {latent_side}x{latent_side} do not divide by {factor}, as model.denoiser.network needs: "
                "choose another model/denoiser, or another data.resolution for the VAE"
            )
        if "model.loss.auxiliary_weight" in self.typed and not network.get("auxiliary_depth", 0):
            raise UserError(
                "model.loss.auxiliary_weight has no effect without a second head: set "
                "model.denoiser.network.auxiliary_depth, of a DiT"
            )
        if (network.label_channels > 0) != (self.cfg.model.augmentation is not None):
            raise UserError(
                "model.denoiser.network.label_channels and model.augmentation go together: "
                "type model/augmentation=nonleaky or =none"
            )
