"""Fitness of latents for a diffusion model, measured on held-out images."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from latentfaces.autoencoder import DiagonalGaussian

ACTIVE_VARIANCE = 0.01
"""A latent value is active if its mean varies more than this over images (Burda et al. 2016, section 5)."""
COLLAPSED_FRACTION, COLLAPSED_NATS = 0.05, 0.05
"""A channel has collapsed if its fraction of active values and its KL per value are both below these."""
NOISE_FRACTION = 0.5
"""A channel is mostly noise if the posterior's noise is more than this fraction of its variance."""
LARGE_STD = 50.0
"""Largest healthy std of a channel. The autoencoders of Rombach et al. 2022 have about 5."""
HIGH_FREQUENCY_FRACTION = 0.5
"""Largest healthy fraction of energy in high frequencies. White noise has 0.6 to 0.75, faces of 64 pixels 0.02."""
FINE_DETAIL = 0.1
"""Smallest healthy high-frequency energy of reconstructions, relative to that of the images."""

HEALTHY = "latents are healthy; sampling this VAE's prior gives noise by design: train model=ldm for new faces"


class LatentHealth:
    """Statistics of posteriors and reconstructions, batch by batch.

    Args:
        channels: channels of a latent.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.reset()

    def reset(self) -> None:
        """Clear all sums."""
        self.sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, posterior: DiagonalGaussian, images: Tensor, reconstructions: Tensor) -> None:
        """Add a batch: posterior over (b, c, h, w), images and reconstructions (b, 3, H, W)."""
        # In float32 the variance of large means is rounding error. On the CPU, as MPS lacks float64.
        exact = DiagonalGaussian(posterior.mean.cpu().double(), posterior.logvar.cpu().double())
        mean, variance = exact.mean, exact.logvar.exp()
        batch = {
            "count": torch.tensor(float(len(mean))),
            "mean": mean.sum(0),
            "mean_squared": mean.square().sum(0),
            "variance": variance.sum(0),
            "kl": exact.kl_of_values().sum((0, 2, 3)),
            "latent_energy": band_energy(mean - mean.mean((2, 3), keepdim=True)),
            "image_energy": band_energy(images),
            "reconstruction_energy": band_energy(reconstructions),
            "error_energy": band_energy(reconstructions.float() - images),
        }
        for name, value in batch.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), dtype=torch.float64)) + value.double()

    def reduce(self, device: torch.device, reduce_over_ranks: Callable[..., Tensor]) -> None:
        """Sum over all ranks."""
        for name, value in self.sums.items():
            value = value.float() if device.type == "mps" else value
            self.sums[name] = reduce_over_ranks(value.to(device), reduce_op="sum").cpu().double()

    def mean_and_std(self) -> tuple[Tensor, Tensor]:
        """Return mean and std per channel of posterior samples, (c, 1, 1) float32, from E[x^2] = mean^2 + variance."""
        count = self.sums["count"]
        mean = (self.sums["mean"] / count).mean((1, 2))
        second = ((self.sums["mean_squared"] + self.sums["variance"]) / count).mean((1, 2))
        std = (second - mean.square()).clamp(min=1e-12).sqrt()
        return mean[:, None, None].float(), std[:, None, None].float()

    def values(self) -> dict[str, float]:
        """Return the logged values. A number n is the channel.

        - `kl_<n>`: nats per latent value
        - `active_units`, `active_<n>`: fraction of latent values whose mean varies over images
        - `latent_mean_<n>`, `latent_std_<n>`: of posterior samples
        - `noise_fraction_<n>`: fraction of the variance that is the posterior's noise
        - `latent_high_frequency`: fraction of the latents' energy, without the mean, in the upper half of frequencies
        - `detail_<band>`, `error_<band>`: energy of reconstructions and of their error relative to that of the images,
          in the lower quarter of frequencies, the second quarter, and the upper half
        """
        count = self.sums["count"]
        mean, std = self.mean_and_std()
        active, noise = self.active_units(), self.noise_fraction()
        area = self.sums["mean"][0].numel()
        energy = self.sums["latent_energy"]
        values = {
            "active_units": active.mean(),
            "latent_high_frequency": energy[2] / energy.sum().clamp(min=1e-12),
        }
        for name, part in (("detail", "reconstruction_energy"), ("error", "error_energy")):
            ratios = self.sums[part] / self.sums["image_energy"].clamp(min=1e-12)
            values |= {f"{name}_{band}": ratio for band, ratio in zip(("low", "middle", "high"), ratios, strict=True)}
        for n in range(self.channels):
            values[f"kl_{n}"] = self.sums["kl"][n] / count / area
            values[f"active_{n}"] = active[n]
            values[f"latent_mean_{n}"] = mean[n].squeeze()
            values[f"latent_std_{n}"] = std[n].squeeze()
            values[f"noise_fraction_{n}"] = noise[n]
        return {name: float(value) for name, value in values.items()}

    def active_units(self) -> Tensor:
        """Return the fraction of each channel's values whose posterior mean varies over images, (c,)."""
        count = self.sums["count"]
        variance = self.sums["mean_squared"] / count - (self.sums["mean"] / count).square()
        return (variance > ACTIVE_VARIANCE).double().mean((1, 2))

    def noise_fraction(self) -> Tensor:
        """Return the fraction of each channel's variance that is the posterior's noise, (c,)."""
        _, std = self.mean_and_std()
        noise = (self.sums["variance"] / self.sums["count"]).mean((1, 2))
        return noise / std.flatten().double().square()


