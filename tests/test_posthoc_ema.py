"""Averages of any width: the algebra against integration, rebuilt averages against real ones, and what is refused."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentfaces.errors import UserError
from latentfaces.posthoc_ema import (
    MAX_ERROR,
    Profiles,
    Snapshot,
    decay,
    inner_products,
    power_of_width,
    rebuild,
    snapshots_in,
    solve_weights,
    weights_of,
)

KEPT = (0.05, 0.1)


def profile(step: int, sigma_rel: float, t: Tensor) -> Tensor:
    """By definition, at times t (n,)."""
    gamma = power_of_width(sigma_rel)
    return torch.where(t <= step, (gamma + 1) / step * (t / step) ** gamma, 0.0)


def every(num_snapshots: int, steps: int, widths: Sequence[float] = KEPT) -> list[tuple[int, float]]:
    """Step and width of the averages in evenly spaced snapshots."""
    return [(steps * k // num_snapshots, width) for k in range(1, num_snapshots + 1) for width in widths]


def train(folder: Path, num_snapshots: int, widths: Sequence[float], steps: int = 2000) -> dict[float, Tensor]:
    """Leave the snapshots of a random walk of 300 weights; the averages of `widths` themselves (300,) float64."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.zeros(300, dtype=torch.float64)
    averages = {width: weights.clone() for width in {*KEPT, *widths}}
    for step in range(1, steps + 1):
        weights = weights + torch.randn(300, generator=generator, dtype=torch.float64) / steps**0.5
        for width, average in averages.items():
            average.lerp_(weights, 1 - decay(power_of_width(width), step))
        if step * num_snapshots % steps == 0:
            write(folder, step, {width: {"w": averages[width].half()} for width in KEPT})
    return averages


def write(
    folder: Path, step: int, tracks: dict[float, dict[str, Tensor]], rest: dict[str, Tensor] | None = None
) -> Path:
    """Write one snapshot's file."""
    folder.mkdir(exist_ok=True)
    path = folder / Snapshot.name(step)
    torch.save(vars(Snapshot(step, tracks, rest or {})), path)
    return path


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_exponents_are_those_of_the_paper(sigma_rel: float, gamma: float) -> None:
    assert power_of_width(sigma_rel) == pytest.approx(gamma, abs=0.01)


@pytest.mark.parametrize("sigma_rel", [0.02, 0.1, 0.25])
def test_width_is_the_deviation_of_the_profile(sigma_rel: float) -> None:
    t = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000 * 50
    p = profile(50, sigma_rel, t) * 50 / 400_000
    mean = (p * t).sum()
    assert float((p * (t - mean) ** 2).sum().sqrt() / 50) == pytest.approx(sigma_rel, rel=1e-4)


def test_inner_products_are_the_integrals() -> None:
    averages = [(3, 0.05), (3, 0.2), (7, 0.1), (10, 0.05), (10, 0.25)]
    t = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 40_000
    p = torch.stack([profile(step, width, t) for step, width in averages])
    profiles = Profiles.of(*averages)
    torch.testing.assert_close(inner_products(profiles, profiles), p @ p.T / 40_000, rtol=1e-4, atol=1e-9)


def test_inner_products_do_not_overflow() -> None:
    profiles = Profiles.of((1, 0.01), (10_000_000, 0.01))
    assert inner_products(profiles, profiles).isfinite().all()


@pytest.mark.parametrize("sigma_rel", [0.01, 0.04, 0.07, 0.15, 0.27])
@pytest.mark.parametrize("num_snapshots", [2, 16])
def test_weights_sum_to_one_and_tell_the_error_of_the_profile(num_snapshots: int, sigma_rel: float) -> None:
    averages = every(num_snapshots, 1600)
    weights, error = solve_weights(Profiles.of(*averages), Profiles.of((1600, sigma_rel)))
    assert float(weights.sum()) == pytest.approx(1, abs=1e-9)
    t = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 250
    wanted = profile(1600, sigma_rel, t)
    made = sum(weight * profile(step, width, t) for weight, (step, width) in zip(weights, averages, strict=True))
    assert float((made - wanted).norm() / wanted.norm()) == pytest.approx(error, rel=1e-3)


