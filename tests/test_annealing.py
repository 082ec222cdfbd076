"""Schedules: their values at known steps, where they restart, where they rest, what they refuse."""

import itertools
import math

import pytest

from latentfaces.annealing import AnnealingSchedule, Constant, Cosine, Cyclical, Linear, Sigmoid, WarmupDecay

COSINE_QUARTER = (1 - math.sqrt(0.5)) / 2  # (1 - cos 45 degrees) / 2
SIGMOID_QUARTER = (1 / (1 + math.exp(2.5)) - 1 / (1 + math.exp(5))) / (1 / (1 + math.exp(-5)) - 1 / (1 + math.exp(5)))

SHAPES = [
    (Constant(2.0, 4.0, 100), [1, 1, 1, 1, 1, 1]),
    (Linear(2.0, 4.0, 100), [0, 0.25, 0.5, 0.75, 1, 1]),
    (Cosine(2.0, 4.0, 100), [0, COSINE_QUARTER, 0.5, 1 - COSINE_QUARTER, 1, 1]),
    (Sigmoid(2.0, 4.0, 100), [0, SIGMOID_QUARTER, 0.5, 1 - SIGMOID_QUARTER, 1, 1]),
    (Cyclical(2.0, 4.0, 100, num_cycles=2, ramp=0.8), [0, 0.5 / 0.8, 0, 0.5 / 0.8, 1, 1]),
]


@pytest.mark.parametrize(("schedule", "shares"), SHAPES, ids=[type(s).__name__ for s, _ in SHAPES])
def test_value_is_known_at_each_quarter_and_beyond_the_end(schedule: AnnealingSchedule, shares: list[float]) -> None:
    values = [schedule(step) for step in (0, 25, 50, 75, 100, 1_000_000)]
    assert values == pytest.approx([2 + 2 * share for share in shares], abs=1e-12)


@pytest.mark.parametrize("schedule", [s for s, _ in SHAPES], ids=[type(s).__name__ for s, _ in SHAPES])
def test_way_down_is_the_way_up_mirrored(schedule: AnnealingSchedule) -> None:
    options = {key: value for key, value in vars(schedule).items() if key not in ("start", "end")}
    down = type(schedule)(start=4.0, end=2.0, **options)
    assert [down(step) for step in range(0, 120, 7)] == pytest.approx([6 - schedule(s) for s in range(0, 120, 7)])


@pytest.mark.parametrize("kind", [type(s) for s, _ in SHAPES])
def test_the_last_value_is_the_end_to_the_last_bit(kind: type[AnnealingSchedule]) -> None:
    assert kind(0.2, 0.9, 100)(100) == 0.9
    assert kind(0.3, 0.9, 100)(100) == 0.9


@pytest.mark.parametrize("schedule", [Linear(num_steps=40), Cosine(num_steps=40), Sigmoid(num_steps=40)])
def test_straight_shapes_only_ever_rise(schedule: AnnealingSchedule) -> None:
    values = [schedule(step) for step in range(41)]
    assert all(later > earlier for earlier, later in itertools.pairwise(values))


@pytest.mark.parametrize("steepness", [0.1, 1.0, 10.0, 100.0, 2000.0])
def test_sigmoid_goes_exactly_through_both_ends_and_the_middle(steepness: float) -> None:
    schedule = Sigmoid(0.0, 1.0, 100, steepness=steepness)
    assert (schedule(0), schedule(100)) == (0.0, 1.0)
    assert schedule(50) == pytest.approx(0.5, abs=1e-12)


def test_steeper_sigmoid_is_flatter_at_its_ends() -> None:
    steep, gentle = (Sigmoid(num_steps=100, steepness=steepness) for steepness in (20, 5))
    assert steep(20) < gentle(20) < Linear(num_steps=100)(20)


def test_cycle_rises_for_its_ramp_then_rests() -> None:
    schedule = Cyclical(0.0, 1.0, 100, num_cycles=4, ramp=0.4)
    first_cycle = [schedule(step) for step in range(0, 25, 5)]
    assert first_cycle == pytest.approx([0.0, 0.5, 1.0, 1.0, 1.0])


@pytest.mark.parametrize("num_cycles", [*range(1, 13), 22])
def test_every_cycle_restarts_at_the_start_and_the_last_ends_at_the_end(num_cycles: int) -> None:
    schedule = Cyclical(0.0, 1.0, 100 * num_cycles, num_cycles=num_cycles, ramp=0.5)
    assert [schedule(100 * cycle) for cycle in range(num_cycles)] == pytest.approx([0.0] * num_cycles, abs=1e-12)
    assert [schedule(100 * cycle - 1) for cycle in range(1, num_cycles + 1)] == [1.0] * num_cycles
    assert schedule(100 * num_cycles) == 1.0


def test_cyclical_of_one_cycle_and_full_ramp_is_linear() -> None:
    schedule = Cyclical(0.0, 3.0, 50, num_cycles=1, ramp=1.0)
    assert [schedule(s) for s in range(60)] == pytest.approx([Linear(0.0, 3.0, 50)(s) for s in range(60)])


def test_warm_up_is_a_line_that_reaches_the_peak() -> None:
    schedule = WarmupDecay(warmup_steps=4, decay_share=0.5)
    assert [schedule(step, 0.0) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_no_warm_up_starts_at_the_peak() -> None:
    assert WarmupDecay(warmup_steps=0)(0, 0.0) == 1.0


@pytest.mark.parametrize("progress", [0.0, 0.3, 0.6])
def test_learning_rate_rests_at_its_peak_between_the_two_ways(progress: float) -> None:
    assert WarmupDecay(warmup_steps=10, decay_share=0.4)(10, progress) == 1.0


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_decay_is_half_way_at_its_middle_and_final_at_the_end(final: float) -> None:
    schedule = WarmupDecay(warmup_steps=10, decay_share=0.4, final=final)
    assert schedule(10**6, 0.8) == pytest.approx((1 + final) / 2)
    assert schedule(10**6, 1.0) == pytest.approx(final)


def test_decay_follows_half_a_cosine() -> None:
    assert WarmupDecay(warmup_steps=0, decay_share=0.8)(5, 0.4) == pytest.approx(1 - COSINE_QUARTER)


def test_no_decay_stays_at_the_peak_to_the_end() -> None:
    assert WarmupDecay(warmup_steps=0, decay_share=0.0)(9, 1.0) == 1.0


def test_learning_rate_comes_down_along_a_line_or_half_a_cosine() -> None:
    line, cosine = (WarmupDecay(0, decay_share=0.5, final=0.2, shape=shape) for shape in ("linear", "cosine"))
    assert [line(0, progress) for progress in (0.0, 0.5, 0.625, 0.75, 1.0)] == pytest.approx([1, 1, 0.8, 0.6, 0.2])
    assert [cosine(0, progress) for progress in (0.5, 0.75, 1.0)] == pytest.approx([1, 0.6, 0.2])
    assert cosine(0, 0.625) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4)))


def test_warm_up_and_decay_multiply() -> None:
    assert WarmupDecay(warmup_steps=9, decay_share=1.0, shape="linear")(4, 0.5) == pytest.approx(0.5 * 0.5)
