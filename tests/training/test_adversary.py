"""Adversary: gradients compared with the textbook objective, and its own training."""

import copy
import io
import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentfaces.annealing import Constant, WarmupDecay
from latentfaces.autoencoder import VAE, PatchDiscriminator, VAELoss, discriminator_loss
from latentfaces.training import Adversary, VAEModule
from latentfaces.training.callbacks import BestWeights

KL_WEIGHT, WEIGHT = 0.01, 0.7
START = 5
CPU = torch.device("cpu")


class Contrast(nn.Module):
    """A stand-in for a perceptual distance: how the pictures' squares differ."""

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        return (reconstructions.square() - images.square()).square().mean()


def an_adversary(seed: int = 0, optimizer: Any = None, **options: Any) -> Adversary:
    """Return an adversary of a few hundred weights."""
    torch.manual_seed(seed)
    optimizer = optimizer or partial(torch.optim.Adam, lr=1e-2)
    return Adversary(PatchDiscriminator(channels=4, num_layers=1), optimizer, **{"weight": WEIGHT, **options})


def ready(adversary: Adversary) -> Adversary:
    """Return the adversary in its state at the start of training."""
    adversary.begin(CPU)
    return adversary


def pictures(seed: int, num: int = 2) -> Tensor:
    """Return random pictures (num, 3, 16, 16) in [-1, 1]."""
    return torch.rand(num, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def a_module(loss: VAELoss | None = None, adversary: Adversary | None = None, **vae_options: Any) -> VAEModule:
    """Return a module with an adversary that begins with step 5."""
    adversary = adversary or an_adversary(start_step=START)
    torch.manual_seed(1)
    vae = VAE(3, channels=8, multipliers=[1, 2], num_blocks=1, attention=False, **vae_options)
    for parameter in vae.parameters():
        nn.init.normal_(parameter, std=0.1)
    return VAEModule(
        vae, loss or VAELoss("mse"), Constant(end=KL_WEIGHT), partial(torch.optim.SGD, lr=1.0),
        WarmupDecay(warmup_steps=3, decay_share=0.0), seed=0, skip_dropout=Constant(end=0.5), adversary=adversary,
    )  # fmt: skip


def the_adversary_of(module: VAEModule) -> Adversary:
    """Return it, which the type allows to be missing."""
    assert module.adversary is not None
    return module.adversary


def begin(
    module: VAEModule,
    monkeypatch: pytest.MonkeyPatch,
    step: int = START,
    accumulate: int = 1,
    clip: float | None = None,
) -> dict[str, float]:
    """Put a module at a step of training; what it logs from then on."""
    seen: dict[str, float] = {}
    monkeypatch.setattr(module, "log_dict", lambda values, **_: seen.update(values))
    monkeypatch.setattr(type(module), "global_step", step)
    module._trainer = SimpleNamespace(  # type: ignore[assignment]
        accumulate_grad_batches=accumulate, callbacks=[], global_rank=0, global_step=step, gradient_clip_val=clip,
        log_every_n_steps=1, lr_scheduler_configs=[], max_epochs=None, max_steps=100, strategy=None,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(
            total=SimpleNamespace(ready=0)))),
    )  # fmt: skip
    module.on_fit_start()
    return seen


def train_step(module: VAEModule, images: Tensor, seed: int = 2) -> Tensor:
    """The value of a training step with the gradients that it gives."""
    torch.manual_seed(seed)
    loss = module.training_step(images, 0)
    loss.backward()
    return loss.detach()


def gradients(network: nn.Module) -> dict[str, Tensor]:
    """Copies of the gradients that there are, by name."""
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def are_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-4) -> bool:
    """Return True if gradients are equal up to a fraction of the largest value of each."""
    return found.keys() == expected.keys() and all(
        (found[name] - gradient).abs().max() <= tolerance * gradient.abs().max() + 1e-7  # of some nothing is left
        for name, gradient in expected.items()
    )


def weights(adversary: Adversary) -> Tensor:
    """A copy of all of the discriminator's weights in a row."""
    return nn.utils.parameters_to_vector(adversary.discriminator.parameters()).detach().clone()


