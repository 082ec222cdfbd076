"""VAEs of other projects behind the interface of `VAE`.

`vae=taesd:FOLDER` needs no other package. diffusers is imported only in this file, and only when it is needed.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentfaces.autoencoder.posterior import DiagonalGaussian
from latentfaces.autoencoder.vae import VAE, Skips
from latentfaces.errors import UserError
from latentfaces.nn import weights_hash

ZERO_VARIANCE = -30.0
"""Log-variance of an autoencoder without a posterior: the lowest of `DiagonalGaussian`."""


class PretrainedVAE(VAE):
    """VAE whose `latent_mean` and `latent_std` are those of the user's images, not those of its training.

    Args:
        latent_channels: channels of the latents.
        downsampling: pixels per latent along each side.
        source: where the weights are from.
        licence: licence of the weights, if known.
    """

    skip_connections = False

    def __init__(self, latent_channels: int, downsampling: int, source: str, licence: str | None) -> None:
        nn.Module.__init__(self)  # without the networks of VAE
        self.latent_channels, self.downsampling = latent_channels, downsampling
        self.source, self.licence = source, licence
        self.register_buffer("latent_mean", torch.zeros(latent_channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(latent_channels, 1, 1))

    def posterior(self, images: Tensor) -> DiagonalGaussian:
        """Encode images (b, 3, R, R) in [-1, 1], whose size fits."""
        raise NotImplementedError

    def encode(self, images: Tensor) -> DiagonalGaussian:
        self.check_size(images)
        return self.posterior(images)

    def encode_with_skips(self, images: Tensor) -> tuple[DiagonalGaussian, Skips]:
        """Encode images to the posterior and the inputs of the strided convolutions, for `EncoderFeatures`."""
        maps: Skips = []
        strided = [layer for layer in self.encoder.modules() if isinstance(layer, nn.Conv2d) and layer.stride[0] == 2]
        hooks = [layer.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0])) for layer in strided]
        try:
            return self.encode(images), maps
        finally:
            for hook in hooks:
                hook.remove()

    @property
    def cache_key(self) -> str:
        return weights_hash(nn.ModuleList(self.children()))  # without the statistics, which the cache gives

    @property
    def measured(self) -> bool:
        """Whether `measure` has been called, also before the weights were saved."""
        return bool(self.latent_mean.any())

    def measure(self, batches: Iterable[Tensor]) -> None:
        """Set `latent_mean` and `latent_std` to those of samples of posteriors.

        Args:
            batches: means and stds of the posterior, (b, 2, c, h, w) each.
        """
        sums = torch.zeros(3, self.latent_channels, dtype=torch.float64)
        for moments in batches:
            mean, std = moments.double().unbind(1)
            sums += torch.stack([x.sum((0, 2, 3)) for x in (torch.ones_like(mean), mean, mean**2 + std**2)]).cpu()
        count, first, second = sums.view(3, -1, 1, 1)
        self.latent_mean.copy_(first / count)
        variance = second / count - (first / count) ** 2
        self.latent_std.copy_(variance.clamp(min=1e-10).sqrt())  # a constant channel is normalized to 0


class Clamp(nn.Module):
    """Keep latents within -3 and 3."""

    def forward(self, latents: Tensor) -> Tensor:
        return 3 * torch.tanh(latents / 3)


class Block(nn.Module):
    """Residual block of three convolutions. `pool` adds a branch of wider 1 x 1 convolutions with a group norm."""

    def __init__(self, pool: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv(), nn.ReLU(), conv(), nn.ReLU(), conv())
        if pool:
            wide, narrow = nn.Conv2d(64, 256, 1, bias=False), nn.Conv2d(256, 64, 1, bias=False)
            self.pool = nn.Sequential(wide, nn.GroupNorm(4, 256), nn.ReLU(), narrow)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "pool"):
            x = x + self.pool(x)
        return torch.relu(x + self.conv(x))


def conv(in_channels: int = 64, out_channels: int = 64, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """Build a 3 x 3 convolution."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=bias)


