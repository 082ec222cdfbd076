"""Labels as a condition: encoding, dropout, drawing, and closed forms of guidance on a mixture of three Gaussians."""

import math
from collections import Counter

import pytest
import torch
from helpers.closed_forms import SCHEDULES, TARGETS, Mixture, double, normal
from hydra.core.override_parser.overrides_parser import OverridesParser
from torch import Tensor, nn

from latentfaces.diffusion import (
    AutoGuidance,
    Conditioning,
    Denoiser,
    DiT,
    EulerSampler,
    HeunSampler,
    InternalGuidance,
    LabelGuidance,
    Predictor,
    RectifiedFlow,
    Target,
)
from latentfaces.diffusion.schedule import per_sample
from latentfaces.errors import UserError
from latentfaces.labels import Label

NAN = math.nan
SMILING, AGE = Label("Smiling", "binary"), Label("Age", "number", mean=40.0, std=10.0, low=1.0, high=90.0)
HAIR = Label("Hair", "category", ("black", "blond", "gray"))
LABELS = Conditioning([SMILING, HAIR, AGE])
X_T = normal(5, 2, 1, 1)


def test_condition_has_a_value_and_a_known_flag_for_each_label() -> None:
    values = torch.tensor([[1.0, 2.0, 55.0], [0.0, NAN, 30.0], [NAN, 0.0, math.inf]])
    assert LABELS.size == 8
    assert LABELS(values).tolist() == [
        [1, 1, 0, 0, 1, 1, 1.5, 1],
        [0, 1, 0, 0, 0, 0, -1, 1],
        [0, 0, 1, 0, 0, 1, 0, 0],
    ]


def test_condition_of_nothing_known_is_zero() -> None:
    assert not LABELS(torch.full((2, 3), NAN)).any()


def test_labels_may_be_those_of_a_config() -> None:
    config = {"name": "Hair", "kind": "category", "choices": ["black", "blond", "gray"]}
    assert torch.equal(Conditioning([config])(torch.tensor([[1.0]])), torch.tensor([[0.0, 1, 0, 1]]))


def test_each_label_is_dropped_by_itself_and_all_of_an_image_together() -> None:
    torch.manual_seed(0)
    conditioning = Conditioning([SMILING, HAIR, AGE], dropout=0.2, joint_dropout=0.1)
    known = conditioning.drop(torch.zeros(40_000, 3)).isfinite()
    assert known.float().mean(0).tolist() == pytest.approx([0.9 * 0.8] * 3, abs=0.01)
    assert float((~known).all(1).float().mean()) == pytest.approx(0.1 + 0.9 * 0.2**3, abs=0.01)


def test_best_prediction_of_dropped_labels_is_the_mean_of_all() -> None:
    # Pure noise says nothing of x0: the best prediction is linear in the condition of one category.
    torch.manual_seed(0)
    means = torch.tensor([-2.0, 1.0, 4.0])
    hair = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), 50_000, replacement=True)
    x0 = means[hair] + torch.randn(len(hair))
    conditioning = Conditioning([HAIR], dropout=0.3)
    condition = torch.cat([conditioning(conditioning.drop(hair[:, None].float())), torch.ones(len(hair), 1)], dim=1)
    weights = torch.linalg.lstsq(condition, x0[:, None], driver="gelsd").solution
    asked = torch.cat([conditioning(torch.tensor([[0.0], [1.0], [2.0], [NAN]])), torch.ones(4, 1)], dim=1)
    assert (asked @ weights)[:, 0].tolist() == pytest.approx([*means.tolist(), 0.1], abs=0.05)


class LabeledMixture(Denoiser):
    """The best denoiser of `Mixture`, with the Gaussian of a sample as its label. It keeps times and batch sizes."""

    def __init__(self, name: str = "rectified_flow", target: Target = "v", widened: float = 1.0) -> None:
        super().__init__(nn.Identity(), SCHEDULES[name], target)
        self.asked: list[tuple[float, int]] = []
        self.mixture = Mixture()
        self.mixture.stds = widened * self.mixture.stds

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        self.asked.append((float(t[0]), len(x_t)))
        self.mixture.shares = shares(condition, len(x_t))
        alpha, sigma = per_sample(self.schedule.alpha(t)), per_sample(self.schedule.sigma(t))
        x0 = self.mixture(x_t, alpha, sigma)
        return self.target_of(x0, (x_t - alpha * x0) / sigma, t)