def textbook_gradients(module: VAEModule, images: Tensor, seed: int = 2) -> tuple[float, dict[str, Tensor]]:
    """Value and gradients of distortion + weight x adaptive x adversarial + KL, all of it in one graph."""
    vae, loss, discriminator = module.autoencoder, module.loss, the_adversary_of(module).discriminator
    torch.manual_seed(seed)
    reconstructions, posterior, latents = vae(images, 0.5)
    distortion = loss.distortion(images, reconstructions).total
    adversarial = -discriminator(reconstructions).mean()
    last = vae.decoder.head[-1].weight
    lengths = [torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (distortion, adversarial)]
    adaptive = (lengths[0] / (lengths[1] + 1e-4)).clamp(0, the_adversary_of(module).max_adaptive_weight).detach()
    total = distortion + WEIGHT * adaptive * adversarial + KL_WEIGHT * loss.rate(posterior, images).total
    if loss.equivariance_weight:
        total = total + loss.equivariance_weight * loss.equivariance(images, latents, vae.decode)
    total.backward()
    found = gradients(vae)
    vae.zero_grad()
    discriminator.zero_grad()
    return total.item(), found


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # options of the loss, options of the VAE
    "mse": ({"reconstruction": "mse"}, {}),
    "l1 with linear output": ({"reconstruction": "l1"}, {"output": "linear"}),
    "perceptual": ({"perceptual": Contrast(), "perceptual_weight": 0.3}, {}),
    "equivariance": ({"equivariance_weight": 0.25}, {}),
    "skips": ({"kl_target": 0.1, "kl_reduction": "latent"}, {"skip_connections": True}),
    "checkpointing": ({}, {"gradient_checkpointing": True}),
}


