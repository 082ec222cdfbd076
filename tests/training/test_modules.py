"""LightningModules: statistics, seeds, guards."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from latentfaces.annealing import Constant, Linear, WarmupDecay
from latentfaces.autoencoder import TAESD, VAE, VAELoss
from latentfaces.diffusion import (
    Augmentation,
    Conditioning,
    Denoiser,
    DenoisingLoss,
    EulerSampler,
    LogitNormalTime,
    RectifiedFlow,
    UNet,
)
from latentfaces.errors import UserError
from latentfaces.evaluation import reconstruction_metrics
from latentfaces.labels import Label
from latentfaces.training import LatentDiffusionModule, NonFiniteError, TimeLimit, VAEModule
from latentfaces.training.vae_module import require_range


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
    """Record what the module logs."""
    seen: dict[str, float] = {}

    def log_dict(values: Mapping[str, Tensor | float], **_: Any) -> None:
        seen.update({name: torch.as_tensor(value).item() for name, value in values.items()})

    monkeypatch.setattr(module, "log_dict", log_dict)
    monkeypatch.setattr(module, "log", lambda name, value, **_: seen.update({name: float(value)}))
    return seen


@torch.no_grad()
def validate(module: VAEModule, *batches: Tensor) -> None:
    """Run a validation of the module as Lightning does."""
    module._trainer = SimpleNamespace(strategy=SimpleNamespace(reduce=same), global_step=0)  # type: ignore[assignment]
    module.on_validation_epoch_start()
    for number, batch in enumerate(batches):
        module.validation_step(batch, number)
    module.on_validation_epoch_end()


def test_validation_measures_the_latents_that_stage_2_will_see(
    vae_module: VAEModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = logged(vae_module, monkeypatch)
    vae = vae_module.autoencoder
    images = torch.rand(6, 3, 16, 16) * 2 - 1
    validate(vae_module, torch.rand(3, 3, 16, 16))  # the last validation's photos must not count
    validate(vae_module, images[:4], images[4:])
    with torch.no_grad():
        posterior = vae.encode(images)
    draws = torch.cat([posterior.sample() for _ in range(1000)])
    assert torch.allclose(vae.latent_mean, draws.mean((0, 2, 3), keepdim=True)[0], atol=0.02)
    assert torch.allclose(vae.latent_std, draws.std((0, 2, 3))[:, None, None], atol=0.02)
    assert seen["health/latent_std_2"] == pytest.approx(vae.latent_std[2].item())


@torch.no_grad()
def test_findings_of_a_test_are_of_its_own_images(vae_module: VAEModule, monkeypatch: pytest.MonkeyPatch) -> None:
    logged(vae_module, monkeypatch)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    validate(vae_module, images)
    expected = vae_module.findings
    validate(vae_module, torch.zeros(3, 3, 16, 16))
    vae_module.on_test_epoch_start()
    vae_module.test_step(images, 0)
    vae_module.on_test_epoch_end()
    assert vae_module.findings == expected


def test_verdict_is_on_the_last_validation_and_says_nothing_before(
    vae_module: VAEModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged(vae_module, monkeypatch)
    assert vae_module.verdict() is None
    assert vae_module.healthy
    for parameter in vae_module.autoencoder.encoder.head.parameters():
        torch.nn.init.zeros_(parameter)
    validate(vae_module, torch.rand(4, 3, 16, 16))
    assert vae_module.verdict() == "posterior collapse in 3 of 3 channels: train for longer"  # the weight is 0 so far
    vae_module.trainer.global_step = 100  # type: ignore[misc]
    assert vae_module.verdict() == "posterior collapse in 3 of 3 channels: lower model.kl_weight.end"
    assert not vae_module.healthy


@pytest.fixture
def skip_module() -> VAEModule:
    """A module whose VAE has skip connections that say something."""
    torch.manual_seed(0)
    vae = VAE(3, channels=8, multipliers=[1, 2], num_blocks=1, attention=False, skip_connections=True)
    torch.nn.init.normal_(vae.decoder.skips[0].weight)
    optimizer = partial(torch.optim.AdamW, lr=1e-3)
    return VAEModule(
        vae, VAELoss("mse"), Linear(0.0, 0.5, 100), optimizer, WarmupDecay(), seed=0, skip_dropout=Linear(0.0, 0.8, 100)
    )


def test_validation_of_a_vae_with_skips_says_what_they_add_and_is_judged_without(
    skip_module: VAEModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = logged(skip_module, monkeypatch)
    vae = skip_module.autoencoder
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    skip_module.evaluate(images, "val")
    posterior, skips = vae.encode_with_skips(images)
    expected = {
        "val/psnr": vae.decode(posterior.mode()),
        "val/psnr_with_half_skips": vae.decode(posterior.mode(), [0.5 * skip for skip in skips]),
        "val/psnr_with_skips": vae.decode(posterior.mode(), skips),
    }
    for name, pictures in expected.items():
        assert seen[name] == pytest.approx(reconstruction_metrics(images, pictures)["psnr"].item(), rel=1e-5)
    assert len({seen[name] for name in expected}) == 3
    assert seen["val/reconstruction"] == pytest.approx((expected["val/psnr"] - images).square().mean().item(), rel=1e-5)


def test_preview_of_a_vae_with_skips_shows_photos_then_latents_alone_then_both(
    skip_module: VAEModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged(skip_module, monkeypatch)
    vae, images = skip_module.autoencoder, torch.rand(2, 3, 16, 16) * 2 - 1
    skip_module.validation_step(images, 0)
    posterior, skips = vae.encode_with_skips(images)
    rows = [images, vae.decode(posterior.mode()), vae.decode(posterior.mode(), skips)]
    assert torch.equal(skip_module.preview(), torch.cat(rows))


def test_skip_dropout_follows_its_schedule(skip_module: VAEModule, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = logged(skip_module, monkeypatch)
    skip_module._trainer = SimpleNamespace(log_every_n_steps=1)  # type: ignore[assignment]
    asked: list[float] = []
    forward = skip_module.autoencoder.forward

    def spy(images: Tensor, skip_dropout: float) -> Any:
        asked.append(skip_dropout)
        return forward(images, skip_dropout)

    monkeypatch.setattr(skip_module.autoencoder, "forward", spy)
    for step in (0, 50, 1000):
        monkeypatch.setattr(type(skip_module), "global_step", step)
        skip_module.training_step(torch.rand(2, 3, 16, 16), 0)
        assert seen["train/skip_dropout"] == pytest.approx(asked[-1])
    assert asked == [0.0, 0.4, 0.8]


def test_validation_weighs_the_kl_as_at_the_end_of_annealing(
    vae_module: VAEModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = logged(vae_module, monkeypatch)
    vae_module.evaluate(torch.rand(2, 3, 16, 16) * 2 - 1, "val")  # step 0, where the weight of training is 0
    assert seen["val/loss"] == pytest.approx(seen["val/reconstruction"] + 0.5 * seen["val/kl"], rel=1e-5)


@pytest.mark.parametrize(("step", "weight"), [(0, 0.0), (50, 0.25), (1000, 0.5)])
def test_training_weighs_the_kl_of_its_step(
    step: int, weight: float, vae_module: VAEModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = logged(vae_module, monkeypatch)
    monkeypatch.setattr(type(vae_module), "global_step", step)
    vae_module._trainer = SimpleNamespace(log_every_n_steps=1)  # type: ignore[assignment]
    loss = vae_module.training_step(torch.rand(2, 3, 16, 16) * 2 - 1, 0).item()
    assert loss == pytest.approx(seen["train/reconstruction"] + weight * seen["train/kl"], rel=1e-5)
    assert seen["train/kl"] > 0


def test_a_vae_without_a_variance_has_no_kl(vae_module: VAEModule, monkeypatch: pytest.MonkeyPatch) -> None:
    vae_module.autoencoder = TAESD(4)
    seen = logged(vae_module, monkeypatch)
    monkeypatch.setattr(type(vae_module), "global_step", 1000)
    vae_module._trainer = SimpleNamespace(log_every_n_steps=1)  # type: ignore[assignment]
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    loss = vae_module.training_step(images, 0)
    vae_module.evaluate(images, "val")
    assert loss.item() == seen["train/reconstruction"] == seen["train/loss"]
    assert seen["val/loss"] == seen["val/reconstruction"]
    assert not any("kl" in name for name in seen)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_no_number_stops_training_by_name(
    bad: float, vae_module: VAEModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged(vae_module, monkeypatch)
    vae_module._trainer = SimpleNamespace(log_every_n_steps=1, global_step=0)  # type: ignore[assignment]
    monkeypatch.setattr(type(vae_module), "global_step", 0)
    vae_module.log_terms({"train/loss": torch.tensor(1.0), "train/kl": 2.0})
    vae_module.finite.close(0, {"norm": torch.tensor(1.0)}, torch.device("cpu"))
    vae_module.log_terms({"train/loss": torch.tensor(1.0), "train/kl": torch.tensor(bad)})
    norm = torch.tensor(1 + 0 * bad)  # as `BaseModule.backward` begins it
    with pytest.raises(NonFiniteError, match=r"^train/kl is"):
        vae_module.finite.close(1, {"norm": norm}, torch.device("cpu"))


def draws_at(module: VAEModule, rank: int, batches: int, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Return the random numbers of a step on this rank after a number of batches."""
    progress = SimpleNamespace(total=SimpleNamespace(ready=batches))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    module._trainer = SimpleNamespace(fit_loop=loop, world_size=1)  # type: ignore[assignment]
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


