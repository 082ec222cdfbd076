"""A VAE that loses nothing, data whose best denoiser has a closed form, and a pack of drawn faces."""

import io
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from latentfaces.autoencoder import VAE, DiagonalGaussian
from latentfaces.data.images import to_float
from latentfaces.data.pack import FORMAT, Pack
from latentfaces.data.synthetic import draw_face
from latentfaces.diffusion import EDM, Denoiser, NoiseSchedule, RectifiedFlow, VPCosine, VPLinear
from latentfaces.diffusion.schedule import per_sample
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks import PictureFolder

CPU = torch.device("cpu")
SIDE = 16
SCHEDULES = [RectifiedFlow(), VPCosine(), VPLinear(), EDM()]


class PixelVAE(nn.Module):
    """Latents are the pixels of each 2x2 block, as twelve channels."""

    latent_channels, downsampling, skip_connections = 12, 2, False

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("latent_mean", torch.full((12, 1, 1), mean))
        self.register_buffer("latent_std", torch.full((12, 1, 1), std))

    def encode(self, images: Tensor) -> DiagonalGaussian:
        return self.encode_with_skips(images)[0]

    def encode_with_skips(self, images: Tensor) -> tuple[DiagonalGaussian, list[Tensor]]:
        mean = F.pixel_unshuffle(images, 2)
        return DiagonalGaussian(mean, torch.full_like(mean, -30.0)), []

    encode_with_features = encode_with_skips

    def decode(self, latents: Tensor, skips: list[Tensor] | None = None) -> Tensor:
        return F.pixel_shuffle(latents, 2)

    normalize, denormalize, cache_key = VAE.normalize, VAE.denormalize, VAE.cache_key


class GaussianDenoiser(Denoiser):
    """The best denoiser of data N(mean, covariance) over all values of latents (c, h, w), by the covariance's axes.

    Args:
        mean: (c, h, w).
        axes: (values, values), orthonormal.
        variances: (values,) along the axes.
    """

    def __init__(self, mean: Tensor, axes: Tensor, variances: Tensor) -> None:
        super().__init__(nn.Identity(), RectifiedFlow(), "v")
        self.mean, self.axes, self.variances = mean.flatten(), axes, variances

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        alpha, sigma = self.schedule.alpha(t)[:, None], self.schedule.sigma(t)[:, None]
        away = x_t.flatten(1) - alpha * self.mean
        along = away @ self.axes * (alpha * self.variances / (alpha**2 * self.variances + sigma**2))
        x0 = (self.mean + along @ self.axes.T).view_as(x_t)
        return self.target_of(x0, (x_t - per_sample(alpha[:, 0]) * x0) / per_sample(sigma[:, 0]), t)


class White(Denoiser):
    """The best denoiser of data N(0, std^2), each value on its own."""

    def __init__(self, std: float, schedule: NoiseSchedule | None = None) -> None:
        super().__init__(nn.Identity(), schedule or RectifiedFlow(), "v")
        self.std = std

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        alpha, sigma = per_sample(self.schedule.alpha(t)), per_sample(self.schedule.sigma(t))
        x0 = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2) * x_t
        return self.target_of(x0, (x_t - alpha * x0) / sigma, t)


def drawn(number: int, first: int = 0) -> np.ndarray:
    """Drawn faces (number, 3, SIDE, SIDE) uint8."""
    return np.stack([draw_face(seed, SIDE).transpose(2, 0, 1) for seed in range(first, first + number)])


def write_pack(folder: Path, images: np.ndarray, val_every: int) -> Pack:
    """A pack of these images, every `val_every`-th held out."""
    folder.mkdir(parents=True)
    np.save(folder / "images.npy", images)
    split = {"val": list(range(0, len(images), val_every))}
    names = [f"{index}.png" for index in range(len(images))]
    manifest = {"format": FORMAT, "num_images": len(images), "names": names, "sha256": "0" * 32, "split": split}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Pack(folder, manifest)


def fitted_pipeline(images: np.ndarray) -> FacePipeline:
    """A pipeline whose data are Gaussian, with the mean and covariance of these images."""
    latents = F.pixel_unshuffle(to_float(torch.from_numpy(images)), 2)
    vae = PixelVAE(float(latents.mean()), float(latents.std()))
    normalised = vae.normalize(latents).flatten(1)
    mean = normalised.mean(0)
    axes, singular, _ = torch.linalg.svd((normalised - mean).T)
    variances = F.pad(singular.square() / len(images), (0, axes.shape[1] - len(singular))) + 0.02  # new faces vary more
    return FacePipeline(vae, GaussianDenoiser(mean.view(12, 8, 8), axes, variances), SIDE, CPU)


def white_pipeline(std: float = 0.5, schedule: NoiseSchedule | None = None) -> FacePipeline:
    """A pipeline whose latents are independent, with standard deviation `std`."""
    return FacePipeline(PixelVAE(), White(std, schedule), SIDE, CPU)


def skip_vae() -> VAE:
    """An untrained VAE with skip connections that matter."""
    torch.manual_seed(0)
    vae = VAE(2, 8, (1, 2), 1, attention=False, skip_connections=True)
    for layer in vae.decoder.skips:
        nn.init.normal_(layer.weight, std=0.5)
    return vae.eval().requires_grad_(False)


def save_photo(pixels: np.ndarray, path: Path) -> str:
    """Write (3, H, W) uint8 as PNG; its path."""
    Image.fromarray(pixels.transpose(1, 2, 0)).save(path)
    return str(path)


def folder_for(path: Path) -> PictureFolder:
    return PictureFolder(path, {"run": "test"})


def read(path: Path) -> np.ndarray:
    """(3, H, W) of a picture's file, in integers that can be subtracted."""
    return np.asarray(Image.open(io.BytesIO(path.read_bytes()))).transpose(2, 0, 1).astype(int)


def singles(folder: Path) -> np.ndarray:
    """All numbered pictures, (n, 3, R, R)."""
    return np.stack([read(path) for path in sorted(folder.glob("0*.png"))])
