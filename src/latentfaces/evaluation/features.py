"""What metrics of faces look through: networks that turn a picture into numbers."""

import warnings
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from latentfaces.autoencoder import VAE
from latentfaces.data.ffhq import to_float
from latentfaces.errors import UserError
from latentfaces.nn import weights_hash

INCEPTION = "inception-v3-compat"


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
    """What a network gives.

    Args:
        network: images (n, 3, H, W) uint8 -> (n, d).
        device: where to compute.
    """

    def __init__(self, network: Any, device: torch.device | None) -> None:
        self.device = device or torch.device("cpu")
        self.network = network.eval().to(self.device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images.to(self.device))
        return features.flatten(1).float().cpu()


class InceptionFeatures(NetworkFeatures):
    """The 2,048 numbers of FID, by torch-fidelity's port of the original network, which resizes by itself.

    Args:
        weights: its file, where there is no network to fetch it from.
        device: where to compute.

    Raises:
        UserError: torch-fidelity or the weights are missing.
    """

    key = "inception"

    def __init__(self, weights: str | None = None, device: torch.device | None = None) -> None:
        try:
            from torchmetrics.image.fid import NoTrainInceptionV3

            network: Any = NoTrainInceptionV3(INCEPTION, ["2048"], weights)
        except ModuleNotFoundError as error:
            raise UserError(
                "task.features=inception needs torch-fidelity: type `pip install torch-fidelity`"
            ) from error
        except Exception as error:  # a download fails in as many ways as there are networks
            raise UserError(
                f"the Inception weights cannot be had ({type(error).__name__}): fetch them elsewhere and give "
                "task.weights=FILE, or take task.features=encoder"
            ) from error
        super().__init__(network, device)


class ScriptFeatures(NetworkFeatures):
    """Any network saved by `torch.jit.save` that takes images (n, 3, H, W) uint8 and gives (n, d).

    Args:
        path: the file.
        device: where to compute.

    Raises:
        UserError: it cannot be loaded.
    """

    def __init__(self, path: str | Path, device: torch.device | None = None) -> None:
        self.path = Path(path)
        try:
            with warnings.catch_warnings():
                # Deprecated for torch.export, whose load unpickles what it finds: a file could then run anything.
                warnings.simplefilter("ignore", FutureWarning)
                network = torch.jit.load(str(path), map_location=device)
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(
                f"task.features={path} is neither encoder nor inception, nor a file of torch.jit.save"
            ) from error
        super().__init__(network, device)

    @property
    def key(self) -> str:
        return f"{self.path.stem}-{weights_hash(self.network)}"


def features_by_name(name: str, vae: VAE, weights: str | None = None) -> Features:
    """The features that a person names.

    Args:
        name: "encoder", "inception", or the file of a network.
        vae: of the run, for "encoder".
        weights: file of weights, for "inception".

    Raises:
        UserError: they cannot be had, or `weights` has no effect.
    """
    device = vae.latent_mean.device
    if name == "inception":
        return InceptionFeatures(weights, device)
    if weights is not None:
        raise UserError(f"task.weights={weights} has no effect with task.features={name}: it is for inception")
    return EncoderFeatures(vae) if name == "encoder" else ScriptFeatures(name, device)