def test_ranks_go_by_one_clock(vae_module: VAEModule, monkeypatch: pytest.MonkeyPatch) -> None:
    timer = TimeLimit("00:01:00:00")
    monkeypatch.setattr(timer, "time_elapsed", lambda stage="train": 900.0)
    trainer = SimpleNamespace(
        world_size=2, callbacks=[timer], max_steps=-1, max_epochs=-1, should_stop=False,
        strategy=SimpleNamespace(root_device=None),
    )  # fmt: skip
    vae_module._trainer = trainer  # type: ignore[assignment]
    assert vae_module.progress() == 0.25
    # The clock of another rank is ahead.
    for ahead, share in ((900, 0.5), (2700, 1.0)):
        monkeypatch.setattr(timer.clock, "all_reduce_max", lambda seconds, device, ahead=ahead: seconds + ahead)
        timer.on_train_batch_start(trainer)  # type: ignore[arg-type]
        assert vae_module.progress() == share
        timer.on_train_batch_end(trainer)  # type: ignore[arg-type]
        assert trainer.should_stop == (share == 1)


def test_the_vae_of_stage_2_is_frozen_and_its_latents_are_normalised(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    vae = VAE(latent_channels=2, channels=8, multipliers=[1, 2], num_blocks=1, attention=False)
    vae.latent_mean.fill_(10.0)
    vae.latent_std.fill_(4.0)
    network = UNet(2, width=8, multipliers=[1, 2], num_blocks=1, attention_levels=[])
    module = LatentDiffusionModule(
        vae, Denoiser(network, RectifiedFlow()), DenoisingLoss(LogitNormalTime()), EulerSampler(2),
        None, partial(torch.optim.AdamW, lr=1e-3), WarmupDecay(), seed=0,
    )  # fmt: skip
    seen: dict[str, Tensor] = {}

    def spy(denoiser: Denoiser, x0: Tensor, condition: Tensor | None) -> Tensor:
        seen["x0"] = x0
        return torch.zeros(1, len(x0), requires_grad=True)

    monkeypatch.setattr(module.loss, "forward", spy)
    monkeypatch.setattr(module, "log_terms", lambda terms: None)
    mean, std = torch.full((64, 2, 4, 4), 10.0), torch.full((64, 2, 4, 4), 4.0)
    module.training_step(torch.stack([mean, std], dim=1), 0)
    assert seen["x0"].mean().abs() < 0.1
    assert seen["x0"].std() == pytest.approx(1.0, abs=0.1)
    assert not any(p.requires_grad for p in vae.parameters())
    assert all(p.requires_grad for p in network.parameters())


@pytest.fixture
def ldm_module() -> LatentDiffusionModule:
    """A module whose latents have mean 10 and std 4, and whose augmentation adds 100."""
    torch.manual_seed(0)
    vae = VAE(latent_channels=2, channels=8, multipliers=[1, 2], num_blocks=1, attention=False)
    vae.latent_mean.fill_(10.0)
    vae.latent_std.fill_(4.0)
    network = UNet(2, width=8, multipliers=[1, 2], num_blocks=1, attention_levels=[], label_channels=8)
    module = LatentDiffusionModule(
        vae, Denoiser(network, RectifiedFlow()), DenoisingLoss(LogitNormalTime("auto")), EulerSampler(2), None,
        partial(torch.optim.AdamW, lr=1e-3), WarmupDecay(), seed=0,
    )  # fmt: skip
    module.augmentation = lambda x0: (x0 + 100, torch.ones(len(x0), 8))  # type: ignore[assignment]
    return module


def spied(module: LatentDiffusionModule, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Record x0, t, noise and condition of each call of the loss, which is 1 for the head and 5 for the auxiliary."""
    calls: list[tuple[Any, ...]] = []

    def forward(denoiser: Denoiser, x0: Tensor, t: Any = None, noise: Any = None, condition: Any = None) -> Tensor:
        calls.append((x0, t, noise, condition))
        return torch.tensor([1.0, 5.0])[:, None].expand(2, len(x0))

    monkeypatch.setattr(module.loss, "forward", forward)
    return calls


def test_training_sees_augmented_samples_of_the_posterior(
    ldm_module: LatentDiffusionModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, terms = spied(ldm_module, monkeypatch), {}
    monkeypatch.setattr(ldm_module, "log_terms", terms.update)
    moments = torch.stack([torch.full((64, 2, 4, 4), 14.0), torch.full((64, 2, 4, 4), 8.0)], dim=1)
    assert ldm_module.training_step(moments, 0).item() == 1 + 0.25 * 5
    ((x0, t, noise, condition),) = calls
    assert x0.mean().item() == pytest.approx(100 + 1, abs=0.2)  # (14 - 10) / 4
    assert x0.std().item() == pytest.approx(8 / 4, abs=0.1)
    assert t is noise is None
    assert condition.eq(1).all()
    assert {name: float(value) for name, value in terms.items()} == {"train/loss": 1, "train/auxiliary_loss": 5}


def test_every_validation_has_the_same_noise_and_times_and_other_batches_and_ranks_have_others(
    ldm_module: LatentDiffusionModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, seen = spied(ldm_module, monkeypatch), logged(ldm_module, monkeypatch)
    ldm_module._trainer = SimpleNamespace(world_size=2)  # type: ignore[assignment]
    moments = torch.stack([torch.full((16, 2, 64, 64), 14.0), torch.full((16, 2, 64, 64), 8.0)], dim=1)
    for rank, batch in ((0, 0), (0, 0), (1, 0), (0, 1)):
        monkeypatch.setattr(type(ldm_module), "global_rank", rank)
        ldm_module.validation_step(moments, batch)
    assert seen == {"val/loss": 1}  # of the first head
    first, again, *others = calls
    assert all(torch.equal(a, b) for a, b in zip(first[:3], again[:3], strict=True))
    for _, t, noise, _ in others:
        assert not torch.equal(t, first[1])
        assert not torch.equal(noise, first[2])
    assert first[0].eq(1).all()  # (14 - 10) / 4: the mean of the posterior, without augmentation
    # Times are stratified. Latents of 2 x 64 x 64 values have a mean of log(sqrt(2)).
    u = torch.special.ndtr(torch.logit(first[1]) - 0.5 * math.log(2))
    assert (16 * u).floor().tolist() == list(range(16))


def test_the_denoiser_sees_the_augmentation_then_the_labels_that_are_not_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    conditioning = Conditioning([Label("Smiling", "binary"), Label("Age", "number", mean=40.0, std=10.0)], 0.5, 0.0)
    network = UNet(2, width=8, multipliers=[1, 2], num_blocks=1, attention_levels=[], label_channels=8 + 4)
    module = LatentDiffusionModule(
        VAE(latent_channels=2, channels=8, multipliers=[1, 2], num_blocks=1, attention=False),
        Denoiser(network, RectifiedFlow()), DenoisingLoss(LogitNormalTime()), EulerSampler(2), Augmentation(0.5),
        partial(torch.optim.AdamW, lr=1e-3), WarmupDecay(), seed=0, conditioning=conditioning,
    )  # fmt: skip
    seen: list[Tensor] = []
    network.embed_label.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    monkeypatch.setattr(module, "log_terms", lambda terms: None)
    monkeypatch.setattr(module, "log", lambda name, value, **_: None)
    module._trainer = SimpleNamespace(world_size=1, global_rank=0)  # type: ignore[assignment]
    batch = torch.rand(64, 2, 2, 4, 4), torch.tensor([[1.0, 30.0]] * 63 + [[1.0, float("nan")]])
    module.training_step(batch, 0)
    (condition,) = seen
    smiling, age = condition[:, 8:10], condition[:63, 10:]
    assert condition[:, :8].any(1).float().mean() > 0.8
    assert {tuple(row) for row in smiling.tolist()} == {(1.0, 1.0), (0.0, 0.0)}
    assert {tuple(row) for row in age.tolist()} == {(-1.0, 1.0), (0.0, 0.0)}
    module.validation_step(batch, 0)
    assert seen[1].tolist() == [[0.0] * 8 + [1, 1, -1, 1]] * 63 + [[0.0] * 8 + [1, 1, 0, 0]]
    assert module.latent_shape == (2, 4, 4)


def test_previews_show_two_values_of_each_label_with_the_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    labels = [Label("Smiling", "binary"), Label("Age", "number", mean=40.0, std=10.0, low=1.0, high=45.0)]
    network = UNet(2, width=8, multipliers=[1, 2], num_blocks=1, attention_levels=[], label_channels=4)
    module = LatentDiffusionModule(
        VAE(latent_channels=2, channels=8, multipliers=[1, 2], num_blocks=1, attention=False),
        Denoiser(network, RectifiedFlow()), DenoisingLoss(LogitNormalTime()), EulerSampler(1), None,
        partial(torch.optim.AdamW, lr=1e-3), WarmupDecay(), seed=0, conditioning=Conditioning(labels),
    )  # fmt: skip
    module.label_rows, module.latent_shape = torch.tensor([[1.0, 20.0], [0.0, 42.0]]), torch.Size((2, 4, 4))
    seen: list[tuple[Tensor, Tensor]] = []
    network.register_forward_pre_hook(lambda network, inputs: seen.append((inputs[0], inputs[2])))
    assert module.preview().shape == (16 + 8 + 8, 3, 8, 8)
    (noise, drawn), (same, smiling), (_, age) = seen
    assert {(smiling, round(age, 3)) for smiling, _, age, _ in drawn.tolist()} == {(1, -2), (0, 0.2)}
    assert torch.equal(same, noise[:4].repeat(2, 1, 1, 1))
    assert smiling[:, 0].tolist() == [0.0] * 4 + [1.0] * 4
    assert torch.equal(smiling[:, 2:], drawn[:4, 2:].repeat(2, 1))
    assert age[:, 2].tolist() == pytest.approx([-1.0] * 4 + [0.5] * 4)  # 30, and 45 instead of 50
    module.preview()  # has the same noise and labels again
    assert all(torch.equal(again, first) for again, first in zip(seen[3], (noise, drawn), strict=True))


def test_previews_outlive_the_batch_whose_memory_is_used_again(
    vae_module: VAEModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged(vae_module, monkeypatch)
    batch = torch.rand(4, 3, 16, 16) * 2 - 1
    before = batch.clone()
    vae_module.validation_step(batch, 0)
    batch.zero_()
    assert torch.equal(vae_module.preview()[:4], before)


def test_schedules_outside_of_their_range_are_rejected() -> None:
    require_range("skip_dropout", Constant(end=1.0), 0, 1)
    with pytest.raises(UserError, match=r"model\.skip_dropout\.end=2 must be from 0 to 1"):
        require_range("skip_dropout", Constant(end=2), 0, 1)
