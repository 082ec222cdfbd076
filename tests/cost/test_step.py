"""FLOPs and bytes by hand, published figures, and a measured peak of memory."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from latentfaces.annealing import Linear, WarmupDecay
from latentfaces.autoencoder import VAE, PerceptualDistance, VAELoss
from latentfaces.autoencoder.discriminator import PatchDiscriminator
from latentfaces.cost.step import BareStep, Meter, count_step, forward_flops, without_memory
from latentfaces.diffusion import Denoiser, DenoisingLoss, DiT, EulerSampler, LogitNormalTime, RectifiedFlow
from latentfaces.nn import SelfAttention
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


def test_flops_of_one_layer_are_two_for_each_multiplication() -> None:
    x = torch.zeros(2, 3, 8, 8)
    assert forward_flops(lambda: nn.Conv2d(3, 5, 3, padding=1)(x)) == 2 * (2 * 8 * 8) * 5 * (3 * 9)
    assert forward_flops(lambda: nn.Linear(7, 11)(torch.zeros(4, 7))) == 2 * 4 * 7 * 11


@pytest.mark.parametrize("gpu", [True, False])
def test_flops_of_attention_are_those_of_its_products(gpu: bool) -> None:
    b, n, width, heads = 2, 6, 16, 2
    products = 2 * b * n * width * 4 * width  # queries, keys, values, output
    scores_and_mixing = 2 * (2 * b * n * n * width)
    with without_memory(gpu):
        layer = SelfAttention(width, heads)
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
    # Peebles & Xie 2023, table 4, at latents of 32x32x4; their GFLOPs count a multiply-add as one.
    cost = count_step(partial(dit_module, **options), batch_size=2, resolution=256)
    assert cost.parts["denoiser"].flops / 2e9 == pytest.approx(published, rel=0.01)
    assert cost.flops / 2 == pytest.approx(3 * cost.parts["denoiser"].flops, rel=0.05)


def test_bytes_alive_moved_and_at_the_most() -> None:
    meter = Meter()
    x, weight = torch.zeros(10, 20), torch.zeros(20, 30)
    assert meter.hold([x, weight, x[2:]]) == 4 * (200 + 600)
    with meter:
        out = (x @ weight).relu()
    assert meter.peak - 3200 == 2 * 4 * 300  # the product and what relu makes of it
    assert meter.alive - 3200 == 4 * 300
    assert meter.moved == 4 * (200 + 600 + 300) + 4 * (300 + 300)
    with meter:
        out.view(-1)[1:]  # moves nothing
    assert meter.moved == 4 * (200 + 600 + 300) + 4 * (300 + 300)
    del out
    assert meter.alive == 3200
    with without_memory(gpu=True):
        nothing = torch.zeros(5)
        with Meter() as meter:
            assert nothing.device.type == "cpu"  # asking moves nothing
    assert meter.moved == 0


def test_what_is_held_is_four_bytes_a_parameter_and_copy() -> None:
    cost = count_step(vae_module, batch_size=2, resolution=16, num_averages=2)
    parameters = cost.parts["encoder"].parameters + cost.parts["decoder"].parameters
    assert cost.parts["encoder"].parameters == sum(p.numel() for p in vae_module().autoencoder.encoder.parameters())
    assert cost.gradients == 4 * parameters
    assert cost.weights == 4 * (parameters + 8)  # mean and deviation of 4 latent channels
    assert cost.averages == 2 * 4 * parameters
    assert cost.optimizer == pytest.approx(2 * 4 * parameters, rel=1e-2)  # and a count of steps
    assert cost.checkpoint == cost.weights + cost.optimizer + cost.averages
    assert cost.exported == 2 * 4 * parameters + 4 * 8  # whole, and in halves


def test_activations_grow_with_the_batch_and_shrink_in_bfloat16_and_with_checkpointing() -> None:
    def activations(batch_size: int, bfloat16: bool = False, **options: Any) -> int:
        return count_step(partial(vae_module, **options), batch_size, 32, bfloat16).activations

    one, four = activations(2), activations(8)
    assert four / one == pytest.approx(4, rel=0.05)
    assert activations(8, bfloat16=True) < 0.85 * four
    assert activations(8, gradient_checkpointing=True) < 0.85 * four


def test_an_adversary_and_a_perceptual_network_cost_too() -> None:
    alone, judged = (count_step(partial(vae_module, adversary), 2, 32) for adversary in (False, True))
    assert set(judged.parts) - set(alone.parts) == {"discriminator", "perceptual network"}
    discriminator = judged.parts["discriminator"]
    assert judged.gradients - alone.gradients == 4 * discriminator.parameters
    assert judged.checkpoint - alone.checkpoint == pytest.approx(3 * 4 * discriminator.parameters, rel=0.01)
    extra = 2 * judged.parts["perceptual network"].flops + 6 * discriminator.flops  # backward at least as much
    assert judged.flops - alone.flops > extra


def measured_peak(bare: BareStep) -> int:
    """Bytes that a real step allocates at the most, beyond those that are there before."""
    bare()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        bare()
    alive = peak = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize(
    ("make", "batch_size"), [(vae_module, 4), (partial(dit_module, width=128, depth=4, num_heads=4), 8)]
)
def test_counted_memory_is_the_measured_one(make: Any, batch_size: int, bfloat16: bool) -> None:
    cost = count_step(make, batch_size, 64, bfloat16, num_averages=0, gpu=False)
    bare = BareStep(make(), batch_size, 64, bfloat16, torch.device("cpu"))
    measured = measured_peak(bare)
    # Real steps begin with the gradients of the last one there.
    assert cost.activations == pytest.approx(measured, rel=0.15)


def test_a_light_decoder_takes_a_quarter_of_the_flops() -> None:
    def decoder(**options: Any) -> int:
        with without_memory(gpu=True):
            vae = VAE(channels=128, multipliers=(1, 2, 4, 4), **options)
            return forward_flops(lambda: vae.decode(torch.zeros(1, 4, 32, 32)))

    assert decoder() / decoder(decoder_channels=64) == pytest.approx(4, rel=0.03)


def test_random_perceptual_weights_need_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("asked for weights"))
    distance: Tensor = PerceptualDistance.untrained("squeeze")(torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64))
    assert distance.isfinite()
