"""Hours and what bounds them by hand, and the command."""

import sys
from dataclasses import replace

import pytest
import torch

from latentfaces.cli.budget import main, plans
from latentfaces.cost import estimate as counting
from latentfaces.cost.estimate import Machine, Plan, estimate, report
from latentfaces.cost.step import Part, StepCost
from latentfaces.errors import UserError

COST = StepCost(
    batch_size=10, parts={"denoiser": Part(1_000_000, 4 * 10**9)}, flops=120 * 10**9, moved=10**10, weights=4 * 10**6,
    gradients=4 * 10**6, optimizer=8 * 10**6, averages=4 * 10**6, peak=10**9, checkpoint=20 * 10**6, exported=4 * 10**6,
    trained=4 * 10**6,
)  # fmt: skip
MACHINE = Machine("Abacus", bfloat16=1e12, float32=1e11, memory=2e9, bandwidth=1e12, link=1e9)


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A plan of a known cost."""
    monkeypatch.setattr(Plan, "cost", lambda self, bfloat16, gpu: COST)
    return Plan("A plan", lambda: pytest.fail("counted"), 10, 256, item=1000, max_steps=6000)


def test_seconds_are_flops_over_the_share_of_the_peak(plan: Plan) -> None:
    it = estimate(plan, MACHINE, share=0.2)
    assert (it.step, it.bound, it.bfloat16) == (pytest.approx(120e9 / (0.2 * 1e12)), "compute", True)
    assert "| 1.0 |" in report(plan, [MACHINE], share=0.2)  # hours of 6,000 steps of 0.6 s
    slower = estimate(replace(plan, bfloat16=False), MACHINE, share=0.2)
    assert slower.step == pytest.approx(10 * it.step)
    assert not estimate(plan, replace(MACHINE, bfloat16=0)).bfloat16


def test_a_cpu_without_units_for_bfloat16_is_taken_in_float32_as_train_py_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "best_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(counting, "fastest", lambda work: 1.0)
    for has_units, speed in ((True, 2 * 2048**3), (False, 0)):
        monkeypatch.setattr(counting, "multiplies_bfloat16", lambda device, has_units=has_units: has_units)
        here = counting.this_machine()
        assert (here.bfloat16, here.float32) == (speed, 2 * 2048**3)


def test_the_slowest_way_bounds(plan: Plan) -> None:
    for change, bound, seconds in [
        ({"bandwidth": 1e9}, "memory", 10.0),
        ({"link": 1e6}, "gradients", 2 * 7 / 8 * 4.0),
    ]:
        it = estimate(replace(plan, num_devices=8), replace(MACHINE, **change))
        assert (it.bound, it.step) == (bound, pytest.approx(seconds))
    it = estimate(replace(plan, item=10**9), MACHINE)
    assert (it.bound, it.step) == ("data", pytest.approx(10.0))


def test_accumulated_batches_compute_more_and_send_once(plan: Plan) -> None:
    once, thrice = (estimate(replace(plan, num_devices=8, accumulate=n), MACHINE).seconds for n in (1, 3))
    more = {name: thrice[name] / once[name] for name in once}
    assert more == {"compute": pytest.approx(3), "memory": pytest.approx(3), "gradients": 1, "data": pytest.approx(3)}


def test_shards_divide_what_is_held_and_ddp_keeps_copies_of_the_gradients(plan: Plan) -> None:
    held = plan.memory(COST)
    assert sum(held.values()) == COST.peak
    shared = replace(plan, num_devices=4).memory(COST)
    assert shared["activations"] - held["activations"] == COST.gradients
    sharded = replace(plan, num_devices=4, sharded=True).memory(COST)
    assert sharded == {name: value if name == "activations" else value / 4 for name, value in held.items()}


def test_a_limit_of_time_gives_steps_and_too_little_memory_is_said(plan: Plan) -> None:
    text = report(replace(plan, max_steps=None, max_hours=0.5), [replace(MACHINE, memory=5e8)], share=0.2)
    assert "| steps |" in text
    assert "| 3,000 |" in text  # half an hour of steps of 0.6 s
    assert "1.0 GB of 0.5 GB, too much" in text


def budget(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What the command prints."""
    monkeypatch.setattr(sys, "argv", ["budget", *arguments])
    main()
    return capsys.readouterr().out


TINY = ["experiment=demo", "data.batch_size=2", "trainer.precision=32-true", "--share", "0.5"]


def test_the_command_knows_both_stages(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = budget(capsys, monkeypatch, *TINY, "--measure", "1")
    first, second = text.split("## Stage 2")
    assert "the pack of 4,000 pictures 49.2 MB" in first  # 4,000 x 3 x 64 x 64
    assert "the latents and their mirror images 32.8 MB" in second  # 4,000 x 2 x 2 x 4 x 16 x 16 x 2
    assert "| decoder |" in first
    assert "| denoiser | 7.2 M |" in second or "| denoiser | 7.3 M |" in second
    assert "50% of the peak" in second
    assert text.count("Measured on this machine") == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["model/denoiser=nonsense"], "nonsense"),
        (["model=vae", "data.resolution=30"], "data.resolution=30 is not a multiple"),
        (["model=vae", "trainer.max_step=3"], "max_step"),
        (["nonsense"], "nonsense has no value"),
        (["model=vae", "data.batch_size=0"], "data.batch_size=0 must be at least 1"),
        (["model=vae", "trainer.max_time=soon"], "trainer.max_time=soon must be days:hours:minutes:seconds"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as left:
        budget(capsys, monkeypatch, *arguments)
    assert str(left.value).startswith("error: ")
    assert sentence in str(left.value)
    assert "\n" not in str(left.value)


@pytest.mark.parametrize(
    ("devices", "number"), [("auto", 2), (-1, 2), (8, 8), ("'4'", 4), ("'0,1'", 2), ("[0,2,3]", 3)]
)
def test_devices_are_counted_as_a_training_here_would(
    devices: object, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    (counted,) = plans(["model=vae", f"trainer.devices={devices}"])
    assert counted.num_devices == number


@pytest.mark.parametrize("devices", [-2, "all", 0])
def test_devices_without_a_number_are_refused(devices: object) -> None:
    with pytest.raises(UserError, match=rf"^trainer\.devices={devices} is no number of devices"):
        plans(["model=vae", f"trainer.devices={devices}"])
