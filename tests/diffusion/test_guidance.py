"""Guidance: evaluations, extrapolation, and closed forms on Gaussian data."""

import pytest
import torch
from helpers.closed_forms import SCHEDULES, TARGETS, IdealDenoiser, double, gaussian, normal
from torch import Tensor, nn

from latentfaces.diffusion import (
    AutoGuidance,
    DDIMSampler,
    Denoiser,
    DiT,
    EulerSampler,
    Guidance,
    HeunSampler,
    InternalGuidance,
    NoGuidance,
    RectifiedFlow,
    Target,
)
from latentfaces.diffusion.samplers import Trajectory
from latentfaces.diffusion.schedule import per_sample
from latentfaces.errors import UserError

S, WIDE = 0.5, 1.5
X_T = normal(3, 2, 2, 2)


class TwoHeads(nn.Module):
    """On a rectified flow, the velocities of data N(0, S^2) and, by the auxiliary head, N(0, WIDE^2)."""

    auxiliary_depth = 1

    def __init__(self) -> None:
        super().__init__()
        self.num_calls = 0

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.heads(x_t, t)[0]

    def heads(self, x_t: Tensor, t: Tensor) -> list[Tensor]:
        self.num_calls += 1
        t = per_sample(t)
        return [x_t * (t - (1 - t) * std**2) / ((1 - t) ** 2 * std**2 + t**2) for std in (S, WIDE)]


class TwoHeadsDenoiser(Denoiser):
    """`TwoHeads` on a rectified flow."""

    network: TwoHeads

    def __init__(self) -> None:
        super().__init__(TwoHeads(), RectifiedFlow())


def pair(name: str = "rectified_flow", target: Target = "v") -> tuple[IdealDenoiser, IdealDenoiser]:
    """Return the best denoiser of data N(0, S^2), and a guide that takes them to be N(0, WIDE^2)."""
    return IdealDenoiser(gaussian(S), SCHEDULES[name], target), IdealDenoiser(gaussian(WIDE), SCHEDULES[name], target)


def test_no_guidance_is_the_denoiser_itself() -> None:
    denoiser, guide = pair()
    assert NoGuidance()(denoiser, guide) is denoiser
    assert NoGuidance()(denoiser, None) is denoiser


def test_weight_of_one_is_exactly_the_denoiser_and_asks_nobody_else() -> None:
    denoiser, guide = pair()
    assert torch.equal(AutoGuidance(1.0)(denoiser, guide).predict(X_T, 0.4), denoiser.predict(X_T, 0.4))
    assert guide.asked == []
    two = TwoHeadsDenoiser()
    assert torch.equal(InternalGuidance(1.0)(two, None).predict(X_T, 0.4), two.predict(X_T, 0.4))


@pytest.mark.parametrize("weight", [1.2, 2.0, 3.5])
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_guidance_goes_beyond_the_denoiser_away_from_the_weaker_one(weight: float, t: float) -> None:
    denoiser, guide = pair()
    stronger, weaker = denoiser.predict(X_T, t), guide.predict(X_T, t)
    expected = weaker + weight * (stronger - weaker)
    assert not torch.allclose(expected, stronger, rtol=0, atol=1e-3)
    assert torch.allclose(AutoGuidance(weight)(denoiser, guide).predict(X_T, t), expected)
    assert torch.allclose(InternalGuidance(weight)(TwoHeadsDenoiser(), None).predict(X_T, t), expected)


@pytest.mark.parametrize(
    ("t", "guided"), [(1.0, False), (0.71, False), (0.7, True), (0.5, True), (0.2, True), (0.19, False), (0.0, False)]
)
def test_the_denoiser_alone_speaks_outside_the_interval(t: float, guided: bool) -> None:
    denoiser, guide = pair()
    t = max(t, 1e-6)  # closed forms divide by sigma
    prediction = AutoGuidance(2.0, start=0.7, end=0.2)(denoiser, guide).predict(X_T, t)
    assert len(guide.asked) == int(guided)
    assert torch.equal(prediction, denoiser.predict(X_T, t)) != guided
    two = TwoHeadsDenoiser()
    prediction = InternalGuidance(2.0, start=0.7, end=0.2)(two, None).predict(X_T, t)
    assert torch.equal(prediction, two.predict(X_T, t)) != guided


