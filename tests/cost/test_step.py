"""FLOPs and bytes against closed forms, published figures and a measured peak of memory."""

from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from latentfaces.annealing import Linear, WarmupDecay
from latentfaces.autoencoder import VAE, PerceptualDistance, VAELoss
from latentfaces.autoencoder.discriminator import PatchDiscriminator
from latentfaces.cost.step import Meter, TrainingStep, count_step, fake_gpu, num_bytes
from latentfaces.diffusion import Denoiser, DenoisingLoss, DiT, EulerSampler, LogitNormalTime, RectifiedFlow
from latentfaces.nn import SelfAttention, choose_kernel, choose_upsampling
from latentfaces.training import Adversary, LatentDiffusionModule, VAEModule

ADAMW = partial(torch.optim.AdamW, lr=1e-3, fused=True)
SMALL = {"latent_channels": 4, "channels": 16, "multipliers": (1, 2), "num_blocks": 1}


def vae_module(adversary: bool = False, **options: Any) -> VAEModule:
    loss = VAELoss(perceptual=PerceptualDistance.untrained("squeeze") if adversary else None)
    judge = Adversary(PatchDiscriminator(8, 1), ADAMW) if adversary else None
    vae = VAE(**SMALL | options)  # type: ignore[arg-type]
    return VAEModule(vae, loss, Linear(0.0, 1e-6, 10), ADAMW, WarmupDecay(), 0, adversary=judge)


def dit_module(**options: Any) -> LatentDiffusionModule:
    denoiser = Denoiser(DiT(4, **options), RectifiedFlow())
    loss = DenoisingLoss(LogitNormalTime())
    vae = VAE(latent_channels=4, channels=4, multipliers=(1, 1, 1, 1), num_blocks=1)
    return LatentDiffusionModule(vae, denoiser, loss, EulerSampler(2), None, ADAMW, WarmupDecay(), 0)


@torch.no_grad()
def forward_flops(run: Any) -> int:
    with Meter() as meter:
        run()
    return meter.flops


def test_flops_of_one_layer_are_two_for_each_multiplication() -> None:
    x = torch.zeros(2, 3, 8, 8)
    assert forward_flops(lambda: nn.Conv2d(3, 5, 3, padding=1)(x)) == 2 * (2 * 8 * 8) * 5 * (3 * 9)
    assert forward_flops(lambda: nn.Linear(7, 11)(torch.zeros(4, 7))) == 2 * 4 * 7 * 11


def test_backward_of_a_linear_layer_has_twice_the_flops_of_forward() -> None:
    x = torch.zeros(4, 7, requires_grad=True)
    with Meter() as meter:
        nn.Linear(7, 11)(x).sum().backward()
    assert meter.flops == 3 * 2 * 4 * 7 * 11


