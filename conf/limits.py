"""Sizes that must divide one another, and options that the chosen parts do not look at."""

import inspect
from collections.abc import Sequence

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from latentfaces.errors import UserError


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