def test_no_other_weights_of_sum_one_come_nearer() -> None:
    averages = every(6, 600)
    kept, wanted = Profiles.of(*averages), Profiles.of((600, 0.15))
    best, error = solve_weights(kept, wanted)
    gram, cross = inner_products(kept, kept), inner_products(kept, wanted).squeeze(1)
    length = inner_products(wanted, wanted).item()
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        change = torch.randn(len(best), generator=generator, dtype=torch.float64) * 0.01
        x = best + change - change.mean()
        assert (length - 2 * x @ cross + x @ gram @ x) / length > error**2


def test_snapshots_of_nearly_the_same_step_are_not_played_off_against_each_other() -> None:
    averages = [*every(16, 100_000), (99_999, 0.05), (99_999, 0.1), (99_998, 0.05), (99_998, 0.1)]
    for sigma_rel in (0.04, 0.07, 0.2):
        weights, error = solve_weights(Profiles.of(*averages), Profiles.of((100_000, sigma_rel)))
        assert weights.abs().sum() < 5
        assert error < MAX_ERROR


def test_snapshots_of_nearly_the_same_width_are_not_played_off_against_each_other() -> None:
    averages = every(16, 100_000, (0.05, 0.06, 0.07, 0.1, 0.15))
    weights, error = solve_weights(Profiles.of(*averages), Profiles.of((100_000, 0.03)))
    assert weights.abs().sum() < 50  # 1,700 by least squares alone
    assert error < MAX_ERROR


@pytest.mark.parametrize(("sigma_rel", "few", "many"), [(0.04, 10, 20), (0.07, 8, 16), (0.15, 10, 20), (0.2, 16, 32)])
def test_rebuilt_average_is_nearly_the_average_and_nearer_with_more_snapshots(
    tmp_path: Path, sigma_rel: float, few: int, many: int
) -> None:
    errors = []
    for num_snapshots in (few, many):
        folder = tmp_path / str(num_snapshots)
        average = train(folder, num_snapshots, [sigma_rel], steps=1600)[sigma_rel]
        rebuilt = rebuild(folder, sigma_rel)["w"]
        assert rebuilt.dtype == torch.float32
        errors.append(float((rebuilt - average).norm() / average.norm()))
    assert errors[0] < 0.003  # the nearest track is 0.03 to 0.26 away, float16 rounds by 0.0002
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("sigma_rel", KEPT)
def test_a_width_that_was_kept_is_its_last_snapshot(tmp_path: Path, sigma_rel: float) -> None:
    average = train(tmp_path, 8, [sigma_rel])[sigma_rel]
    torch.testing.assert_close(rebuild(tmp_path, sigma_rel)["w"].double(), average, rtol=2**-10, atol=1e-5)


def test_what_never_changed_stays_and_what_is_no_weight_comes_from_the_last_snapshot(tmp_path: Path) -> None:
    for step in (100, 200, 300, 400):
        tracks = {width: {"w": torch.full((3,), 0.75, dtype=torch.float16)} for width in KEPT}
        write(tmp_path, step, tracks, {"count": torch.tensor(step), "mean": torch.tensor(1 / 3)})
    state = rebuild(tmp_path, 0.08)
    torch.testing.assert_close(state["w"], torch.full((3,), 0.75))
    assert state["count"].item() == 400
    assert torch.equal(state["mean"], torch.tensor(1 / 3))


def test_snapshots_are_listed_by_step_and_other_files_passed_over(tmp_path: Path) -> None:
    for name in ("step_12345678.pth", "step_0000002.pth", "step_0000010.pth", "step_0000011.pth.partial", "step_x.pth"):
        (tmp_path / name).touch()
    assert [step for step, _ in snapshots_in(tmp_path)] == [2, 10, 12345678]
    assert snapshots_in(tmp_path / "nowhere") == []


@pytest.mark.parametrize("sigma_rel", [-0.1, 0.0, 0.28, 1.0, float("nan")])
def test_impossible_widths_are_refused(tmp_path: Path, sigma_rel: float) -> None:
    train(tmp_path, 4, [])
    with pytest.raises(UserError, match=f"ema={sigma_rel} must be above 0 and below 0.28"):
        rebuild(tmp_path, sigma_rel)