def test_default_interval_is_the_whole_way() -> None:
    denoiser, guide = pair()
    EulerSampler(4)(AutoGuidance(2.0)(denoiser, guide), X_T)
    assert guide.asked == denoiser.asked == [1.0, 0.75, 0.5, 0.25]


def test_sampler_asks_the_guide_within_the_interval_alone() -> None:
    denoiser, guide = pair()
    EulerSampler(4)(AutoGuidance(2.0, start=0.8, end=0.5)(denoiser, guide), X_T)
    assert denoiser.asked == [1.0, 0.75, 0.5, 0.25]
    assert guide.asked == [0.75, 0.5]


@pytest.mark.parametrize("name", SCHEDULES)
def test_interval_is_on_the_even_scale_of_the_schedule(name: str) -> None:
    denoiser, guide = pair(name)
    guided = AutoGuidance(2.0, start=0.7, end=0.2)(denoiser, guide)
    for position in (0.1, 0.3, 0.6, 0.8):
        guided.predict(X_T, denoiser.schedule.time_of(double(position)).item())
    assert denoiser.schedule.condition(double(*guide.asked)).tolist() == pytest.approx([0.3, 0.6])


@pytest.mark.parametrize("internal", [False, True])
@pytest.mark.parametrize("method", ["__call__", "refine", "invert"])
def test_interval_without_a_sampling_time_is_an_error(internal: bool, method: str) -> None:
    two = InternalGuidance(2.0, 0.24)(TwoHeadsDenoiser(), None)
    guided = two if internal else AutoGuidance(2.0, 0.7, 0.6)(*pair())
    with pytest.raises(UserError, match=r"guidance\.start=0\..* none of the 4 sampling times"):
        getattr(EulerSampler(4), method)(guided, X_T, *([0.9] if method == "refine" else []))


def test_interval_without_a_sampling_time_is_allowed_without_guidance() -> None:
    without = InternalGuidance(1.0, 0.24)(TwoHeadsDenoiser(), None)
    assert EulerSampler(4)(without, X_T).shape == X_T.shape


@pytest.mark.parametrize("interval", [(1.0, 0.0), (0.6, 0.3)])
def test_internal_guidance_asks_the_network_once_a_step(interval: tuple[float, float]) -> None:
    denoiser = TwoHeadsDenoiser()
    EulerSampler(4)(InternalGuidance(2.0, *interval)(denoiser, None), X_T)
    assert denoiser.network.num_calls == 4


