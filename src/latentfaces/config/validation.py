"""What is checked before a training starts: types, ranges, words."""

import contextlib
import inspect
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_type_hints

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from latentfaces.config.overrides import key_of, leaves_of, overridden_keys
from latentfaces.config.schema import CHOICES as RESUME
from latentfaces.config.schema import TrainConfig
from latentfaces.config.suggestions import GROUPS
from latentfaces.errors import UserError

RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    r"seed": (lambda x: 0 <= x < 2**32, "from 0 to 4,294,967,295"),
    r"num_images|(data\.)?batch_size|task\.num_photos|data\.num_val_images": (lambda x: x >= 1, "at least 1"),
    r"trainer\.accumulate_grad_batches": (lambda x: x >= 1, "at least 1"),
    r"max_skipped_steps": (lambda x: x >= 1, "at least 1"),
    r"trainer\.(max_steps|max_epochs)": (lambda x: x >= 1 or x == -1, "at least 1, or -1 for no limit"),
    r"trainer\.(val_check_interval|check_val_every_n_epoch)": (lambda x: x > 0, "above 0"),
    r"trainer\.limit_(train|val|test)_batches": (
        lambda x: x >= 1 if isinstance(x, int) else 0 < x <= 1,
        "a number of batches, as 10, or a share of them, as 0.1",
    ),
    r"data\.resolution": (lambda x: x >= 8, "at least 8"),
    r"data\.val_every": (lambda x: x >= 2, "at least 2"),
    r"trainer\.log_every_n_steps": (lambda x: x >= 1, "at least 1"),
    r"trainer\.gradient_clip_val": (lambda x: x >= 0, "at least 0"),
    r"trainer\.num_sanity_val_steps": (lambda x: x >= -1, "at least -1"),
    r"model\.kl_weight\.(start|end)": (lambda x: x >= 0, "at least 0"),
    r"model\.(adversary\.)?optimizer\.lr": (lambda x: x > 0, "above 0"),
    r"model\.skip_dropout\.(start|end)": (lambda x: 0 <= x <= 1, "from 0 to 1"),
}
"""Keys whose values nothing else looks at before training begins: what fits, in code and in words."""
CHOICES_OF_KEYS = {
    "resume": RESUME,
    "on_full_disk": ("skip", "fail"),
    "on_nonfinite": ("skip", "fail"),
    "trainer.precision": ("auto", "32-true", "32", "bf16-mixed", "bf16"),
    "trainer.deterministic": ("None", "True", "False", "warn"),
}
"""Keys of the training whose values are one of a few words."""


def check_types(node: Any, key: str = "") -> None:
    """Hold each value of each `_target_` in the config against the type that its constructor states.

    Raises:
        UserError: naming key, value and what is expected.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    if isinstance(node, Mapping):
        hints = type_hints(node["_target_"]) if "_target_" in node else {}
        for name, value in node.items():
            here = f"{key}.{name}" if key else str(name)
            if name in hints and not isinstance(value, Mapping):
                try:
                    adapter = TypeAdapter(hints[name], config=ConfigDict(arbitrary_types_allowed=True))
                    adapter.validate_python(value)
                except ValidationError as error:
                    first, *others = dict.fromkeys(problem["msg"] for problem in error.errors())
                    # One for each type of a union: there is no such word among these, nor among those.
                    fits = ", or ".join([first, *(other.removeprefix("Input should be ") for other in others)])
                    raise UserError(f"{here}={value} does not fit: {fits[0].lower()}{fits[1:]}") from None
            else:
                check_types(value, here)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for index, value in enumerate(node):
            check_types(value, f"{key}[{index}]")


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
            without = compose("train", [override for override in overrides if key_of(override) != group])
            before = OmegaConf.to_container(OmegaConf.select(without, network))
        # It changed nothing, or the recipe's sizes are another kind's.
        if before == now or before.get("_target_") != now["_target_"]:
            raise UserError(
                f"{group}={choices[group]} would not have its own sizes, for experiment={choices['experiment']} sizes "
                f"the network: leave one out, or change single values with {network}.KEY=..."
            )


def check_ranges(cfg: DictConfig) -> None:
    """Hold numbers against `RANGES`.

    Raises:
        UserError: naming key, value and range.
    """
    for key, value in leaves_of(cfg):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key}={value} must be a finite number")
        for pattern, (fits, words) in RANGES.items():
            if isinstance(value, int | float) and re.fullmatch(pattern, key) and not fits(value):
                raise UserError(f"{key}={value} must be {words}")


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
            make(network.named_parameters())
        except ValueError as error:
            raise UserError(f"{key}: {error}") from None


def type_hints(target: str) -> dict[str, Any]:
    """Types of the arguments of a class of ours, or of a class method that makes one; others state too little."""
    if not target.startswith("latentfaces."):
        return {}
    made = get_object(target)
    maker: Any = made.__self__ if inspect.ismethod(made) else made  # a class method's **options are the constructor's
    hints = get_type_hints(maker.__init__)
    return hints | get_type_hints(made) if inspect.ismethod(made) else hints


def check_training(cfg: DictConfig) -> None:
    """What no single key can know.

    Raises:
        UserError: naming the key and the remedy.
    """
    typed = overridden_keys()
    refuse_values_of_groups(HydraConfig.get().overrides.task)
    refuse_idle_choices(cfg, typed)
    check_types(OmegaConf.to_container(cfg, resolve=True))
    check_ranges(cfg)
    refuse_added(cfg, TrainConfig)
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


def refuse_added(cfg: DictConfig, schema: type) -> None:
    """Refuse what was added with a plus where nothing looks at it.

    Raises:
        UserError: naming the key.
    """
    for key in map(str, cfg):
        if key not in schema.__dataclass_fields__:  # type: ignore[attr-defined]
            raise UserError(f"there is no {key}: nothing looks at what was added with +{key}=..., leave it out")


def check_words(cfg: DictConfig, typed: Sequence[str]) -> None:
    """Refuse words that are none of the choices, and switches that do nothing here.

    Raises:
        UserError: naming the key and the remedy.
    """
    if str(cfg.trainer.precision).startswith("16"):
        raise UserError("trainer.precision=16-mixed overflows here: take bf16-mixed, which has float32's range")
    for key, words in CHOICES_OF_KEYS.items():
        value = str(OmegaConf.select(cfg, key))
        if value not in words and not (key == "resume" and value.lower() in words):
            known = (word.lower() for word in words if word != "None")
            raise UserError(f"{key}={value} is not one of {', '.join(known)}")
    if "max_skipped_steps" in typed and cfg.on_nonfinite == "fail":
        raise UserError("max_skipped_steps has no effect without on_nonfinite=skip")
    if cfg.requeue and cfg.resume.lower() != "auto":
        raise UserError("requeue=true starts the same command again: it needs name=... and resume=auto")
    if cfg.requeue and "SLURM_JOB_ID" not in os.environ:
        raise UserError("requeue=true is for jobs of SLURM, and this is none: leave it out")
    if cfg.trainer.sync_batchnorm:
        raise UserError("trainer.sync_batchnorm has no effect: no network here normalises over a batch; leave it out")
    for key in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
        if not isinstance(cfg.trainer[key], int | float | None):
            raise UserError(f"trainer.{key}={cfg.trainer[key]} must be a number of batches, as 10, or a share, as 0.1")
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
