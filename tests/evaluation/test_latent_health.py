"""Statistics of latents where the answer is known, and the verdict on a VAE that is made ill on purpose."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from latentfaces.autoencoder import VAE, DiagonalGaussian
from latentfaces.evaluation import HEALTHY, LatentHealth, verdict
from latentfaces.evaluation.latent_health import band_energy


def a_posterior(seed: int, num_photos: int = 5) -> DiagonalGaussian:
    """Return a posterior over (num_photos, 3, 4, 4) whose values all differ, with a mean of about 2."""
    noise = torch.randn(2, num_photos, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return DiagonalGaussian(3 * noise[0] + 2, 0.5 * noise[1])


def pictures(seed: int, num_photos: int = 5) -> Tensor:
    """Return random pictures (num_photos, 3, 16, 16) in [-1, 1]."""
    return torch.rand(num_photos, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def health_of(
    *posteriors: DiagonalGaussian, images: Tensor | None = None, reconstructions: Tensor | None = None
) -> LatentHealth:
    """Return statistics over batches with these posteriors, where pictures do not matter unless given."""
    images = pictures(0) if images is None else images
    health = LatentHealth(posteriors[0].mean.shape[1])
    for posterior in posteriors:
        health.update(posterior, images, images if reconstructions is None else reconstructions)
    return health


def cosine(row: int, column: int, size: int = 32) -> Tensor:
    """Return a wave (1, 1, size, size) with `row` and `column` half periods, which mirroring continues."""
    place = math.pi * (torch.arange(size) + 0.5) / size
    return ((row * place).cos()[:, None] * (column * place).cos()[None, :])[None, None]


def smooth(num_photos: int, size: int) -> Tensor:
    """Return random waves (num_photos, 3, size, size) of one or two half periods."""
    waves = torch.cat([cosine(*periods, size) for periods in ((1, 0), (0, 1), (1, 2), (2, 1), (2, 2))])[:, 0]
    strengths = torch.rand(num_photos, 3, len(waves), generator=torch.Generator().manual_seed(0)) * 2 - 1
    return 0.3 * torch.einsum("bck,khw->bchw", strengths, waves)


def test_mean_and_standard_deviation_are_those_of_draws() -> None:
    torch.manual_seed(1)
    posteriors = [a_posterior(seed) for seed in range(3)]
    mean, std = health_of(*posteriors).mean_and_std()
    draws = torch.cat([posterior.sample() for posterior in posteriors for _ in range(400)])
    assert mean.shape == std.shape == (3, 1, 1)
    assert mean.dtype == std.dtype == torch.float32
    assert torch.allclose(mean, draws.mean((0, 2, 3), keepdim=True)[0], atol=0.03)
    assert torch.allclose(std, draws.std((0, 2, 3))[:, None, None], atol=0.03)


def test_constant_latents_have_the_standard_deviation_of_their_noise() -> None:
    mean = torch.tensor([4.0, -1.0]).view(1, 2, 1, 1).expand(3, 2, 2, 2)
    logvar = torch.tensor([0.0, math.log(0.25)]).view(1, 2, 1, 1).expand(3, 2, 2, 2)
    health = health_of(DiagonalGaussian(mean, logvar))
    assert [moment.flatten().tolist() for moment in health.mean_and_std()] == [[4.0, -1.0], [1.0, 0.5]]


def test_statistics_forget_what_was_before_a_reset() -> None:
    health = health_of(a_posterior(0))
    health.reset()
    health.update(a_posterior(1), pictures(1), pictures(2))
    expected = health_of(a_posterior(1), images=pictures(1), reconstructions=pictures(2))
    assert health.values() == expected.values()


def test_kl_of_each_channel_is_torchs_per_latent_value() -> None:
    posteriors = [a_posterior(seed) for seed in (0, 1)]
    values = health_of(*posteriors).values()
    standard = Normal(torch.zeros(()), torch.ones(()))
    nats = torch.cat([kl_divergence(Normal(p.mean, (p.logvar / 2).exp()), standard) for p in posteriors])
    expected = nats.mean((0, 2, 3)).tolist()
    assert [values[f"kl_{n}"] for n in range(3)] == pytest.approx(expected, rel=1e-5)


def test_active_units_are_those_whose_mean_varies_over_photos() -> None:
    mean = torch.zeros(2, 2, 1, 4)
    # Over two photos the variance of +-d is d^2: 0.04 and 0.0144 are above 0.01, 0.0081 and 0 are not.
    mean[:, 0, 0] = torch.tensor([[1.0], [-1.0]]) * torch.tensor([0.2, 0.12, 0.09, 0.0])
    mean[:, 1, 0] = torch.tensor([-3.0, 3.0, 5.0, 0.0])  # varies in space alone
    values = health_of(DiagonalGaussian(mean, torch.zeros_like(mean))).values()
    assert [values["active_0"], values["active_1"], values["active_units"]] == [0.5, 0.0, 0.25]


@pytest.mark.parametrize("offset", [0.0, 30.0, 300.0, 3000.0])
def test_unit_that_does_not_vary_is_not_active_however_far_from_zero(offset: float) -> None:
    mean = torch.full((64, 1, 4, 4), offset * 8 / 7)
    assert health_of(*[DiagonalGaussian(mean, torch.zeros_like(mean))] * 4).values()["active_0"] == 0.0


def test_noise_fraction_is_the_posteriors_part_of_the_variance() -> None:
    sign = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    mean = sign * torch.tensor([3.0, 1.0, 0.0]).sqrt().view(1, 3, 1, 1).expand(2, 3, 2, 2)
    values = health_of(DiagonalGaussian(mean, torch.zeros_like(mean))).values()  # of variance 1
    assert [values[f"noise_fraction_{n}"] for n in range(3)] == pytest.approx([0.25, 0.5, 1.0], rel=1e-6)
    assert [values[f"latent_std_{n}"] for n in range(3)] == pytest.approx([2.0, 2**0.5, 1.0])
    assert [values[f"latent_mean_{n}"] for n in range(3)] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("row", "column", "band"),
    [(0, 0, 0), (7, 0, 0), (0, 7, 0), (8, 0, 1), (0, 16, 1), (16, 16, 1), (1, 17, 2), (17, 1, 2), (31, 9, 2)],
)  # fmt: skip
def test_energy_of_a_wave_lies_in_the_band_of_its_higher_frequency(row: int, column: int, band: int) -> None:
    # 32 pixels hold 32 half periods: a quarter of that is 8, a half is 16.
    energy = band_energy(cosine(row, column))
    expected = torch.zeros(3, dtype=torch.float64)
    # The square of a cosine is a half on average, in each direction that has one.
    expected[band] = 32 * 32 * 0.5 ** ((row > 0) + (column > 0))
    assert torch.allclose(energy, expected, atol=1e-2)


@pytest.mark.parametrize("size", [(16, 16), (7, 12)])
def test_energies_of_all_bands_add_up_to_the_sum_of_squares(size: tuple[int, int]) -> None:
    maps = torch.randn(3, 2, *size, generator=torch.Generator().manual_seed(0)) + 1
    assert band_energy(maps).sum().item() == pytest.approx(maps.square().sum().item(), rel=1e-5)


def test_three_quarters_of_white_noise_are_high_frequencies() -> None:
    mean = torch.randn(8, 4, 64, 64, generator=torch.Generator().manual_seed(0)) + 10  # constants do not count
    values = health_of(DiagonalGaussian(mean, torch.zeros_like(mean))).values()
    assert values["latent_high_frequency"] == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("size", [4, 8, 16])
def test_latents_of_the_lowest_frequencies_are_not_taken_for_noise_at_any_size(size: int) -> None:
    wave = (cosine(1, 0, size) + cosine(0, 1, size)) * torch.linspace(-1, 1, 8).view(8, 1, 1, 1)
    assert health_of(DiagonalGaussian(wave, torch.full_like(wave, -6.0))).values()["latent_high_frequency"] < 0.01


def test_detail_and_error_are_shares_of_the_photos_energy_by_band() -> None:
    bands = {"low": cosine(1, 2), "middle": 0.5 * cosine(10, 12), "high": 0.1 * cosine(24, 6)}
    images = sum(bands.values(), torch.zeros(1, 1, 32, 32)).expand(2, 3, 32, 32)

    def shares(reconstructions: Tensor, name: str) -> list[float]:
        values = health_of(a_posterior(0, num_photos=2), images=images, reconstructions=reconstructions).values()
        return [values[f"{name}_{band}"] for band in bands]

    assert shares(images.clone(), "error") == [0.0, 0.0, 0.0]
    assert shares(images.clone(), "detail") == pytest.approx([1.0, 1.0, 1.0])
    for missing in bands:
        gone = [float(name == missing) for name in bands]
        assert shares(images - bands[missing], "error") == pytest.approx(gone, abs=1e-3)
        assert shares(images - bands[missing], "detail") == pytest.approx([1 - share for share in gone], abs=1e-3)
    assert shares(images - 0.5 * bands["high"], "error")[2] == pytest.approx(0.25, abs=1e-3)  # the square of a half
    assert shares(images - 2 * bands["high"], "detail")[2] == pytest.approx(1, abs=1e-3)  # invented, but not missing
    assert shares(images - 2 * bands["high"], "error")[2] == pytest.approx(4, abs=1e-3)


def test_statistics_over_several_batches_are_those_over_one() -> None:
    posterior, images, reconstructions = a_posterior(0, 6), pictures(1, 6), pictures(2, 6)
    whole = health_of(posterior, images=images, reconstructions=reconstructions)
    parts = LatentHealth(3)
    for part in (slice(0, 1), slice(1, 6)):  # of unequal size
        parts.update(
            DiagonalGaussian(posterior.mean[part], posterior.logvar[part]), images[part], reconstructions[part]
        )
    assert parts.values() == pytest.approx(whole.values(), rel=1e-4)


def test_ranks_that_add_up_know_what_one_would_that_saw_everything() -> None:
    ours = health_of(a_posterior(0), images=pictures(1), reconstructions=pictures(2))
    theirs = health_of(a_posterior(3, 2), images=pictures(4, 2), reconstructions=pictures(5, 2))
    sums_of_theirs = iter(list(theirs.sums.values()))

    def reduce_over_ranks(value: Tensor, reduce_op: str) -> Tensor:
        assert reduce_op == "sum"
        return value + next(sums_of_theirs)

    ours.reduce(torch.device("cpu"), reduce_over_ranks)
    both = health_of(a_posterior(0), images=pictures(1), reconstructions=pictures(2))
    both.update(a_posterior(3, 2), pictures(4, 2), pictures(5, 2))
    assert ours.values() == pytest.approx(both.values(), rel=1e-6)


def collapse(vae: VAE) -> None:
    """Let all but the first channel say what the prior says."""
    head = vae.encoder.head[-1]
    for channel in (1, 2, 3, 5, 6, 7):
        head.weight[channel] = head.bias[channel] = 0.0


def drown(vae: VAE) -> None:
    """Bury the first two channels in noise: a variance of e^4."""
    vae.encoder.head[-1].bias[4:6] = 4.0


def inflate(vae: VAE) -> None:
    """Make the mean a thousand times as large."""
    vae.encoder.head[-1].weight[:4] *= 1000
    vae.encoder.head[-1].bias[:4] *= 1000


def scatter(vae: VAE) -> None:
    """Put white noise in place of the mean."""

    def noise(_: object, __: object, moments: Tensor) -> Tensor:
        mean, logvar = moments.chunk(2, dim=1)
        return torch.cat([torch.randn(mean.shape, generator=torch.Generator().manual_seed(0)), logvar], dim=1)

    vae.encoder.head.register_forward_hook(noise)


def keep(vae: VAE) -> None:
    """Change nothing."""


def verdict_on(make_ill: Callable[[VAE], None], reconstruct: Callable[[Tensor], Tensor]) -> str:
    """Return the verdict on a VAE whose latents are fine before they are made ill."""
    torch.manual_seed(0)
    vae = VAE(latent_channels=4, channels=8, multipliers=[1, 2], num_blocks=1, attention=False)
    grain = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    photos = smooth(16, 32) + 0.03 * grain
    with torch.no_grad():
        head = vae.encoder.head[-1]
        head.weight[:4] *= 4.0
        head.weight[4:] = 0.0
        head.bias[4:] = -6.0
        make_ill(vae)
        health = LatentHealth(4)
        for batch in photos.split(8):
            health.update(vae.encode(batch), batch, reconstruct(batch))
    return verdict(health.values(), kl_weight=1e-6)


def nearly(photos: Tensor) -> Tensor:
    """Reconstruct with a little less contrast."""
    return 0.9 * photos


def blurred(photos: Tensor) -> Tensor:
    """Reconstruct with each pixel the mean of 5 x 5, twice over."""
    for _ in range(2):
        photos = F.avg_pool2d(F.pad(photos, (2, 2, 2, 2), mode="circular"), 5, stride=1)
    return photos


@pytest.mark.parametrize(
    ("make_ill", "reconstruct", "expected"),
    [
        (collapse, nearly, "posterior collapse in 3 of 4 channels: lower model.kl_weight.end"),
        (drown, nearly, "latents are mostly noise in 2 of 4 channels: lower model.kl_weight.end"),
        (inflate, nearly, "latents have grown without bound in 4 of 4 channels: raise model.kl_weight.end"),
        (scatter, nearly, "latents look like noise (68% of their energy is in high frequencies), which a diffusion "
            "model learns badly: set model.loss.equivariance_weight=0.25"),
        (keep, blurred, "reconstructions have 3% of the images' fine detail: train for longer, or give "
            "model.autoencoder more latent_channels"),
        (keep, nearly, HEALTHY),
    ],
    ids=["collapse", "noise", "scale", "white", "blur", "healthy"],
)  # fmt: skip
def test_verdict_names_the_illness_and_its_remedy(
    make_ill: Callable[[VAE], None], reconstruct: Callable[[Tensor], Tensor], expected: str
) -> None:
    assert verdict_on(make_ill, reconstruct) == expected


def test_collapse_is_said_first_because_all_else_follows_from_it() -> None:
    def collapse_and_drown(vae: VAE) -> None:
        drown(vae)
        collapse(vae)

    assert verdict_on(collapse_and_drown, blurred).startswith("posterior collapse in 3 of 4 channels")


def test_small_latents_that_say_much_are_not_called_collapsed() -> None:
    mean = 0.05 * torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)).cumsum(-1) / 4
    values = health_of(DiagonalGaussian(mean, torch.full_like(mean, -12.0))).values()
    assert values["active_0"] < 0.05
    assert "collapse" not in verdict(values, kl_weight=1e-6)


def test_values_that_are_no_numbers_are_not_called_healthy() -> None:
    reconstructions = pictures(1)
    reconstructions[0, 0, 0, 0] = math.nan
    values = health_of(a_posterior(0), images=pictures(0), reconstructions=reconstructions).values()
    assert "not finite" in verdict(values, kl_weight=1e-6)


def test_without_a_kl_weight_the_fix_is_not_to_lower_it() -> None:
    values = health_of(DiagonalGaussian(torch.zeros(8, 1, 8, 8), torch.zeros(8, 1, 8, 8))).values()
    assert verdict(values, kl_weight=0.0) == "posterior collapse in 1 of 1 channels: train for longer"
