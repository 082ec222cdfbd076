"""The diagonal Gaussian against torch's own, and against its samples."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from latentfaces.autoencoder import DiagonalGaussian


@pytest.fixture
def posterior() -> DiagonalGaussian:
    """Return a posterior whose values all differ."""
    generator = torch.Generator().manual_seed(0)
    return DiagonalGaussian(*torch.randn(2, 3, 4, 5, 6, generator=generator))


def test_kl_is_torchs_summed_over_the_latent(posterior: DiagonalGaussian) -> None:
    standard = Normal(torch.zeros(()), torch.ones(()))
    expected = kl_divergence(Normal(posterior.mean, (posterior.logvar / 2).exp()), standard).sum((1, 2, 3))
    assert posterior.kl().shape == (3,)
    assert torch.allclose(posterior.kl(), expected, rtol=1e-5)


def test_kl_of_the_prior_is_zero() -> None:
    zeros = torch.zeros(2, 4, 3, 3)
    assert torch.equal(DiagonalGaussian(zeros, zeros).kl(), torch.zeros(2))


def test_samples_have_the_mean_and_the_standard_deviation() -> None:
    num_samples, mean, std = 100_000, 1.5, 0.2
    wide = torch.ones(1, 1, 1, num_samples)
    torch.manual_seed(0)
    samples = DiagonalGaussian(mean * wide, (std * wide).square().log()).sample()
    error_of_mean = std / num_samples**0.5
    assert samples.mean().item() == pytest.approx(mean, abs=4 * error_of_mean)
    assert samples.std().item() == pytest.approx(std, abs=4 * error_of_mean)  # its error is smaller by sqrt(2)


def test_gradients_of_a_sample_are_those_of_the_reparameterisation(posterior: DiagonalGaussian) -> None:
    mean, logvar = posterior.mean.requires_grad_(), posterior.logvar.requires_grad_()
    sample = DiagonalGaussian(mean, logvar).sample()
    sample.sum().backward()
    assert torch.equal(mean.grad, torch.ones_like(mean))
    assert torch.allclose(logvar.grad, 0.5 * (sample - mean), atol=1e-6)


def test_standard_deviation_is_the_root_of_the_variance(posterior: DiagonalGaussian) -> None:
    assert torch.allclose(posterior.std.square(), posterior.logvar.exp())


def test_mode_is_the_mean(posterior: DiagonalGaussian) -> None:
    assert torch.equal(posterior.mode(), posterior.mean)


def test_moments_split_into_mean_then_log_variance() -> None:
    moments = torch.arange(24.0).view(1, 6, 2, 2) / 2
    posterior = DiagonalGaussian.from_moments(moments)
    assert torch.equal(posterior.mean, moments[:, :3])
    assert torch.equal(posterior.logvar, moments[:, 3:])


def test_log_variance_is_clamped_and_the_mean_is_not() -> None:
    moments = torch.tensor([-1e4, 1e4, -1e4, 1e4]).view(1, 4, 1, 1)
    posterior = DiagonalGaussian.from_moments(moments)
    assert posterior.mean.flatten().tolist() == [-1e4, 1e4]
    assert posterior.logvar.flatten().tolist() == [-30.0, 20.0]
    assert posterior.kl().isfinite().all()


def test_moments_in_half_precision_become_float32() -> None:
    posterior = DiagonalGaussian.from_moments(torch.zeros(1, 2, 1, 1, dtype=torch.bfloat16))
    assert posterior.kl().dtype == posterior.sample().dtype == torch.float32