class TAESD(PretrainedVAE):
    """Tiny autoencoder of the taesd family (https://github.com/madebyollin/taesd): R -> R / 8, zero variance.

    Args:
        latent_channels: 4 for the latents of SD and SDXL, 16 for SD3 and FLUX.1, 32 for FLUX.2.
        pooled: whether the blocks at the lowest resolution have the second branch, as those of TAEF2.
        source, licence: see `PretrainedVAE`.
    """

    def __init__(
        self, latent_channels: int = 4, pooled: bool = False, source: str = "", licence: str | None = None
    ) -> None:
        super().__init__(latent_channels, 8, source, licence)
        down: list[nn.Module] = [conv(3), Block()]
        up: list[nn.Module] = [Clamp(), conv(latent_channels), nn.ReLU()]
        for number in range(3):
            down += [conv(stride=2, bias=False), *(Block(pooled and number == 2) for _ in range(3))]
            up += [*(Block(pooled and number == 0) for _ in range(3)), nn.Upsample(scale_factor=2), conv(bias=False)]
        self.encoder = nn.Sequential(*down, conv(out_channels=latent_channels))  # type: ignore[assignment]
        self.decoder = nn.Sequential(*up, Block(), conv(out_channels=3))  # type: ignore[assignment]

    def posterior(self, images: Tensor) -> DiagonalGaussian:
        latents = self.encoder(images / 2 + 0.5).float()
        return DiagonalGaussian(latents, torch.full_like(latents, ZERO_VARIANCE))

    def decode(self, latents: Tensor, skips: Skips | None = None) -> Tensor:
        return 2 * self.decoder(latents).float() - 1


def load_taesd(place: str) -> tuple[dict[str, Any], PretrainedVAE]:
    """Load FOLDER, or FOLDER#NAME where it has several, with `NAME_encoder.pth` and `NAME_decoder.pth`."""
    path, _, name = place.partition("#")
    folder = Path(path).expanduser()
    names = sorted(file.name.removesuffix("_encoder.pth") for file in folder.glob(f"{name or '*'}_encoder.pth"))
    if len(names) != 1:
        found = f"of {', '.join(names)}: add #NAME" if names else "none: taesd:FOLDER needs NAME_encoder.pth there"
        raise UserError(f"{path} must have one VAE of the taesd family, but has {found}.")
    halves: dict[str, Tensor] = {}
    for half in ("encoder", "decoder"):
        state = read_weights(folder / f"{names[0]}_{half}.pth")
        halves |= {f"{half}.{key}": value for key, value in state.items()}
    last = halves.get("decoder.1.weight", torch.empty(0))
    arguments: dict[str, Any] = {
        "latent_channels": last.shape[1] if last.ndim == 4 else 4,
        "pooled": any(".pool." in key for key in halves),
        "source": f"taesd:{place}",
        "licence": "MIT",
    }
    vae = TAESD(**arguments)
    fill(vae, halves, f"{folder}/{names[0]}_*.pth", "a VAE of the taesd family with R / 8 latents")
    return {"_target_": "latentfaces.autoencoder.TAESD", **arguments}, vae


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict that cannot run code.

    Raises:
        UserError: the file is missing, damaged, or something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise TypeError("not a state dict")
    except FileNotFoundError:
        raise UserError(f"{path} is missing. Download it next to the other files.") from None
    except Exception as error:
        raise UserError(
            f"{path} is damaged or not a file of weights ({type(error).__name__}). Download it again."
        ) from error
    return state


def fill(vae: PretrainedVAE, state: dict[str, Tensor], name: str, expected: str) -> None:
    """Load weights, all but the statistics.

    Raises:
        UserError: they are of another network.
    """
    statistics = {key: vae.get_buffer(key) for key in ("latent_mean", "latent_std")}
    try:
        vae.load_state_dict({key: value.float() for key, value in state.items()} | statistics)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise UserError(f"{name} is not {expected} ({first[:200]}). Choose another vae=...") from None


LOADERS: dict[str, Callable[[str], tuple[dict[str, Any], PretrainedVAE]]] = {"taesd": load_taesd}


def is_pretrained(name: str) -> bool:
    """Return whether `vae=<name>` is not a run."""
    return name.partition(":")[0] in LOADERS


def load_pretrained(name: str) -> tuple[dict[str, Any], PretrainedVAE]:
    """Load the VAE of `vae=<name>`.

    Returns:
        The config that builds its network, and the VAE.

    Raises:
        UserError: there is none, or it is damaged.
    """
    kind, _, place = name.partition(":")
    config, vae = LOADERS[kind](place)
    return config, vae.eval().requires_grad_(False)