@pytest.mark.parametrize("there", [0, 1])
def test_too_few_snapshots_are_refused(tmp_path: Path, there: int) -> None:
    train(tmp_path, there or 1, [])
    if not there:
        next(tmp_path.iterdir()).unlink()
    with pytest.raises(UserError, match=rf"ema=0\.07 needs two .* has {there}\. .*callbacks\.ema\.snapshots=16"):
        rebuild(tmp_path, 0.07)


@pytest.mark.parametrize(("num_snapshots", "sigma_rel"), [(16, 0.02), (16, 0.27), (4, 0.15), (2, 0.03)])
def test_widths_that_the_snapshots_cannot_tell_are_refused_with_the_nearest_that_they_can(
    tmp_path: Path, num_snapshots: int, sigma_rel: float
) -> None:
    train(tmp_path, num_snapshots, [])
    with pytest.raises(UserError, match=f"^ema={sigma_rel} ") as refused:
        rebuild(tmp_path, sigma_rel)
    nearest = float(str(refused.value).rpartition("ema=")[2].split(",")[0])
    assert rebuild(tmp_path, nearest)["w"].isfinite().all()
    assert 0 < abs(nearest - sigma_rel) < 0.06


def test_a_width_that_was_kept_is_offered_where_no_other_is_near_enough() -> None:
    with pytest.raises(UserError, match=r"^ema=0\.2 .*Use ema=0\.055, "):
        weights_of([(10, 0.055), (1000, 0.055)], 0.2)


def test_sixteen_snapshots_of_two_widths_give_what_the_documents_say(tmp_path: Path) -> None:
    kept = Profiles.of(*every(16, 100_000))
    errors = {width: solve_weights(kept, Profiles.of((100_000, width)))[1] for width in (0.025, 0.03, 0.23, 0.235)}
    assert errors[0.03] < MAX_ERROR > errors[0.23]
    assert errors[0.025] > MAX_ERROR < errors[0.235]


@pytest.mark.parametrize("kept", [0, 100, -100])
def test_snapshots_cut_short_are_named(tmp_path: Path, kept: int) -> None:
    train(tmp_path, 4, [])
    path = tmp_path / Snapshot.name(1000)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"step_0001000\.pth is damaged"):
        rebuild(tmp_path, 0.07)


def test_one_wrong_byte_in_the_weights_is_noticed(tmp_path: Path) -> None:
    train(tmp_path, 4, [])
    path = tmp_path / Snapshot.name(1000)
    content = bytearray(path.read_bytes())
    values = torch.load(path, weights_only=True)["tracks"][0.05]["w"].numpy().tobytes()
    content[content.index(values) + random.Random(0).randrange(len(values))] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"step_0001000\.pth is damaged"):
        rebuild(tmp_path, 0.07)


@pytest.mark.parametrize(
    "content",
    [[1, 2], {"step": 3}, {"step": 1000, "tracks": {}, "rest": {}}, {"step": 0, "tracks": {0.1: {}}, "rest": {}}],
)
def test_files_that_are_no_snapshots_are_named(tmp_path: Path, content: object) -> None:
    train(tmp_path, 4, [])
    torch.save(content, tmp_path / Snapshot.name(1000))
    with pytest.raises(UserError, match=r"step_0001000\.pth is damaged"):
        rebuild(tmp_path, 0.07)


def test_snapshots_of_another_network_are_refused(tmp_path: Path) -> None:
    train(tmp_path, 4, [])
    write(tmp_path, 1000, {0.1: {"w": torch.zeros(1, dtype=torch.float16)}})
    with pytest.raises(UserError, match=r"ema=0\.07: .* different networks"):
        rebuild(tmp_path, 0.07)


def test_weights_beyond_float16_are_refused(tmp_path: Path) -> None:
    for step in (1, 2):
        write(tmp_path, step, {width: {"w": torch.tensor([1.0, 1e6]).half()} for width in KEPT})
    with pytest.raises(UserError, match=r"ema=0\.1: .* contain NaN or Inf"):
        rebuild(tmp_path, 0.1)