@pytest.mark.parametrize(("of_loss", "of_vae"), CASES.values(), ids=CASES)
def test_value_and_gradient_of_a_step_are_those_of_the_textbooks_objective(
    of_loss: dict[str, Any], of_vae: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, images = a_module(VAELoss(**of_loss), **of_vae), pictures(0)
    begin(module, monkeypatch)
    value, expected = textbook_gradients(module, images)
    assert train_step(module, images).item() == pytest.approx(value, rel=1e-5)
    found = gradients(module.autoencoder)
    assert len(found) == len(list(module.autoencoder.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in found.values())
    assert are_close(found, expected)


def test_adversarial_gradient_is_as_long_as_the_others_at_the_last_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    module, images = a_module(adversary=an_adversary(start_step=START, weight=1.0)), pictures(0)
    begin(module, monkeypatch)
    last = module.autoencoder.last_layer
    torch.manual_seed(2)
    reconstructions, *_ = module.autoencoder(images, 0.5)
    (others,) = torch.autograd.grad(module.loss.distortion(images, reconstructions).total, last)
    module.autoencoder.zero_grad()
    train_step(module, images)  # the KL has no gradient at the last layer
    assert last.grad is not None
    assert (last.grad - others).norm().item() == pytest.approx(others.norm().item(), rel=0.02)


def test_adaptive_weight_of_a_step_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    module = a_module(adversary=an_adversary(start_step=START, max_adaptive_weight=1e-3))
    seen = begin(module, monkeypatch)
    train_step(module, pictures(0))
    assert seen["train/adaptive_weight"] == pytest.approx(1e-3)


def test_logged_terms_add_up_to_the_value_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = VAELoss("l1", perceptual=Contrast(), perceptual_weight=0.3, equivariance_weight=0.25)  # type: ignore[arg-type]
    module = a_module(loss)
    seen = begin(module, monkeypatch)
    value = train_step(module, pictures(0)).item()
    expected = (
        seen["train/reconstruction"]
        + 0.3 * seen["train/perceptual"]
        + WEIGHT * seen["train/adaptive_weight"] * seen["train/adversarial"]
        + KL_WEIGHT * seen["train/kl"]
        + 0.25 * seen["train/equivariance"]
    )
    assert seen["train/loss"] == pytest.approx(value)
    assert value == pytest.approx(expected, rel=1e-5)
    assert all(seen[f"train/{name}"] != 0 for name in ("perceptual", "adversarial", "adaptive_weight", "equivariance"))


def test_nothing_of_the_discriminator_happens_before_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    module, images = a_module(), pictures(0)
    adversary = the_adversary_of(module)
    seen = begin(module, monkeypatch, step=START - 1)
    before = weights(adversary)
    calls: list[nn.Module] = []
    adversary.discriminator.register_forward_hook(lambda discriminator, *_: calls.append(discriminator))
    value = train_step(module, images).item()
    module.step_adversary()
    assert calls == []
    assert torch.equal(weights(adversary), before)
    assert value == pytest.approx(seen["train/reconstruction"] + KL_WEIGHT * seen["train/kl"], rel=1e-5)
    assert "train/adversarial" not in seen

    begin(module, monkeypatch, step=START)
    train_step(module, images)
    module.step_adversary()
    assert len(calls) == 2  # to judge and to learn
    assert not torch.equal(weights(adversary), before)


@pytest.mark.parametrize("spoiled", ["vae", "discriminator"])
def test_a_gradient_that_is_no_number_leaves_the_step_out_of_both(
    spoiled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = a_module()
    adversary = the_adversary_of(module)
    begin(module, monkeypatch)
    monkeypatch.setattr(module, "log", lambda *_: None)
    monkeypatch.setattr(module.finite, "on_nonfinite", "skip")
    optimizer = torch.optim.AdamW(module.parameters())

    def step() -> list[bool]:
        """Take one; whether it has changed the VAE and the discriminator."""
        before = weights(adversary), nn.utils.parameters_to_vector(module.parameters())
        module.configure_gradient_clipping(optimizer)
        optimizer.step()
        after = weights(adversary), nn.utils.parameters_to_vector(module.parameters())
        return [not torch.equal(*pair) for pair in zip(before, after, strict=True)]

    train_step(module, pictures(0))
    network = module.autoencoder if spoiled == "vae" else adversary.discriminator
    next(p.grad for p in network.parameters() if p.grad is not None).fill_(torch.nan)
    assert step() == [False, False]
    assert len(optimizer.state) == 0
    assert not gradients(module)
    assert not gradients(adversary.discriminator)
    train_step(module, pictures(0))
    assert step() == [True, True]


def test_vae_knows_nothing_of_the_discriminators_weights() -> None:
    module = a_module()
    theirs = {id(p) for p in the_adversary_of(module).discriminator.parameters()}
    assert theirs.isdisjoint(id(p) for p in module.parameters())
    assert not any("discriminator" in name for name in module.state_dict())


def test_judging_leaves_no_gradient_behind_and_can_still_be_learnt_from() -> None:
    adversary = ready(an_adversary())
    layer = nn.Conv2d(3, 3, 1)
    reconstructions = layer(pictures(0))
    adversarial = adversary.generator_loss(reconstructions, torch.ones_like(reconstructions), layer.weight)
    assert all(p.grad is None for p in (*adversary.discriminator.parameters(), *layer.parameters()))
    assert not adversarial.gradient.requires_grad
    reconstructions.sum().backward()  # the graph is still there
    assert layer.weight.grad is not None


def test_judgement_is_the_one_computed_by_hand() -> None:
    adversary = ready(an_adversary(weight=0.5))
    adversary.discriminator.layers = nn.Sequential(nn.Conv2d(3, 1, 1, bias=False))
    nn.init.constant_(adversary.discriminator.layers[0].weight, 3.0)  # a logit is thrice the sum of the colours
    scale = torch.ones((), requires_grad=True)
    reconstructions = scale * torch.full((1, 3, 2, 2), 0.5)
    adversarial = adversary.generator_loss(reconstructions, torch.full((1, 3, 2, 2), 0.25), scale)
    # Of minus the mean of 4 logits of 4.5: the value -4.5, the gradient -0.75 at each of 12 values. At `scale`, which
    # every value grows by a half with, the gradients are 12 x 0.25 / 2 = 1.5 and 12 x 0.75 / 2 = 4.5 long.
    adaptive = 1.5 / 4.5001
    assert adversarial.logged["train/adaptive_weight"].item() == pytest.approx(adaptive)
    assert adversarial.logged["train/adversarial"].item() == -4.5
    assert adversarial.loss.item() == pytest.approx(-4.5 * 0.5 * adaptive)
    assert torch.allclose(adversarial.gradient, torch.full((1, 3, 2, 2), 0.25 - 0.75 * 0.5 * adaptive))


def test_learning_gives_the_discriminator_its_gradients_and_the_vae_none() -> None:
    adversary, layer = ready(an_adversary()), nn.Conv2d(3, 3, 1)
    images, reconstructions = pictures(0), layer(pictures(1))
    logged = adversary.discriminator_step(images, reconstructions, share=1.0)
    assert layer.weight.grad is None
    found = gradients(adversary.discriminator)
    adversary.discriminator.zero_grad()
    real, fake = adversary.discriminator(images), adversary.discriminator(reconstructions.detach())
    loss = discriminator_loss(real, fake)
    loss.backward()
    assert are_close(found, gradients(adversary.discriminator))
    assert logged["train/discriminator"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert logged["train/logit_gap"].item() == pytest.approx((real.mean() - fake.mean()).item(), abs=1e-6)


def test_gradients_of_two_halves_with_half_a_share_each_are_those_of_the_whole() -> None:
    whole, halves = ready(an_adversary()), ready(an_adversary())
    images, reconstructions = pictures(0, 4), pictures(1, 4)
    whole.discriminator_step(images, reconstructions, share=1.0)
    for half in (slice(0, 2), slice(2, 4)):
        halves.discriminator_step(images[half], reconstructions[half], share=0.5)
    assert are_close(gradients(halves.discriminator), gradients(whole.discriminator))


def test_accumulated_batches_have_their_share_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for accumulate in (1, 4):
        module = a_module()
        begin(module, monkeypatch, accumulate=accumulate)
        train_step(module, pictures(0))
        found.append(gradients(the_adversary_of(module).discriminator))
    assert are_close({name: 4 * quarter for name, quarter in found[1].items()}, found[0])


def test_an_adversary_that_never_begins_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = a_module()
    begin(module, monkeypatch, step=START - 1)  # as far as a limit of time or early stopping lets it
    module.on_train_batch_start(None, 0)
    module.on_train_end()
    assert "the adversary never began: training ended at step 4, before model.adversary.start_step=5" in (
        capsys.readouterr().err
    )
    begin(module, monkeypatch)
    module.on_train_batch_start(None, 0)
    module.on_train_end()
    assert not capsys.readouterr().err


@pytest.mark.parametrize("begun", [False, True])
def test_best_weights_are_forgotten_when_the_adversary_begins_and_only_then(
    begun: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also where a resume lowers its first step, or adds it to a training that has passed this step."""
    first, best = a_module(), BestWeights(tmp_path)
    begin(first, monkeypatch)
    the_adversary_of(first).begun = begun
    checkpoint: dict[str, Any] = {}
    first.on_save_checkpoint(checkpoint)
    second = a_module()
    second.on_load_checkpoint(saved(checkpoint))
    begin(second, monkeypatch, step=START + 3)
    second.trainer.callbacks = [best]  # type: ignore[attr-defined]
    best.best = 0.25
    second.on_train_batch_start(None, 0)
    assert best.best == (0.25 if begun else math.inf)


def test_teardown_frees_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    module = a_module()
    begin(module, monkeypatch)
    module.teardown("fit")
    assert the_adversary_of(module).optimizer is None


def give_gradient(adversary: Adversary, value: float) -> None:
    """Give every weight of the discriminator this gradient."""
    for parameter in adversary.discriminator.parameters():
        parameter.grad = torch.full_like(parameter, value)


@pytest.mark.parametrize(("clip", "length"), [(None, 3.0), (0.5, 0.5), (100.0, 3.0)])
def test_step_is_as_long_as_the_clipped_gradient_times_the_rate(clip: float | None, length: float) -> None:
    adversary = ready(an_adversary(optimizer=partial(torch.optim.SGD, lr=0.1)))
    before = weights(adversary)
    give_gradient(adversary, 3.0 / len(before) ** 0.5)  # of length 3
    adversary.step(rate=0.25, clip=clip)
    moved = before - weights(adversary)
    assert moved.norm().item() == pytest.approx(0.1 * 0.25 * length, rel=1e-3)
    assert (moved > 0).all()


def test_rate_is_a_multiple_of_the_peak_and_not_of_the_last_rate() -> None:
    adversary = ready(an_adversary(optimizer=partial(torch.optim.SGD, lr=0.1)))
    assert adversary.optimizer is not None
    rates = []
    for rate in (0.5, 0.5, 1.0, 0.0):
        give_gradient(adversary, 1.0)
        adversary.step(rate, clip=None)
        rates.append(adversary.optimizer.param_groups[0]["lr"])
    assert rates == [0.05, 0.05, 0.1, 0.0]


def test_learning_rate_and_clipping_are_those_of_the_vae(monkeypatch: pytest.MonkeyPatch) -> None:
    adversary = an_adversary(start_step=0, optimizer=partial(torch.optim.SGD, lr=1.0))
    module = a_module(adversary=adversary)
    begin(module, monkeypatch, step=1, clip=0.2)
    before = weights(adversary)
    give_gradient(adversary, 1.0)
    module.step_adversary()
    warmup = 2 / 4  # at step 1 of 3
    assert (weights(adversary) - before).norm().item() == pytest.approx(warmup * 0.2, rel=1e-3)


def test_step_begins_the_next_one_with_no_gradients_and_does_nothing_without() -> None:
    adversary = ready(an_adversary())
    adversary.discriminator_step(pictures(0), pictures(1), share=1.0)
    adversary.step(rate=1.0, clip=None)
    assert all(p.grad is None for p in adversary.discriminator.parameters())
    before, state = weights(adversary), copy.deepcopy(adversary.state_dict()["optimizer"])
    adversary.step(rate=0.5, clip=1.0)  # Adam would move on by its momentum
    assert torch.equal(weights(adversary), before)
    assert str(adversary.state_dict()["optimizer"]) == str(state)


def test_gradients_are_the_mean_over_ranks_before_they_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    adversary = ready(an_adversary(optimizer=partial(torch.optim.SGD, lr=1.0)))
    theirs = torch.randn(len(weights(adversary)), generator=torch.Generator().manual_seed(0))
    adversary.discriminator_step(pictures(0), pictures(1), share=1.0)
    ours = torch.cat([p.grad.flatten() for p in adversary.discriminator.parameters() if p.grad is not None])
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: flat.add_(theirs))
    mean = (ours + theirs) / 2
    before = weights(adversary)
    adversary.step(rate=1.0, clip=1e6)
    assert torch.allclose(before - weights(adversary), mean, atol=1e-6)

    before = weights(adversary)
    for parameter, gradient in zip(
        adversary.discriminator.parameters(), split_like(ours, adversary.discriminator), strict=True
    ):
        parameter.grad = gradient.clone()
    adversary.step(rate=1.0, clip=0.5)
    assert torch.allclose(before - weights(adversary), 0.5 * mean / mean.norm(), atol=1e-6)


def split_like(flat: Tensor, network: nn.Module) -> Iterable[Tensor]:
    """Cut a row of numbers into tensors like the parameters."""
    parameters = list(network.parameters())
    for part, parameter in zip(flat.split([p.numel() for p in parameters]), parameters, strict=True):
        yield part.view_as(parameter)


def learn_and_step(adversary: Adversary, steps: Iterable[int], rate: float = 1.0) -> None:
    """Train on pictures that the step's number decides."""
    for step in steps:
        adversary.discriminator_step(pictures(2 * step), pictures(2 * step + 1), share=1.0)
        adversary.step(rate, clip=1.0)


def saved(state: dict[str, Any]) -> dict[str, Any]:
    """A state after its way to a file and back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    restored: dict[str, Any] = torch.load(file)
    return restored


def test_restored_adversary_goes_on_bit_for_bit() -> None:
    first = ready(an_adversary())
    learn_and_step(first, range(3), rate=0.5)
    state = saved(first.state_dict())
    second = an_adversary(seed=1)
    second.load_state_dict(state)
    second.begin(CPU)
    assert torch.equal(weights(second), weights(first))
    for adversary in (first, second):
        learn_and_step(adversary, range(3, 6))
    assert torch.equal(weights(second), weights(first))


def test_settings_of_a_restored_adversary_are_those_of_the_config_and_not_those_that_were_saved() -> None:
    first = ready(an_adversary())
    learn_and_step(first, range(1), rate=0.125)
    second = an_adversary(optimizer=partial(torch.optim.Adam, lr=3e-2, betas=(0.5, 0.6)))
    second.load_state_dict(saved(first.state_dict()))
    second.begin(CPU)
    learn_and_step(second, range(1), rate=0.5)
    assert second.optimizer is not None
    assert second.optimizer.param_groups[0]["lr"] == 0.5 * 3e-2
    assert second.optimizer.param_groups[0]["betas"] == (0.5, 0.6)


def test_checkpoint_of_the_module_carries_the_adversary(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = a_module(), a_module(adversary=an_adversary(seed=1, start_step=START))
    begin(first, monkeypatch)
    train_step(first, pictures(0))
    first.step_adversary()
    checkpoint: dict[str, Any] = {}
    first.on_save_checkpoint(checkpoint)
    second.on_load_checkpoint(saved(checkpoint))
    begin(second, monkeypatch)
    assert torch.equal(weights(the_adversary_of(second)), weights(the_adversary_of(first)))


def test_checkpoint_of_a_training_without_adversary_lets_one_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    module = a_module()
    before = weights(the_adversary_of(module))
    module.on_load_checkpoint({"state_dict": {}})
    begin(module, monkeypatch)
    assert torch.equal(weights(the_adversary_of(module)), before)


def test_discriminator_learns_to_tell_photos_from_reconstructions() -> None:
    adversary = ready(an_adversary())
    bright, dark = pictures(0, 8).abs(), -pictures(1, 8).abs()
    gaps = []
    for _ in range(20):
        gaps.append(adversary.discriminator_step(bright, dark, share=1.0)["train/logit_gap"].item())
        adversary.step(rate=1.0, clip=None)
    assert gaps[-1] > gaps[0] + 1