def test_internal_guidance_of_a_transformer_is_that_of_its_heads() -> None:
    torch.manual_seed(0)
    dit = DiT(2, width=16, depth=3, num_heads=2, patch_size=1, auxiliary_depth=1)
    for parameter in dit.parameters():
        nn.init.normal_(parameter, std=0.3)
    denoiser, x_t = Denoiser(dit, RectifiedFlow()), X_T.float()
    stronger, weaker = dit.heads(x_t, torch.full((3,), 0.6))
    prediction = InternalGuidance(1.7)(denoiser, None).predict(x_t, 0.6)
    assert torch.allclose(prediction, weaker + 1.7 * (stronger - weaker), atol=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_guided_gaussian_ends_where_the_closed_form_says(name: str, target: Target, weight: float) -> None:
    # y = x / alpha and r = sigma / alpha follow dy / dr = r y (w / (S^2 + r^2) + (1 - w) / (WIDE^2 + r^2)).
    denoiser, guide = pair(name, target)
    guided = AutoGuidance(weight)(denoiser, guide)
    r = min(denoiser.schedule.ratio(double(denoiser.first_time)).item(), 1e6)
    factor = r * (S**2 / (S**2 + r**2)) ** (weight / 2) * (WIDE**2 / (WIDE**2 + r**2)) ** ((1 - weight) / 2)
    latents = HeunSampler(300)(guided, X_T)
    assert torch.allclose(latents, factor * X_T, rtol=2e-3, atol=0)


def test_doubled_guidance_narrows_gaussian_data_by_the_ratio_of_the_deviations() -> None:
    guided = InternalGuidance(2.0)(TwoHeadsDenoiser(), None)
    assert torch.allclose(HeunSampler(300)(guided, X_T), S * (S / WIDE) * X_T, rtol=1e-3, atol=0)


@pytest.mark.parametrize("target", TARGETS)
def test_guided_denoiser_has_the_schedule_and_the_meaning_of_its_denoiser(target: Target) -> None:
    denoiser, guide = pair("vp_cosine", target)
    guided, t = AutoGuidance(2.0)(denoiser, guide), double(0.2, 0.7)
    assert guided.schedule is denoiser.schedule
    assert guided.first_time == denoiser.first_time
    for ours, theirs in (
        (guided.x0_coefficients(t), denoiser.x0_coefficients(t)),
        (guided.noise_coefficients(t), denoiser.noise_coefficients(t)),
    ):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_guided_denoiser_can_be_inverted() -> None:
    guided = AutoGuidance(1.5)(*pair())
    sampler = HeunSampler(200)
    assert torch.allclose(sampler(guided, sampler.invert(guided, S * X_T)), S * X_T, rtol=0, atol=1e-3)


def test_guidance_is_the_same_in_every_target() -> None:
    trajectory = Trajectory([0.9, 0.7, 0.4, 0.1, 0.0])
    latents = [
        DDIMSampler(4).solve(AutoGuidance(2.0)(*pair("vp_linear", target)), X_T, trajectory) for target in TARGETS
    ]
    assert torch.allclose(latents[0], latents[1], rtol=0, atol=1e-9)
    assert torch.allclose(latents[0], latents[2], rtol=0, atol=1e-9)


def test_auto_guidance_without_a_guide_is_refused() -> None:
    with pytest.raises(UserError, match=r"guidance=auto .* callbacks\.guide"):
        AutoGuidance(2.0)(pair()[0], None)


def test_internal_guidance_without_an_auxiliary_head_is_refused() -> None:
    with pytest.raises(UserError, match=r"guidance=internal .* model\.denoiser\.network\.auxiliary_depth"):
        InternalGuidance(2.0)(pair()[0], None)
    with pytest.raises(UserError, match="guidance=internal"):
        InternalGuidance(2.0)(Denoiser(DiT(2, width=16, depth=1, num_heads=2), RectifiedFlow()), None)


@pytest.mark.parametrize("kind", [AutoGuidance, InternalGuidance])
@pytest.mark.parametrize("weight", [0.9, 0.0, -1.0])
def test_weight_that_is_less_than_none_is_refused(kind: type[AutoGuidance | InternalGuidance], weight: float) -> None:
    with pytest.raises(ValueError, match=f"weight={weight}"):
        kind(weight)


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.2, 0.7), (1.1, 0.0), (0.5, -0.1)])
def test_interval_that_is_none_is_refused(start: float, end: float) -> None:
    with pytest.raises(ValueError, match=f"start={start}, end={end}"):
        AutoGuidance(2.0, start, end)


def test_every_guidance_is_called_alike() -> None:
    guidances: list[Guidance] = [NoGuidance(), AutoGuidance(2.0), InternalGuidance(2.0)]
    for guidance in guidances:
        predictor = guidance(TwoHeadsDenoiser(), pair()[1])
        assert EulerSampler(2)(predictor, X_T).shape == X_T.shape