GAUSSIAN = Conditioning([Label("Gaussian", "category", ("first", "second", "third"))])


def shares(condition: Tensor | None, batch: int) -> Tensor:
    """Weights (b, 3) of the Gaussians under a condition (b, 4)."""
    condition = torch.zeros(batch, 4, dtype=torch.float64) if condition is None else condition.double()
    return torch.where(condition[:, 3:] == 1, condition[:, :3], Mixture.shares)


def known(*values: float) -> Tensor:
    """Condition (b, 4) of the category."""
    return GAUSSIAN(double(*values)[:, None])


def score(x_t: Tensor, t: float, weights: Tensor, name: str, widened: float = 1.0) -> Tensor:
    """Gradient of log p(x_t) of Gaussians with `weights` (b, 3), by automatic differentiation of the density."""
    x, schedule = x_t.flatten(1).requires_grad_(), SCHEDULES[name]
    alpha, sigma = schedule.alpha(double(t)), schedule.sigma(double(t))
    variance = alpha**2 * (widened * Mixture.stds) ** 2 + sigma**2
    parts = torch.distributions.Normal(alpha * Mixture.means, variance.sqrt()[:, None]).log_prob(x[:, None]).sum(-1)
    (gradient,) = torch.autograd.grad((parts + weights.log()).logsumexp(1).sum(), x)
    return gradient.view_as(x_t)


def score_of(predictor: Predictor, x_t: Tensor, t: float) -> Tensor:
    """(alpha x0 - x_t) / sigma^2 (Tweedie)."""
    a, b = (part.item() for part in predictor.x0_coefficients(double(t)))
    x0 = a * x_t + b * predictor.predict(x_t, t)
    alpha, sigma = predictor.schedule.alpha(double(t)), predictor.schedule.sigma(double(t))
    return (alpha * x0 - x_t) / sigma**2


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("weight", "auto_weight"), [(1.0, 1.0), (2.5, 1.0), (1.0, 1.8), (2.5, 1.8)])
def test_guided_score_is_that_of_the_densities(name: str, target: Target, weight: float, auto_weight: float) -> None:
    t, condition = SCHEDULES[name].time_of(double(0.6)).item(), known(0, 1, 2, NAN, 1)
    given, unknown = score(X_T, t, shares(condition, 5), name), score(X_T, t, shares(None, 5), name)
    guide = score(X_T, t, shares(condition, 5), name, widened=2.0)
    expected = given + (weight - 1) * (given - unknown) + (auto_weight - 1) * (given - guide)
    denoiser, wide = LabeledMixture(name, target), LabeledMixture(name, target, widened=2.0)
    guided = LabelGuidance(weight, auto_weight=auto_weight)(denoiser.given(condition), wide.given(condition))
    assert torch.allclose(score_of(guided, X_T, t), expected, rtol=1e-6, atol=1e-6)


def test_an_unknown_label_is_not_guided() -> None:
    denoiser = LabeledMixture()
    guided = LabelGuidance(3.0)(denoiser.given(known(NAN)), None)
    assert torch.allclose(guided.predict(X_T, 0.5), denoiser.predict(X_T, 0.5))


def test_one_label_for_all_images_or_one_each() -> None:
    denoiser = LabeledMixture()
    together = denoiser.given(known(0, 1, 2, NAN, 1)).predict(X_T, 0.5)
    assert torch.allclose(together[1:2], denoiser.given(known(1)).predict(X_T, 0.5)[1:2])
    assert denoiser.condition is None


def test_two_evaluations_are_one_call_within_the_interval() -> None:
    denoiser, guide = LabeledMixture(), LabeledMixture()
    EulerSampler(4)(LabelGuidance(2.0, start=0.8, end=0.4)(denoiser.given(known(0)), guide), X_T)
    assert denoiser.asked == [(1.0, 5), (0.75, 10), (0.5, 10), (0.25, 5)]
    assert guide.asked == []


