"""Flow maps, where the exact one has a closed form or can be computed."""

import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch
from helpers.closed_forms import SCHEDULES, TARGETS, IdealDenoiser, Mixture, PosteriorMean, gaussian, normal
from torch import Tensor, nn

from latentfaces.diffusion import (
    AutoGuidance,
    Denoiser,
    DiT,
    DPMpp2MSampler,
    EulerSampler,
    FlowMapLoss,
    FlowMapSampler,
    HeunSampler,
    NoGuidance,
    NoiseSchedule,
    RectifiedFlow,
    Target,
    UNet,
)
from latentfaces.diffusion.flow_map import NUM_STEPS, step_coefficients
from latentfaces.diffusion.schedule import per_sample
from latentfaces.errors import UserError

STD = 0.5
EVERY_SCHEDULE = pytest.mark.parametrize("name", SCHEDULES)
EVERY_TARGET = pytest.mark.parametrize("target", TARGETS)


class Linear(IdealDenoiser):
    """Exact flow map of data N(0, STD^2): x is proportional to its std."""

    is_flow_map = True

    def __init__(self, mean: PosteriorMean, schedule: NoiseSchedule, target: Target = "v", error: float = 0.0) -> None:
        super().__init__(mean, schedule, target)
        self.error = error

    def std_at(self, t: Tensor) -> Tensor:
        return (self.schedule.alpha(t).square() * STD**2 + self.schedule.sigma(t).square()).sqrt()

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None, t_next: Tensor | None = None) -> Tensor:
        assert t_next is not None
        a, b = step_coefficients(self, t, t_next)
        return per_sample((self.std_at(t_next) / self.std_at(t) - a) / b) * x_t + self.error


def linear(name: str, target: Target) -> Linear:
    return Linear(gaussian(STD), SCHEDULES[name], target)


@EVERY_SCHEDULE
@EVERY_TARGET
@pytest.mark.parametrize("num_steps", NUM_STEPS)
def test_the_exact_flow_map_gives_the_exact_latents(name: str, target: Target, num_steps: int) -> None:
    denoiser, noise = linear(name, target), normal(4, 1, 2, 2)
    first = torch.tensor([denoiser.first_time], dtype=torch.float64)
    exact = denoiser.schedule.sigma(first) * STD / denoiser.std_at(first) * noise
    torch.testing.assert_close(FlowMapSampler(num_steps)(denoiser, noise), exact)


@EVERY_SCHEDULE
@EVERY_TARGET
def test_the_exact_flow_map_has_the_least_loss(name: str, target: Target) -> None:
    loss, x0, noise = FlowMapLoss(num_steps=400), normal(6, 1, 2, 2), normal(6, 1, 2, 2)
    denoiser = linear(name, target)
    loss.learn_from(IdealDenoiser(gaussian(STD), denoiser.schedule, target), None, NoGuidance())
    losses = loss(denoiser, x0, noise=noise)
    assert losses.shape == (1, 7 * 6)
    assert float(losses.max()) < 1e-4
    off = float(loss(Linear(gaussian(STD), denoiser.schedule, target, error=0.1), x0, noise=noise).mean())
    assert off == pytest.approx(0.01, rel=0.1)


class Blobs(Mixture):
    """Two Gaussians that overlap."""

    means, stds, shares = (
        torch.tensor([[0.8, -0.4], [-0.65, 0.5]]),
        torch.tensor([0.7, 0.7]),
        torch.tensor([0.45, 0.55]),
    )


class Layers(nn.Module):
    """Network of points in two dimensions."""

    embed_step = True

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        widths = [4, width, width, width]
        layers = [part for pair in itertools.pairwise(widths) for part in (nn.Linear(*pair), nn.SiLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None, step: Tensor | None = None) -> Tensor:
        assert step is not None
        return self.layers(torch.cat([x_t.flatten(1), t[:, None], step[:, None]], dim=1))[..., None, None]


def test_the_flow_map_of_a_mixture_is_learned_within_one_percent() -> None:
    torch.manual_seed(0)
    teacher, loss = IdealDenoiser(Blobs(), RectifiedFlow()), FlowMapLoss(num_steps=16)
    loss.learn_from(teacher, None, NoGuidance())
    denoiser, num_updates = Denoiser(Layers(), RectifiedFlow()), 1500
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-2, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_updates)
    for _ in range(num_updates):
        optimizer.zero_grad()
        loss.total(loss(denoiser, torch.empty(64, 2, 1, 1))).backward()
        optimizer.step()
        schedule.step()
    noise = torch.randn(2000, 2, 1, 1, generator=torch.Generator().manual_seed(1))
    exact = HeunSampler(100)(teacher, noise)
    for num_steps in NUM_STEPS:
        assert float((FlowMapSampler(num_steps)(denoiser, noise) - exact).norm() / exact.norm()) < 0.01
        if num_steps > 1:  # the same number of evaluations of the denoiser itself
            assert float((EulerSampler(num_steps)(teacher, noise) - exact).norm() / exact.norm()) > 0.2


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "unet": partial(UNet, 4, width=16, multipliers=(1, 2), num_blocks=1, attention_levels=[1], label_channels=3),
    "dit": partial(DiT, 4, width=32, depth=2, num_heads=2, label_channels=3),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_flow_map_starts_as_its_teacher(kind: str) -> None:
    torch.manual_seed(0)
    teacher, student = (Denoiser(NETWORKS[kind](flow_map=flow_map), RectifiedFlow()) for flow_map in (False, True))
    with torch.no_grad():
        for parameter in teacher.parameters():  # the last layers are 0 at first
            parameter.normal_(std=0.1)
    result = student.load_state_dict(teacher.state_dict(), strict=False)
    assert all("embed_step" in name for name in result.missing_keys)
    x, t, condition = torch.randn(2, 4, 8, 8), torch.tensor([1.0, 0.5]), torch.randn(2, 3)
    expected = teacher(x, t, condition)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(student(x, t, condition, t / 2), expected)
    torch.testing.assert_close(
        FlowMapSampler(4)(student.given(condition), x), EulerSampler(4)(teacher.given(condition), x)
    )
    student(x, t, condition, t / 2).square().sum().backward()
    embedding = student.network.embed_step
    assert isinstance(embedding, nn.Module)
    assert max(float(p.grad.abs().max()) for p in embedding.parameters() if p.grad is not None) > 0


