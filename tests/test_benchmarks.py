"""Benchmarks: both sides of a row do the same work, and ratios follow from the measured times."""

import dataclasses
import importlib
import itertools
import json
import mmap
import sys
import time
from argparse import ArgumentTypeError
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from latentfaces.cost.step import TrainingStep
from latentfaces.nn.device import multiplies_bfloat16

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
STEMS = {path.stem for path in BENCHMARKS.glob("*.py")}


@pytest.fixture(scope="module")
def benchmark() -> Iterator[Any]:
    """`benchmark("rows")` imports benchmarks/rows.py as its scripts do."""
    sys.path.insert(0, str(BENCHMARKS))
    before = {stem: sys.modules.pop(stem) for stem in STEMS & sys.modules.keys()}
    yield importlib.import_module
    for stem in STEMS:
        sys.modules.pop(stem, None)
    sys.modules.update(before)
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def table(benchmark: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The rows of two networks at toy sizes, as they are written down."""
    pytest.importorskip("diffusers")
    path = tmp_path_factory.mktemp("speed") / "speed.json"
    benchmark("speed").main(["--quick", "--rows", "vae,stage1,unet,dit,decode", "--json", str(path)])
    return json.loads(path.read_text())


NETWORKS = ("vae", "stage1", "unet", "dit", "decode")


@pytest.mark.parametrize("row", NETWORKS)
def test_both_sides_have_as_many_parameters(table: dict[str, Any], row: str) -> None:
    more = table["rows"][row]["more"]
    assert more["ours M"] == pytest.approx(more["theirs M"], rel=0.05)  # at toy sizes embeddings count for much


def test_at_full_size_both_sides_have_as_many_parameters_within_one_percent(benchmark: Any) -> None:
    pytest.importorskip("diffusers")
    ours, peers, count = benchmark("ours"), benchmark("peers"), benchmark("rows").count
    with torch.device("meta"):
        pairs = {
            "vae": (ours.equal_vae(64).network, peers.diffusers_vae()),
            "unet": (ours.built_ldm("model/denoiser=unet_s").network, peers.diffusers_unet()),
            "dit": (ours.built_ldm("model/denoiser=dit_s").network, peers.PlainDiT()),
        }
        sizes = {name: (count(one), count(other)) for name, (one, other) in pairs.items()}
    assert all(one == pytest.approx(other, rel=0.01) for one, other in sizes.values()), sizes
    assert sizes["vae"][0] == pytest.approx(13.9e6, rel=0.01)


@pytest.mark.parametrize("row", ["vae", "unet", "dit", "decode"])
def test_ours_has_no_more_operations_and_leaves_out_little(table: dict[str, Any], row: str) -> None:
    more = table["rows"][row]["more"]
    assert 0.7 < more["ours GF"] / more["theirs GF"] < 1.03


@pytest.mark.parametrize("row", NETWORKS)
def test_ratios_are_those_of_the_medians(table: dict[str, Any], row: str) -> None:
    found = table["rows"][row]
    took = {name: figures["median"] for name, figures in found["figures"]["cpu"].items()}
    assert found["ratios"]["fp32"] == pytest.approx(took["theirs fp32"] / took["ours fp32"])
    precision = "bf16" if multiplies_bfloat16(torch.device("cpu")) else "fp32"
    assert found["ratios"][precision] == pytest.approx(took[f"theirs {precision}"] / took[f"ours {precision}"])
    assert found["ratios"]["shipped"] == pytest.approx(took["theirs fp32"] / took[f"ours {precision}"])


@pytest.mark.parametrize(("units", "expected"), [(True, ("fp32", "bf16")), (False, ("fp32",))])
def test_bfloat16_is_measured_where_the_device_has_units_for_it(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, units: bool, expected: tuple[str, ...]
) -> None:
    rows = benchmark("rows")
    monkeypatch.setattr(rows, "in_bfloat16", lambda *_: units)
    scale = dataclasses.replace(rows.QUICK, rounds=2 + units)  # the limits of a scale are measured once
    assert scale.precisions == expected
    rival = rows.Rival(1, lambda bfloat16: torch.ones(2, 2) @ torch.ones(2, 2))
    told = rows.compare("nothing", rival, rival, scale)
    assert {name.split()[1] for name in told.figures["cpu"]} == set(expected)
    assert set(told.ratios) == {"shipped", *expected}


def test_table_says_what_made_it(table: dict[str, Any]) -> None:
    assert table["command"].startswith("python benchmarks/speed.py --quick --rows vae,")
    assert {"torch", "diffusers", "lightning"} <= table["versions"].keys()
    assert table["machine"]
    assert table["date"]


def test_floor_on_paper_is_operations_and_bytes_by_the_data_sheet(benchmark: Any) -> None:
    a = torch.ones(300, 500)
    row = benchmark("rows").on_paper("a product", lambda: a @ a.T)
    assert row.more == {"TFLOP": 2 * 300 * 500 * 300 / 1e12, "GB moved": 4 * (2 * 300 * 500 + 300 * 300) / 1e9}
    floors = {name: figure["median"] for name, figure in row.figures["paper"].items()}
    assert floors["arithmetic"] == pytest.approx(1e3 * 9e7 / 989e12)  # 989 TFLOP/s in bfloat16, 3.35 TB/s
    assert floors["memory"] == pytest.approx(1e3 * 1.56e6 / 3.35e12)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_rows_of_networks_are_counted_at_the_sizes_of_a_gpu_in_no_memory(benchmark: Any, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    told = benchmark("speed").main(["--paper", "--rows", "dit"])
    width, depth, tokens, latents = 768, 12, 256, 256
    forward = depth * (2 * 12 * width**2 * tokens + 4 * width * tokens**2)  # of one: layers, and attention
    assert told["dit"].more["TFLOP"] == pytest.approx(3 * latents * forward / 1e12, rel=0.01)
    with pytest.raises(SystemExit):
        benchmark("speed").main(["--paper", "--rows", "trainer"])


def test_what_a_person_waits_for_is_timed_too(benchmark: Any) -> None:
    told = benchmark("speed").main(["--quick", "--rows", "faces,encode"])
    faces, encode = (told[name].figures["cpu"]["ours"]["median"] for name in ("faces", "encode"))
    assert faces > encode > 0
    minutes = told["encode"].more["minutes for both mirror images of FFHQ"]
    assert minutes == pytest.approx(140_000 * encode / 60_000)


def test_unknown_row_is_refused_with_the_names_there_are(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        benchmark("speed").main(["--rows", "vea"])
    assert refusal.value.code == 2
    assert "--rows vea is none of limits, vae, stage1" in capsys.readouterr().err


def test_turns_are_taken_and_the_first_round_does_not_count(benchmark: Any) -> None:
    timing, order = benchmark("timing"), []
    costs = itertools.count()

    def cost(work: Any) -> float:
        order.append(work())
        return float(next(costs))

    found = timing.interleaved({"a": lambda: "a", "b": lambda: "b"}, 3, cost)
    assert order == ["a", "b"] * 4
    assert found == {"a": {"median": 4, "min": 2, "max": 6}, "b": {"median": 5, "min": 3, "max": 7}}


def test_operations_of_a_product_are_known(benchmark: Any) -> None:
    a = torch.randn(100, 200)
    assert benchmark("rows").gigaflops(lambda: a @ a.T) == pytest.approx(2 * 100 * 200 * 100 / 1e9)


def test_two_forwards_give_the_gradient_that_ours_gives_with_one(benchmark: Any) -> None:
    networks, ours, peers = benchmark("networks"), benchmark("ours"), benchmark("peers")
    torch.manual_seed(0)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    module = networks.with_adversary(ours.equal_vae(16), networks.PerceptualDistance.untrained("squeeze"))
    for parameter in module.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    step = TrainingStep(module, images)

    def reconstruct(photos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        reconstructions, posterior, _ = module.network(photos)
        return reconstructions, posterior.kl().mean()

    kl_weight = module.kl_weight(step.module.global_step) / images[0].numel()
    theirs = peers.TwoForwards(
        module.network, reconstruct, module.network.last_layer,
        lambda photos, made: module.loss.distortion(photos, made).total, module.adversary.discriminator, kl_weight,
    )  # fmt: skip
    found = []
    for loss in (lambda: module.training_step(images, 0), lambda: theirs.loss_of_vae(images)):
        torch.manual_seed(1)  # of the draw of latents
        module.zero_grad()
        value = loss()
        value.backward()
        gradient = torch.cat([p.grad.flatten() for p in module.network.parameters() if p.grad is not None])
        found.append((value.item(), gradient.clone()))
    (value, gradient), (their_value, their_gradient) = found
    assert value == pytest.approx(their_value, rel=1e-5)
    assert (gradient - their_gradient).norm() < 1e-4 * their_gradient.norm()


def test_a_step_is_timed_next_to_the_bare_loops(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    around = benchmark("around")
    now = 1.0

    def loop() -> Iterator[None]:
        nonlocal now
        while True:
            now += 0.002
            yield

    monkeypatch.setattr(around.time, "process_time", lambda: now)
    clock = around.StepClock(loop())
    for step in range(11):
        clock.on_train_batch_start()
        now += 9.0 if step == 0 else 0.005  # the first of ten is slow
    assert clock.ms(4) == [pytest.approx((2, 5))] * 2


@pytest.mark.slow
def test_trainer_and_bare_loop_take_the_same_steps(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cost = benchmark("around").TrainerCost(20, tmp_path)
    for clock in (cost.shipped("csv"), cost.usual()):
        # Which of them is the dearest is for the benchmark to say, on a quiet machine.
        assert (len(clock.bare), len(clock.trainer)) == (20, 19)
        assert min(clock.bare + clock.trainer) > 0


def test_the_best_of_a_peers_samplers_counts(benchmark: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    quality: ModuleType = benchmark("quality")
    scores = {"floor": 69.0, "latentfaces": 213.0, quality.OURS: 122.0, "diffusers-tuned, ddim 50": 1361.0}
    scores |= {"diffusers-tuned, dpm 20": 1385.0, "diffusers, ddim 50": 1000.0, "DiT": 300.0, "DiT, auto 1.5": 250.0}
    rows = {name: {quality.METRIC: score} for name, score in scores.items()}
    found = quality.points(rows, ["diffusers-tuned", "DiT"])
    assert found == {"latentfaces": 122.0, "diffusers-tuned": 1361.0, "DiT": 250.0, "floor": 69.0}
    of_seeds = {name: [value, 2 * value] for name, value in found.items()}
    quality.plot({3.0: of_seeds, 6.0: of_seeds}, tmp_path / "quality.png")
    assert (tmp_path / "quality.png").stat().st_size > 1000


def test_equal_quality_is_each_sides_own_or_what_both_reach(benchmark: Any) -> None:
    answers = benchmark("equal_quality").answers
    ours = {"heun 18": (100.0, 8.0), "heun 9": (104.0, 4.0), "euler 10": (190.0, 1.0)}
    theirs = {"ddim 50": (200.0, 20.0), "dpm 20": (209.0, 6.0), "dpm 5": (400.0, 2.0)}
    found = answers(ours, theirs)
    assert found["own"] == {"ours": "heun 9", "theirs": "dpm 20", "times_faster": 1.5}
    assert found["common"] == {"ours": "euler 10", "theirs": "dpm 20", "times_faster": 6.0}


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--rivals", "latentfaces,taef"], "taef is none of latentfaces, diffusers"),
        (["--rivals", "taef2"], "--rivals taef2 needs --taef2 FOLDER"),
    ],
)
def test_a_rival_that_cannot_be_measured_is_named_before_any_is_trained(
    benchmark: Any, capsys: pytest.CaptureFixture[str], typed: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as refusal:
        benchmark("autoencoder").main(["photos.zip", *typed])
    assert refusal.value.code == 2
    assert said in capsys.readouterr().err


def test_samplers_are_chosen_with_their_steps_or_all_of_a_kind(benchmark: Any) -> None:
    names = ["heun 5", "heun 9", "ddpm 20", "ddpm 50"]
    chosen = benchmark("equal_quality").chosen
    assert chosen("ddpm 50,heun", names) == ["ddpm 50", "heun 5", "heun 9"]
    with pytest.raises(ArgumentTypeError, match="euler, ddpm 7 is none of heun 5"):
        chosen("euler,heun,ddpm 7", names)


def test_a_setting_of_a_peer_that_there_is_not_is_named_before_it_is_trained(
    benchmark: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refusal:
        benchmark("equal_quality").main(["photos.zip", "--vae", "a", "--run", "b", "--theirs", "dpm,ddim 7"])
    assert refusal.value.code == 2
    assert "argument --theirs: ddim 7 is none of ddim 2, ddim 3" in capsys.readouterr().err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_counts_anonymous_memory_alone(benchmark: Any, tmp_path: Path) -> None:
    around, size = benchmark("around"), 2**26
    path = tmp_path / "mapped.bin"
    path.write_bytes(bytes(size))
    before = around.anonymous_memory()
    with around.PeakMemory() as memory, path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        assert sum(mapped[:: mmap.PAGESIZE]) == 0  # every page is resident
        assert memory.peak - before < size / 4
        held = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # malloc may have freed memory to give
        held.write(b"x" * size)
        time.sleep(0.2)
    assert 0.9 * size < memory.peak - before < 2.2 * size