@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_samples_are_of_the_gaussian_that_is_asked_for(weight: float) -> None:
    noise = normal(4000, 2, 1, 1, seed=1)
    predictor = LabelGuidance(weight)(LabeledMixture().given(known(2)), None)
    samples = HeunSampler(40)(predictor, noise).flatten(1)
    nearest = torch.cdist(samples, Mixture.means).argmin(1)
    assert float((nearest == 2).double().mean()) > 0.99
    if weight == 1:
        assert (samples.mean(0) - Mixture.means[2]).abs().max() < 0.02
        assert (samples.std(0) - Mixture.stds[2]).abs().max() < 0.02


def test_autoguidance_sees_the_labels() -> None:
    condition = known(1)
    denoiser, guide = LabeledMixture(), LabeledMixture(widened=2.0)
    guided = AutoGuidance(2.0)(denoiser.given(condition), guide.given(condition))
    stronger, weaker = denoiser.given(condition).predict(X_T, 0.5), guide.given(condition).predict(X_T, 0.5)
    assert torch.allclose(guided.predict(X_T, 0.5), 2 * stronger - weaker)


def test_internal_guidance_and_augmentation_see_the_labels_last() -> None:
    torch.manual_seed(0)
    dit = DiT(2, width=16, depth=3, num_heads=2, patch_size=1, auxiliary_depth=1, label_channels=8 + 4)
    for parameter in dit.parameters():
        nn.init.normal_(parameter, std=0.3)
    denoiser, x_t, condition = Denoiser(dit, RectifiedFlow()), X_T.float(), known(0, 1, 2, NAN, 1).float()
    full = torch.cat([torch.zeros(5, 8), condition], dim=1)
    stronger, weaker = dit.heads(x_t, torch.full((5,), 0.6), full)
    assert not torch.allclose(stronger, dit.heads(x_t, torch.full((5,), 0.6))[0], atol=1e-3)
    guided = InternalGuidance(1.7)(denoiser.given(condition), None)
    assert torch.allclose(guided.predict(x_t, 0.6), weaker + 1.7 * (stronger - weaker), atol=1e-5)


def test_guidance_by_labels_needs_labels_and_its_guide_a_guide() -> None:
    with pytest.raises(UserError, match=r"guidance=labels needs a run that was trained with data\.labels"):
        LabelGuidance(2.0)(LabeledMixture(), None)
    with pytest.raises(UserError, match=r"guidance\.auto_weight needs .* callbacks\.guide"):
        LabelGuidance(2.0, auto_weight=1.5)(LabeledMixture().given(known(0)), None)
    with pytest.raises(ValueError, match=r"auto_weight=0.5"):
        LabelGuidance(2.0, auto_weight=0.5)


def test_a_user_asks_by_name_and_value() -> None:
    asked = LABELS.parse({"Smiling": True, "Hair": "gray"})
    assert asked[:2].tolist() == [1, 2]
    assert asked[2].isnan()
    assert LABELS.parse({"Smiling": 0, "Hair": "free", "Age": 30}).tolist() == [0, math.inf, 30]
    assert LABELS.describe(torch.tensor([1.0, 2.0, NAN])) == {"Smiling": 1.0, "Hair": "gray"}
    assert LABELS.describe(torch.tensor([NAN, math.inf, 30.0])) == {"Age": 30.0}


@pytest.mark.parametrize("choice", ["20_29", "01", "1.50", "true", "old"])
def test_a_choice_may_look_like_a_number(choice: str) -> None:
    typed = OverridesParser.create().parse_override(f"label={choice}").value()  # 20_29 is read as 2029
    label = Label("group", "category", ("0", choice, "1", "30_39"))
    for value in (typed, choice):
        assert Conditioning([label]).parse({"group": value}).tolist() == [1]
    assert Conditioning([label]).parse({"group": 1}).tolist() == [2]