def test_flops_of_attention_are_those_of_its_products() -> None:
    b, n, width, heads = 2, 6, 16, 2
    products = 2 * b * n * width * 4 * width  # queries, keys, values, output
    scores_and_mixing = 2 * (2 * b * n * n * width)
    with fake_gpu():
        layer = SelfAttention(width, heads)
        choose_kernel(layer, "sdpa")
        run = partial(layer, torch.zeros(b, n, width), torch.zeros(2, n, width // heads))
        assert forward_flops(run) == products + scores_and_mixing


@pytest.mark.parametrize(
    ("options", "published"),
    [
        ({"width": 384, "depth": 12, "num_heads": 6}, 6.06),
        ({"width": 768, "depth": 12, "num_heads": 12}, 23.01),
    ],
)
def test_dit_has_the_published_gflops(options: dict[str, int], published: float) -> None:
    # Peebles & Xie 2023, Table 4, at latents of 32x32x4. Their GFLOPs count a multiply-add as one.
    with fake_gpu():
        denoiser = dit_module(**options).denoiser
        forward = forward_flops(lambda: denoiser(torch.zeros(1, 4, 32, 32), torch.full((1,), 0.5)))
    assert forward / 2e9 == pytest.approx(published, rel=0.01)


def test_a_step_of_a_dit_takes_three_forward_passes() -> None:
    options = {"width": 384, "depth": 3, "num_heads": 6}
    with fake_gpu():
        denoiser = dit_module(**options).denoiser
        forward = forward_flops(lambda: denoiser(torch.zeros(1, 4, 32, 32), torch.full((1,), 0.5)))
    cost = count_step(partial(dit_module, **options), (2, 2, 4, 32, 32))
    assert cost.flops == pytest.approx(3 * 2 * forward, rel=0.025)


def test_memory_counts_live_tensors_once() -> None:
    with Meter() as meter:
        x, weight = torch.zeros(10, 20), torch.zeros(20, 30)
        part = x[2:]
        assert meter.current == 4 * (200 + 600)
        out = (x @ weight).relu()
        assert meter.peak - 3200 == 2 * 4 * 300  # the product, and the result of relu
        assert meter.current - 3200 == 4 * 300
        del out, x
        assert meter.current == 3200
        del part
        assert meter.current == 2400


def test_parameters_are_held_at_four_bytes_a_copy() -> None:
    cost = count_step(vae_module, (2, 3, 16, 16), num_averages=2)
    vae = vae_module().autoencoder
    assert cost.parameters == {
        "encoder": sum(p.numel() for p in vae.encoder.parameters()),
        "decoder": sum(p.numel() for p in vae.decoder.parameters()),
    }
    parameters = sum(cost.parameters.values())
    # Weights, gradients, two moments of AdamW and two averages.
    assert cost.state == pytest.approx(6 * 4 * parameters, rel=1e-2)
    assert cost.checkpoint == pytest.approx(5 * 4 * parameters, rel=1e-2)
    assert cost.state - cost.checkpoint == pytest.approx(4 * parameters, rel=1e-4)


def test_activations_grow_with_the_batch_and_shrink_in_bfloat16_and_with_checkpointing() -> None:
    def activations(batch_size: int, bfloat16: bool = False, **options: Any) -> int:
        return count_step(partial(vae_module, **options), (batch_size, 3, 32, 32), bfloat16).activations

    one, four = activations(2), activations(8)
    assert four / one == pytest.approx(4, rel=0.05)
    assert activations(8, bfloat16=True) < 0.85 * four
    assert activations(8, gradient_checkpointing=True) < 0.85 * four


def test_an_adversary_and_a_perceptual_network_cost_too() -> None:
    alone, judged = (count_step(partial(vae_module, adversary), (2, 3, 32, 32)) for adversary in (False, True))
    assert set(judged.parameters) - set(alone.parameters) == {"discriminator"}
    discriminator = judged.parameters["discriminator"]
    assert judged.checkpoint - alone.checkpoint == pytest.approx(3 * 4 * discriminator, rel=0.01)
    with fake_gpu():
        module, images = vae_module(adversary=True), torch.zeros(1, 3, 32, 32)  # of the two in a batch
        assert module.loss.perceptual is not None
        assert module.adversary is not None
        perceptual = forward_flops(partial(module.loss.perceptual, images, images))
        judging = forward_flops(partial(module.adversary.discriminator, images))
        frozen = num_bytes(module.loss.perceptual.unregistered[0].parameters())
    assert judged.flops - alone.flops > 2 * perceptual + 6 * judging  # backward has at least as many
    # The gradients of the discriminator exist only within a step.
    assert judged.state - alone.state == pytest.approx(frozen + 3 * 4 * discriminator, rel=0.01)


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize(
    ("make", "batch_size"),
    [
        (vae_module, 4),
        (partial(vae_module, adversary=True), 4),
        (partial(dit_module, width=128, depth=4, num_heads=4), 8),
    ],
)
def test_counted_memory_is_the_measured_one(make: Any, batch_size: int, bfloat16: bool) -> None:
    group_norm = F.group_norm
    module = make()
    choose_kernel(module, "sdpa")
    choose_upsampling(module, phased=False)
    shape = (3, 64, 64) if isinstance(module, VAEModule) else (2, 4, 8, 8)
    step = TrainingStep(module, torch.rand(batch_size, *shape))
    with patch.object(F, "group_norm", lambda x, *args, **kwargs: group_norm(x.float(), *args, **kwargs)):
        step(bfloat16)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            step(bfloat16)
    live = measured = 0
    for event in seen.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            live += event.nbytes()
            measured = max(measured, live)
    counted = count_step(make, (batch_size, *shape), bfloat16).activations
    # The measured peak begins with the weights, gradients and states of the step before.
    assert counted == pytest.approx(measured, rel=0.1)


def test_an_adversarial_step_trains_both_networks() -> None:
    module = vae_module(adversary=True)
    step = TrainingStep(module, torch.rand(2, 3, 32, 32))
    assert module.adversary is not None
    discriminator = module.adversary.discriminator
    before = [p.clone() for p in (*module.network.parameters(), *discriminator.parameters())]
    step(bfloat16=False)
    after = [*module.network.parameters(), *discriminator.parameters()]
    changed = [not torch.equal(old, new) for old, new in zip(before, after, strict=True)]
    assert all(changed[-4:])
    assert any(changed[: len(list(module.network.parameters()))])
    assert all(p.grad is None for p in discriminator.parameters())


def test_a_light_decoder_takes_a_quarter_of_the_flops() -> None:
    def decoder(**options: Any) -> int:
        with fake_gpu():
            vae = VAE(channels=128, multipliers=(1, 2, 4, 4), **options)
            return forward_flops(lambda: vae.decode(torch.zeros(1, 4, 32, 32)))

    assert decoder() / decoder(decoder_channels=64) == pytest.approx(4, rel=0.03)


def test_random_perceptual_weights_need_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("asked for weights"))
    distance = PerceptualDistance.untrained("squeeze")(torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64))
    assert distance.isfinite()
