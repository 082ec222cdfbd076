"""What is checked before a training starts: types, sizes that must divide, options without effect."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_type_hints

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from conf.resume import CHOICES
from conf.safety import leaves_of
from latentfaces.errors import UserError

RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    r"seed": (lambda x: 0 <= x < 2**32, "from 0 to 4,294,967,295"),
    r"num_images|batch_size|data\.num_val_images|trainer\.accumulate_grad_batches": (lambda x: x >= 1, "at least 1"),
    r"max_skipped_steps": (lambda x: x >= 1, "at least 1"),
    r"data\.num_workers|model\.kl_weight\.(start|end)": (lambda x: x >= 0, "at least 0"),
    r"model\.(adversary\.)?optimizer\.lr": (lambda x: x > 0, "above 0"),
    r"model\.skip_dropout\.(start|end)": (lambda x: 0 <= x <= 1, "from 0 to 1"),
}
"""Keys whose values nothing else looks at before training begins: what fits, in code and in words."""


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
                    problem = error.errors()[0]["msg"]
                    raise UserError(f"{here}={value} does not fit: {problem[0].lower()}{problem[1:]}") from None
            else:
                check_types(value, here)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for index, value in enumerate(node):
            check_types(value, f"{key}[{index}]")


def check_ranges(cfg: DictConfig) -> None:
    """Hold numbers against `RANGES`.

    Raises:
        UserError: naming key, value and range.
    """
    for key, value in leaves_of(cfg):
        for pattern, (fits, words) in RANGES.items():
            if isinstance(value, int | float) and re.fullmatch(pattern, key) and not fits(value):
                raise UserError(f"{key}={value} must be {words}")


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
    check_types(OmegaConf.to_container(cfg, resolve=True))
    check_ranges(cfg)
    typed = [override.split("=")[0].lstrip("+~") for override in HydraConfig.get().overrides.task]
    for key in typed:
        if key.startswith("annealing."):
            raise UserError(f"{key} has no effect here: type model.kl_weight.{key.removeprefix('annealing.')}=...")
    if cfg.stage == "vae" and cfg.vae is not None:
        raise UserError("vae=... is for model=ldm; with model=vae the VAE is what is trained")
    if cfg.resume.lower() not in CHOICES:
        raise UserError(f"resume={cfg.resume} is not one of {', '.join(CHOICES)}")
    for key in ("on_full_disk", "on_nonfinite"):
        if cfg[key] not in ("skip", "fail"):
            raise UserError(f"{key}={cfg[key]} is not one of skip, fail")
    if "max_skipped_steps" in typed and cfg.on_nonfinite == "fail":
        raise UserError("max_skipped_steps has no effect without on_nonfinite=skip")
    if cfg.requeue and cfg.resume.lower() != "auto":
        raise UserError("requeue=true starts the same command again: it needs name=... and resume=auto")
    if str(cfg.trainer.precision).startswith("16"):
        raise UserError("trainer.precision=16-mixed overflows here: take bf16-mixed, which has float32's range")
    ModelLimits(cfg, typed).check()


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
        for key in self.typed:
            if "skip_dropout" in key and not model.autoencoder.skip_connections:
                raise UserError(f"{key} has no effect without model.autoencoder.skip_connections=true")
            if key == "model.loss.perceptual_weight" and model.loss.perceptual is None:
                raise UserError(f"{key} has no effect without a perceptual loss: type model/loss=perceptual")

    def check_denoiser(self, latent_side: int) -> None:
        """The sizes are the chosen network's; its own factor must divide the latent."""
        network = self.cfg.model.denoiser.network
        known = inspect.signature(get_object(network["_target_"])).parameters
        if foreign := [str(key) for key in network if key not in known and not str(key).startswith("_")]:
            name = network["_target_"].rpartition(".")[2]
            raise UserError(
                f"a {name} has no {', '.join(foreign)}: experiment=... gives the sizes of another network; leave it "
                "out, or do without model/denoiser=..."
            )
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