def test_the_guidance_of_the_teacher_becomes_part_of_the_map() -> None:
    strong, weak = (IdealDenoiser(gaussian(std), RectifiedFlow()) for std in (0.5, 0.9))
    loss, noise = FlowMapLoss(num_steps=8), normal(3, 1, 2, 2)
    loss.learn_from(strong, weak, AutoGuidance(2.0))
    states, _ = loss.trajectory(noise, None)
    expected = DPMpp2MSampler(8)(AutoGuidance(2.0)(strong, weak), noise)
    torch.testing.assert_close(states[-1], expected)
    assert len(states) == 5


class ConditionalPoint(IdealDenoiser):
    """Denoiser of data that are what the condition says. On a rectified flow it is its own flow map."""

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None, t_next: Tensor | None = None) -> Tensor:
        assert condition is not None
        x0 = per_sample(condition[:, 0])
        return (x_t - x0) / per_sample(t)


def test_teacher_guide_and_flow_map_see_the_condition_of_each_sample() -> None:
    denoiser, noise = ConditionalPoint(gaussian(STD), RectifiedFlow()), normal(3, 1, 2, 2)
    loss, condition = FlowMapLoss(num_steps=8), torch.tensor([[1.0], [-2.0], [3.0]], dtype=torch.float64)
    loss.learn_from(denoiser, denoiser, AutoGuidance(2.0))
    assert loss(denoiser, noise, noise=noise, condition=condition).max() < 1e-9
    assert loss(denoiser, noise, noise=noise, condition=condition.flip(0)).max() < 1e-9


def test_a_trajectory_starts_at_the_noise_of_its_time() -> None:
    loss, noise = FlowMapLoss(num_steps=4), normal(3, 1, 2, 2).requires_grad_()
    loss.learn_from(IdealDenoiser(gaussian(STD), SCHEDULES["edm"]), None, NoGuidance())
    states, times = loss.trajectory(noise, None)
    assert times[0] == pytest.approx(1)
    assert torch.allclose(states[0], 80 * noise)
    assert not states.requires_grad


def test_a_start_far_from_the_learned_times_is_refused() -> None:
    denoiser, x = linear("edm", "v"), normal(1, 1, 2, 2)
    start = FlowMapSampler(4).times(denoiser.schedule)[1]
    with pytest.raises(UserError, match=r"start at task\.strength=0\.992, 0\.744, 0\.496, 0\.248\."):
        FlowMapSampler(4).refine(denoiser, x, 1.2 * start)


def test_a_start_near_a_learned_time_takes_no_step_in_between() -> None:
    denoiser, x = linear("edm", "v"), normal(1, 1, 2, 2)
    start = FlowMapSampler(4).times(denoiser.schedule)[1]
    expected = FlowMapSampler(4).refine(denoiser, x, start)
    assert torch.equal(FlowMapSampler(4).refine(denoiser, x, 1.005 * start), expected)


def test_a_flow_map_and_other_samplers_refuse_one_another() -> None:
    noise = normal(1, 4, 8, 8).float()
    flow_map = Denoiser(NETWORKS["unet"](flow_map=True), RectifiedFlow())
    plain = Denoiser(NETWORKS["unet"](), RectifiedFlow())
    with pytest.raises(UserError, match="Use sampler=few"):
        HeunSampler(2)(flow_map, noise)
    with pytest.raises(UserError, match="sampler=few needs a run of model=fast"):
        FlowMapSampler(2)(plain, noise)
    with pytest.raises(UserError, match="no inverse"):
        FlowMapSampler(2).invert(flow_map, noise)
    with pytest.raises(ValueError, match="num_steps=3 must be 1, 2 or 4"):
        FlowMapSampler(3)