def band_energy(maps: Tensor) -> Tensor:
    """Return the energy of maps (b, c, h, w) in three frequency bands, (3,) float64 on the CPU.

    The bands are the lower quarter of frequencies, the second quarter, and the upper half, which halving the size
    removes. Their sum is the sum of squares. Maps are mirrored, as a jump at the border would count as fine detail.
    """
    mirrored = torch.cat([maps, maps.flip(-1)], dim=-1).float()
    mirrored = torch.cat([mirrored, mirrored.flip(-2)], dim=-2)
    height, width = mirrored.shape[-2:]
    power = torch.fft.fft2(mirrored, norm="ortho").abs().square().sum((0, 1)).cpu().double() / 4
    rows, columns = torch.fft.fftfreq(height).abs()[:, None], torch.fft.fftfreq(width).abs()[None, :]
    frequency = torch.maximum(rows, columns) * 2  # 1 is the Nyquist frequency
    low, high = frequency < 0.25, frequency > 0.5
    return torch.stack([power[band].sum() for band in (low, ~(low | high), high)])


def verdict(values: Mapping[str, float], kl_weight: float) -> str:
    """Summarize the values of `LatentHealth` in one sentence, with a fix if one is known.

    Args:
        values: of `LatentHealth`.
        kl_weight: the KL weight, or 0 if it has not reached its final value.
    """
    less_noise = "lower model.kl_weight.end" if kl_weight > 0 else "train for longer"
    channels = range(sum(name.startswith("kl_") for name in values))
    several = f"of {len(channels)} channels"

    def count(name: str, above: float) -> int:
        return sum(values[f"{name}_{n}"] > above for n in channels)

    if not all(math.isfinite(value) for value in values.values()):
        return "latents or reconstructions are not finite: resume from the last checkpoint with a lower learning rate"
    collapsed = sum(values[f"active_{n}"] < COLLAPSED_FRACTION and values[f"kl_{n}"] < COLLAPSED_NATS for n in channels)
    if collapsed:
        return f"posterior collapse in {collapsed} {several}: {less_noise}"
    if noisy := count("noise_fraction", NOISE_FRACTION):
        return f"latents are mostly noise in {noisy} {several}: {less_noise}"
    if large := count("latent_std", LARGE_STD):
        return f"latents have grown without bound in {large} {several}: raise model.kl_weight.end"
    if values["latent_high_frequency"] > HIGH_FREQUENCY_FRACTION:
        return (
            f"latents look like noise ({values['latent_high_frequency']:.0%} of their energy is in high frequencies), "
            "which a diffusion model learns badly: set model.loss.equivariance_weight=0.25"
        )
    if values["detail_high"] < FINE_DETAIL:
        return (
            f"reconstructions have {values['detail_high']:.0%} of the images' fine detail: train for longer, or give "
            "model.autoencoder more latent_channels"
        )
    return HEALTHY