@pytest.mark.parametrize(
    ("asked", "clue"),
    [
        ({"Smilin": 1}, r"labels\.Smilin\. Did you mean Smiling\? .*Smiling, Hair, Age"),
        ({"Smiling": 2}, r"labels\.Smiling=2 .*0, 1, free"),
        ({"Hair": "red"}, r"labels\.Hair=red .*black, blond, gray, free"),
        ({"Age": 300}, r"labels\.Age=300 .*1 to 90, free"),
        ({"Age": "old"}, r"labels\.Age=old .*1 to 90"),
        ({"Age": None}, r"labels\.Age=None .*1 to 90"),
    ],
)
def test_unknown_names_and_values_are_errors_with_the_choices(asked: dict[str, object], clue: str) -> None:
    with pytest.raises(UserError, match=clue):
        LABELS.parse(asked)


def drawn(asked: dict[str, object], rows: Tensor, number: int = 400) -> Tensor:
    return LABELS.draw(LABELS.parse(asked), rows, [(0, index) for index in range(number)])


@pytest.fixture(scope="module")
def rows() -> Tensor:
    """Training labels: those who smile are blond, the others black; some ages are missing."""
    smiling = torch.arange(1000) % 2
    age = torch.arange(1000) % 90 + 1.0
    return torch.stack([smiling, smiling, torch.where(torch.arange(1000) % 10 == 0, NAN, age)], dim=1)


def test_labels_that_are_not_asked_come_from_one_row(rows: Tensor) -> None:
    values = drawn({}, rows)
    assert Counter(values[:, 0].tolist()) == Counter(values[:, 1].tolist())
    assert torch.equal(values[:, 0], values[:, 1])
    assert float(values[:, 0].mean()) == pytest.approx(0.5, abs=0.08)
    assert float(values[:, 2].isnan().float().mean()) == pytest.approx(0.1, abs=0.06)


def test_the_prediction_without_labels_sees_zeros() -> None:
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
            seen.append(condition)
            return x_t

    denoiser = Denoiser(Spy(), RectifiedFlow()).given(torch.tensor([[1.0, 1.0]]))
    LabelGuidance(2.0)(denoiser, None).predict(torch.zeros(2, 1, 2, 2), 0.5)
    assert seen[0].tolist() == [[1, 1], [1, 1], [0, 0], [0, 0]]


def test_rows_match_what_is_asked_unless_there_are_too_few(rows: Tensor) -> None:
    assert drawn({"Smiling": 1}, rows)[:, 1].eq(1).all()
    assert drawn({"Age": 30}, rows)[:, 2].eq(30).all()
    assert not drawn({"Hair": "gray"}, rows)[:, 0].eq(1).all()  # nobody is gray: all rows
    old = LABELS.matching(LABELS.parse({"Age": 85}), rows)
    assert old[:, 2].sub(85).abs().max() <= 3
    assert 45 <= len(old) <= 60


def test_a_free_label_is_unknown_and_so_is_what_no_row_says(rows: Tensor) -> None:
    assert not drawn({"Smiling": "free"}, rows)[:, 0].isfinite().any()
    assert drawn({"Smiling": "free"}, rows)[:, 1].isfinite().all()
    assert drawn({"Smiling": 1, "Age": "free"}, rows)[:, 1].eq(1).all()  # those who smile are blond
    alone = drawn({"Smiling": 1}, torch.empty(0))
    assert alone[:, 0].eq(1).all()
    assert alone[:, 1:].isnan().all()


def test_an_image_has_the_labels_of_its_name(rows: Tensor) -> None:
    names = [(seed, number) for seed in (5, 0) for number in range(20)]
    together = LABELS.draw(LABELS.parse({}), rows, names)
    alone = torch.cat([LABELS.draw(LABELS.parse({}), rows, [name]) for name in names])
    assert torch.equal(together.nan_to_num(-1), alone.nan_to_num(-1))
    assert len({tuple(row) for row in together.nan_to_num(-1).tolist()}) > 20


@pytest.mark.parametrize(
    "label", [SMILING, AGE, HAIR, Label("class", "category", ("a",))], ids=lambda label: label.name
)
def test_the_values_that_a_preview_compares_are_values_of_the_label(label: Label) -> None:
    condition = Conditioning([label])(torch.tensor([label.contrast]).T)
    assert condition.shape[0] == 2
    assert condition[:, -1].eq(1).all()  # known
