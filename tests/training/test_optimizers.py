"""Muon and AdamW as one optimiser: each weight gets exactly the step of its own."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW, Muon
from torch.optim.lr_scheduler import LambdaLR

from latentfaces.diffusion import Denoiser, DiT, RectifiedFlow, UNet
from latentfaces.training import MuonAdamW
from latentfaces.training.optimizers import adapt_state, is_hidden_matrix

FORMATS = [torch.contiguous_format, torch.channels_last]


def tiny_denoiser() -> Denoiser:
    torch.manual_seed(0)
    denoiser = Denoiser(DiT(2, width=16, depth=2, num_heads=2), RectifiedFlow())
    for parameter in denoiser.parameters():
        nn.init.normal_(parameter, std=0.1)
    return denoiser


def give_gradients(module: nn.Module, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_each_weight_takes_the_step_of_its_own_optimiser() -> None:
    ours, theirs = tiny_denoiser(), tiny_denoiser()
    optimizer = MuonAdamW(ours.named_parameters(), lr=1e-2, weight_decay=0.1)
    hidden = [p for name, p in theirs.named_parameters() if is_hidden_matrix(name, p)]
    rest = [p for name, p in theirs.named_parameters() if not is_hidden_matrix(name, p)]
    muon = Muon(hidden, lr=1e-2, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = AdamW(rest, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    for step in range(3):
        for module in (ours, theirs):
            give_gradients(module, step)
        optimizer.step()
        muon.step()
        adamw.step()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other), name


def test_hidden_matrices_are_those_inside_the_blocks() -> None:
    names = {name for name, p in tiny_denoiser().named_parameters() if is_hidden_matrix(name, p)}
    assert "network.blocks.0.attention.qkv.weight" in names
    assert "network.blocks.1.feed_forward.out.weight" in names
    assert not any("embed" in name or "head" in name.split(".")[1] or name.endswith("bias") for name in names)


def test_convolutions_are_matrices_of_their_outputs() -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(UNet(2, width=8, multipliers=(1,), num_blocks=1, attention_levels=()), RectifiedFlow())
    kernel = denoiser.network.down[0].block.conv1.weight
    before = kernel.detach().clone()
    optimizer = MuonAdamW(denoiser.named_parameters(), lr=1e-2, weight_decay=0.0)
    give_gradients(denoiser)
    optimizer.step()
    step = (kernel - before).detach().flatten(1)
    # Orthogonalised: nearly equal singular values, and a root mean square of 0.2 lr.
    singular = torch.linalg.svdvals(step)
    assert singular.max() / singular.min() < 2.5
    assert step.square().mean().sqrt().item() == pytest.approx(0.2 * 1e-2, rel=0.3)


def test_learning_rate_schedule_reaches_both() -> None:
    denoiser = tiny_denoiser()
    optimizer = MuonAdamW(denoiser.named_parameters(), lr=1e-2)
    schedule = LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)
    give_gradients(denoiser)
    optimizer.step()
    schedule.step()
    before = copy.deepcopy(denoiser.state_dict())
    optimizer.step()  # at rate 0 nothing moves
    assert all(torch.equal(before[name], value) for name, value in denoiser.state_dict().items())


def test_stored_and_loaded_it_goes_on_as_if_never_stopped() -> None:
    one, other = tiny_denoiser(), tiny_denoiser()
    first, second = MuonAdamW(one.named_parameters()), MuonAdamW(other.named_parameters())
    for step in range(4):
        if step == 2:
            other.load_state_dict(copy.deepcopy(one.state_dict()))
            second.load_state_dict(copy.deepcopy(first.state_dict()))
        give_gradients(one, step)
        first.step()
        if step >= 2:
            give_gradients(other, step)
            second.step()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_what_was_chosen_since_counts_more_than_what_was_stored() -> None:
    stored = MuonAdamW(tiny_denoiser().named_parameters(), lr=1e-3).state_dict()
    chosen = {"betas": (0.5, 0.6), "momentum": 0.7, "weight_decay": 0.25}
    optimizer = MuonAdamW(tiny_denoiser().named_parameters(), lr=1e-3, **chosen)
    optimizer.load_state_dict(stored)
    assert optimizer.adamw.param_groups[0]["betas"] == (0.5, 0.6)
    assert optimizer.muon.param_groups[0]["momentum"] == 0.7
    assert optimizer.muon.param_groups[0]["weight_decay"] == optimizer.adamw.param_groups[0]["weight_decay"] == 0.25


def test_gradients_are_cleared() -> None:
    denoiser = tiny_denoiser()
    optimizer = MuonAdamW(denoiser.named_parameters())
    give_gradients(denoiser)
    optimizer.step()
    optimizer.zero_grad()
    assert all(p.grad is None for p in [*denoiser.parameters(), *optimizer.flat])


def test_a_closure_computes_the_gradients_of_the_step() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 4), torch.randn(8, 4)
    optimizer = MuonAdamW(layer.named_parameters(), lr=1e-2)

    def closure() -> torch.Tensor:
        loss = layer(x).square().mean()
        loss.backward()
        return loss

    before = optimizer.step(closure).item()
    assert layer(x).square().mean().item() < before


def test_a_network_without_matrices_is_refused() -> None:
    with pytest.raises(ValueError, match="model/optimizer=adamw"):
        MuonAdamW(nn.LayerNorm(4).named_parameters())


def test_muon_steps_are_the_same_for_channels_last() -> None:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv2d(6, 5, 3))
    second = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv2d(6, 5, 3))
    second.load_state_dict(first.state_dict())
    second.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert not second[0].weight.is_contiguous()
    x = torch.randn(2, 4, 8, 8)
    for network in (first, second):
        optimizer = MuonAdamW(network.named_parameters(), lr=1e-2)
        network(x).square().sum().backward()
        optimizer.step()
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.allclose(one, other, atol=2e-4)  # Muon computes in bfloat16, here in another order


def test_settings_are_those_of_the_optimiser_and_not_of_the_checkpoint() -> None:
    (weight,) = nn.Linear(3, 1, bias=False).parameters()
    weight.grad = torch.ones(1, 3)
    one, many = AdamW([weight], lr=0.1, fused=True), AdamW([weight], lr=0.3, betas=(0.5, 0.6), fused=False)
    for optimizer in (one, many):
        LambdaLR(optimizer, lambda step: 0.5)
    one.step()
    many.register_load_state_dict_pre_hook(adapt_state)
    many.load_state_dict(one.state_dict())
    (group,) = many.param_groups
    assert (group["fused"], group["betas"], group["initial_lr"]) == (False, (0.5, 0.6), 0.3)
    assert group["lr"] == pytest.approx(0.15)
    many.step()
    assert many.state[weight]["step"] == 2


def fused_adamw(network: nn.Module) -> Any:
    """AdamW as training creates it."""
    optimizer = AdamW(network.parameters(), lr=1e-2, fused=True)
    optimizer.register_load_state_dict_pre_hook(adapt_state)
    return optimizer


def muon(network: nn.Module) -> Any:
    """Muon as training creates it."""
    return MuonAdamW(network.named_parameters(), lr=1e-2)


@pytest.mark.parametrize("make", [fused_adamw, muon])
@pytest.mark.parametrize("formats", [FORMATS, FORMATS[::-1]])
def test_a_checkpoint_resumes_in_another_memory_format(make: Any, formats: list[torch.memory_format]) -> None:
    def network(memory_format: torch.memory_format) -> Any:
        convolutions = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv2d(6, 5, 3), nn.Conv2d(5, 4, 1))
        return convolutions.to(memory_format=memory_format)  # type: ignore[call-overload]

    def step(part: nn.Module, optimizer: Any) -> None:
        part(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    torch.manual_seed(0)
    x = torch.randn(2, 4, 8, 8)
    first, second = network(formats[0]), network(formats[1])
    one, other = make(first), make(second)
    for _ in range(3):
        step(first, one)
    second.load_state_dict(first.state_dict())
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for part, optimizer in ((first, one), (second, other)):
        step(part, optimizer)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-4 if make is muon else 1e-6)  # Muon computes in bfloat16
