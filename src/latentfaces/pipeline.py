"""One trained run as an object: photos to latents, noise to faces."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from latentfaces.autoencoder import VAE
from latentfaces.data.ffhq import to_uint8
from latentfaces.diffusion import Denoiser, Sampler
from latentfaces.errors import UserError
from latentfaces.nn import weights_hash
from latentfaces.run import Run, open_run


def best_device() -> torch.device:
    """The fastest kind of device that is there."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


class FacePipeline:
    """A VAE and, for new faces, a denoiser in its latents.

    Args:
        vae: the trained VAE.
        denoiser: the trained denoiser; None for a run of stage 1, which can only reconstruct.
        resolution: height and width of the pictures, in pixels.
        device: where to compute; the best there is by default.
        bfloat16: compute in bfloat16 where that is safe: faster, and pictures then depend a little on the batch size.
    """

    def __init__(
        self,
        vae: VAE,
        denoiser: Denoiser | None,
        resolution: int,
        device: torch.device | None = None,
        bfloat16: bool = False,
    ) -> None:
        self.device, self.bfloat16 = device or best_device(), bfloat16
        self.vae = vae.to(self.device)
        self.denoiser = denoiser.to(self.device) if denoiser is not None else None
        self.resolution = resolution

    @classmethod
    def load(cls, run: Run | str | Path, device: torch.device | None = None, bfloat16: bool = False) -> "FacePipeline":
        """From a run's folder, e.g. "outputs/ldm/faces": its best weights; the rest as for the class."""
        run = run if isinstance(run, Run) else open_run(run)
        vae = run.module("autoencoder", "best_vae")
        denoiser = run.module("denoiser", "best_denoiser") if run.stage == "ldm" else None
        return cls(vae, denoiser, run.config["data"]["resolution"], device, bfloat16)

    @property
    def weights(self) -> str:
        """Names the weights: the VAE's hash and, where there is one, the denoiser's."""
        return "-".join(weights_hash(part) for part in (self.vae, self.denoiser) if part is not None)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of a latent."""
        side = self.resolution // self.vae.downsampling
        return self.vae.latent_channels, side, side

    def noise(self, seeds: list[tuple[int, int]]) -> Tensor:
        """Start noise (n, c, h, w) of the faces named by (seed, number): each depends on its own name alone."""
        draws = [
            torch.randn(self.latent_shape, generator=torch.Generator().manual_seed(seed * 1_000_003 + number))
            for seed, number in seeds
        ]
        return torch.stack(draws).to(self.device)

    def autocast(self) -> torch.autocast:
        """bfloat16 within this context, where asked for."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (n, 3, R, R) in [-1, 1] -> normalised latents (n, c, h, w), the posterior's mode."""
        with self.autocast():
            return self.vae.normalize(self.vae.encode(images.to(self.device)).mode())

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents (n, c, h, w) -> images (n, 3, R, R) in [-1, 1]."""
        with self.autocast():
            return self.vae.decode(self.vae.denormalize(latents))

    @torch.no_grad()
    def reconstruct(self, images: Tensor, skips: float = 0.0) -> Tensor:
        """Images (n, 3, R, R) in [-1, 1] -> what the VAE makes of them, likewise.

        Args:
            images: the photos.
            skips: strength, in [0, 1], of the VAE's skip connections: at 0 the latents say everything.
        """
        with self.autocast():
            posterior, features = self.vae.encode_with_skips(images.to(self.device))
            return self.vae.decode(posterior.mode(), [skips * feature for feature in features] if skips else None)

    def faces_from_noise(self, noise: Tensor, sampler: Sampler, batch_size: int = 64) -> Iterator[Tensor]:
        """Noise (n, c, h, w) -> batches of faces (b, 3, R, R) uint8 on the CPU."""
        if self.denoiser is None:
            raise UserError(
                "this is a run of stage 1, and noise from its prior decodes to noise by design: "
                "train stage 2 with `python train.py model=ldm`, then sample that run"
            )
        for start in noise.split(batch_size):
            with self.autocast():
                latents = sampler(self.denoiser, start)
            yield to_uint8(self.decode(latents)).cpu()

    def generate(self, num_images: int, seed: int, sampler: Sampler, batch_size: int = 64) -> Tensor:
        """New faces (num_images, 3, R, R) uint8: face i depends on (seed, i) alone, not on how many or how batched."""
        noise = self.noise([(seed, number) for number in range(num_images)])
        return torch.cat(list(self.faces_from_noise(noise, sampler, batch_size)))
