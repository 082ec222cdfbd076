"""What the LightningModules add to the parts: statistics, seeds, guards."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from latentfaces.annealing import Linear, WarmupDecay
from latentfaces.autoencoder import VAE, DiagonalGaussian, VAELoss
from latentfaces.diffusion import Denoiser, DenoisingLoss, EulerSampler, LogitNormalTime, RectifiedFlow, UNet
from latentfaces.training import LatentDiffusionModule, NonFiniteLossError, VAEModule
from latentfaces.training.vae_module import LatentMoments


def same(value: Tensor, reduce_op: str) -> Tensor:
    """A reduction over one rank."""
    return value


@pytest.fixture
def vae_module() -> VAEModule:
    torch.manual_seed(0)
    return VAEModule(
        VAE(latent_channels=3, channels=8, multipliers=[1, 2], num_blocks=1, attention=False),
        VAELoss("mse"),
        Linear(0.0, 0.5, 100),
        partial(torch.optim.AdamW, lr=1e-3),
        WarmupDecay(),
        seed=0,
    )


def logged(module: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What the module logs from now on."""
    seen: dict[str, float] = {}
    monkeypatch.setattr(module, "log_dict", lambda values, **_: seen.update({k: float(v) for k, v in values.items()}))
    monkeypatch.setattr(module, "log", lambda name, value, **_: seen.update({name: float(value)}))
    return seen


def test_latent_statistics_are_those_of_draws(vae_module: VAEModule) -> None:
    torch.manual_seed(1)
    posteriors = [DiagonalGaussian(3 * torch.randn(5, 3, 4, 4) + 2, 0.5 * torch.randn(5, 3, 4, 4)) for _ in range(3)]
    moments = LatentMoments(3)
    for posterior in posteriors:
        moments.update(posterior)
    moments.write_to(vae_module.autoencoder, same)
    draws = torch.cat([p.sample() for p in posteriors for _ in range(400)])
    assert torch.allclose(vae_module.autoencoder.latent_mean, draws.mean((0, 2, 3), keepdim=True)[0], atol=0.03)
    assert torch.allclose(vae_module.autoencoder.latent_std, draws.std((0, 2, 3))[:, None, None], atol=0.03)


def test_statistics_forget_the_last_validation(vae_module: VAEModule) -> None:
    moments = LatentMoments(3)
    moments.update(DiagonalGaussian(torch.full((2, 3, 2, 2), 50.0), torch.zeros(2, 3, 2, 2)))
    moments.reset()
    moments.update(DiagonalGaussian(torch.full((2, 3, 2, 2), 4.0), torch.zeros(2, 3, 2, 2)))
    moments.write_to(vae_module.autoencoder, same)
    assert torch.allclose(vae_module.autoencoder.latent_mean, torch.full((3, 1, 1), 4.0))
    assert torch.allclose(vae_module.autoencoder.latent_std, torch.ones(3, 1, 1))


def test_validation_weighs_the_kl_as_at_the_end_of_annealing(
    vae_module: VAEModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = logged(vae_module, monkeypatch)
    vae_module.evaluate(torch.rand(2, 3, 16, 16) * 2 - 1, "val")  # step 0, where the weight of training is 0
    assert seen["val/loss"] == pytest.approx(seen["val/reconstruction"] + 0.5 * seen["val/kl"], rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_no_number_stops_training_by_name(
    bad: float, vae_module: VAEModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged(vae_module, monkeypatch)
    vae_module._trainer = SimpleNamespace(log_every_n_steps=1, global_step=0)  # type: ignore[assignment]
    monkeypatch.setattr(type(vae_module), "global_step", 0)
    vae_module.log_terms({"train/loss": torch.tensor(1.0), "train/kl": 2.0})
    with pytest.raises(NonFiniteLossError, match="train/kl"):
        vae_module.log_terms({"train/loss": torch.tensor(1.0), "train/kl": torch.tensor(bad)})


def draws_at(module: VAEModule, rank: int, batches: int, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Random numbers that a step on this rank, after so many batches, would see."""
    progress = SimpleNamespace(total=SimpleNamespace(ready=batches))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    module._trainer = SimpleNamespace(fit_loop=loop)  # type: ignore[assignment]
    monkeypatch.setattr(type(module), "global_rank", rank)
    module.on_train_batch_start(None, 0)
    return torch.rand(3)


def test_draws_differ_over_ranks_and_batches_and_come_again(
    vae_module: VAEModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    at: Callable[..., Tensor] = partial(draws_at, vae_module, monkeypatch=monkeypatch)
    places = [(rank, batches) for rank in (0, 1) for batches in (0, 1, 2, 1000)]
    draws = [tuple(at(*place).tolist()) for place in places]
    assert len(set(draws)) == len(places)
    assert tuple(at(1, 2).tolist()) == draws[places.index((1, 2))]


def test_the_vae_of_stage_2_is_frozen_and_its_latents_are_normalised(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    vae = VAE(latent_channels=2, channels=8, multipliers=[1, 2], num_blocks=1, attention=False)
    vae.latent_mean.fill_(10.0)
    vae.latent_std.fill_(4.0)
    network = UNet(2, width=8, multipliers=[1, 2], num_blocks=1, attention_levels=[])
    module = LatentDiffusionModule(
        vae, Denoiser(network, RectifiedFlow()), DenoisingLoss(LogitNormalTime()), EulerSampler(2),
        partial(torch.optim.AdamW, lr=1e-3), WarmupDecay(), seed=0,
    )  # fmt: skip
    seen: dict[str, Tensor] = {}

    def spy(denoiser: Denoiser, x0: Tensor) -> Tensor:
        seen["x0"] = x0
        return torch.zeros(len(x0), requires_grad=True)

    monkeypatch.setattr(module.loss, "forward", spy)
    monkeypatch.setattr(module, "log_terms", lambda terms: None)
    mean, std = torch.full((64, 2, 4, 4), 10.0), torch.full((64, 2, 4, 4), 4.0)
    module.training_step(torch.stack([mean, std], dim=1), 0)
    assert seen["x0"].mean().abs() < 0.1
    assert seen["x0"].std() == pytest.approx(1.0, abs=0.1)
    assert not any(p.requires_grad for p in vae.parameters())
    assert all(p.requires_grad for p in network.parameters())


def test_previews_outlive_the_batch_whose_memory_is_used_again(
    vae_module: VAEModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged(vae_module, monkeypatch)
    batch = torch.rand(4, 3, 16, 16) * 2 - 1
    before = batch.clone()
    vae_module.validation_step(batch, 0)
    batch.zero_()
    assert torch.equal(vae_module.preview()[:4], before)
