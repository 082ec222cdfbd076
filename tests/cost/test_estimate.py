"""Hours, disk and memory against closed forms, and the command."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.commands import ADVERSARIAL, SHORT, TINY_VAE, Command

from latentfaces.cli.budget import main, plans
from latentfaces.cost.estimate import GPU, Plan, report
from latentfaces.cost.step import StepCost
from latentfaces.errors import UserError

COST = StepCost(
    parameters={"denoiser": 1_000_000}, flops=120 * 10**9, memory={"weights": 4 * 10**6, "activations": 996 * 10**6},
    files={"checkpoints": 20 * 10**6, "best weights": 4 * 10**6, "snapshots": 2 * 10**6, "guide": 5 * 10**6},
)  # fmt: skip
ABACUS = GPU("Abacus", bfloat16=1e12, float32=1e11, memory=2e9)


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A plan of known cost."""
    monkeypatch.setattr(Plan, "cost", lambda self, bfloat16: COST)
    return Plan("A plan", lambda: pytest.fail("counted"), 10, 256, max_steps=9000)


def test_hours_are_flops_over_a_fraction_of_the_peak(plan: Plan) -> None:
    assert "| Abacus | bf16-mixed | 1.0 GB of 2.0 GB | 1.0 hours |" in report(plan, (ABACUS,))  # 9,000 steps of 0.4 s
    assert "| 32-true | 1.0 GB of 2.0 GB | 10.0 hours |" in report(replace(plan, bfloat16=False), (ABACUS,))
    assert "| 32-true | 1.0 GB of 2.0 GB | 10.0 hours |" in report(plan, (ABACUS._replace(bfloat16=0),))
    assert "| 3.0 hours |" in report(replace(plan, accumulate=3), (ABACUS,))


def test_a_time_limit_gives_steps_and_too_little_memory_is_reported(plan: Plan) -> None:
    text = report(replace(plan, max_steps=None, max_hours=0.5), (ABACUS._replace(memory=5e8),))
    assert "| 1.0 GB of 0.5 GB, does not fit | 4,500 steps |" in text  # half an hour of steps of 0.4 s
    assert "| no limit |" in report(replace(plan, max_steps=None), (ABACUS,))


def test_disk_counts_files_by_their_number(plan: Plan) -> None:
    files = {"checkpoints": 3, "best weights": 1, "snapshots": 34, "guide": 0}
    assert replace(plan, files=files, data={"pack": 7}).disk(COST) == {
        "pack": 7,
        "checkpoints": 3 * 20 * 10**6,
        "best weights": 4 * 10**6,
        "snapshots": 34 * 2 * 10**6,
    }


def test_stage_2_writes_checkpoints_snapshots_guide_and_vae() -> None:
    first, second = plans(["data=synthetic"])
    names = ("checkpoints", "best weights", "snapshots", "guide", "VAE copy")
    assert first.files == dict(zip(names, (3, 1, 0, 0, 0), strict=True))
    assert second.files == dict(zip(names, (3, 1, 32, 1, 1), strict=True))
    assert second.num_averages == 2
    (without,) = plans(["model=ldm", "data=synthetic", "callbacks=none"])
    assert [without.files[name] for name in names] == [0, 1, 0, 0, 1]
    (more,) = plans(["model=ldm", "data=synthetic", "callbacks.best.save_top_k=4", "~callbacks.last"])
    assert more.files["checkpoints"] == 4


def budget(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """Return what the command prints."""
    monkeypatch.setattr(sys, "argv", ["latentfaces-budget", *arguments])
    main()
    return capsys.readouterr().out


def test_the_command_reports_both_stages(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["experiment=demo", "data.batch_size=2", "trainer.precision=32-true", "--images", "2000"]
    first, second = budget(capsys, monkeypatch, *arguments).split("## Stage 2")
    assert "pack of 2,000 images 24.6 MB" in first  # 2,000 x 3 x 64 x 64
    assert "latents and their mirror images 16.4 MB" in second  # 2,000 x 2 x 2 x 4 x 16 x 16 x 2
    assert "Parameters: encoder 0.4 M, decoder 0.4 M, perceptual network 4.7 M." in first
    assert "denoiser 7.3 M" in second
    assert "activations" in first
    assert "| H100 80 GB | 32-true |" in second


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["model/denoiser=nonsense"], "nonsense"),
        (["model=vae", "data.resolution=30"], "data.resolution=30 is no multiple"),
        (["model=vae", "trainer.max_step=3"], "max_step"),
        (["nonsense"], "Cannot parse override nonsense."),
        (
            ["model=vae", "data.batch_size=0"],
            "data.batch_size=0 is invalid: input should be greater than or equal to 1",
        ),
        (["model=vae", "trainer.max_time=soon"], "trainer.max_time=soon is invalid: use days:hours:minutes:seconds"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as left:
        budget(capsys, monkeypatch, *arguments)
    assert str(left.value).startswith("error: ")
    assert sentence in str(left.value)
    assert "\n" not in str(left.value)


def test_a_number_of_images_below_one_is_rejected(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit):
        budget(capsys, monkeypatch, "--images", "0")
    assert "--images=0 must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("devices", "number"), [("auto", 2), (-1, 2), (8, 8), ("'4'", 4), ("'0,1'", 2), ("[0,2,3]", 3)]
)
def test_devices_are_counted_as_a_training_here_would(
    devices: object, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    (counted,) = plans(["model=vae", f"trainer.devices={devices}"])
    assert counted.title.endswith(f"devices: {number}")


@pytest.mark.parametrize("devices", [-2, "all", 0])
def test_devices_without_a_number_are_rejected(devices: object) -> None:
    with pytest.raises(UserError, match=rf"trainer\.devices={devices}"):
        plans(["model=vae", f"trainer.devices={devices}"])


def test_disk_is_that_of_a_real_run(train: Command, squeezenet: Path) -> None:
    wide = [*TINY_VAE, *ADVERSARIAL, f"model.loss.perceptual.weights={squeezenet}", "model.autoencoder.channels=32"]
    dit = ["model=ldm", "model/denoiser=tiny", "model.denoiser.network.depth=2", "data.batch_size=8", "vae=a"]
    short = [*SHORT, "callbacks.last.every_n_train_steps=2"]
    ldm = [*dit, *short, "model.sampler.num_steps=2", "callbacks.ema.snapshots=2", "name=b"]
    train(*wide, *short, "name=a")
    train(*ldm)
    written = {
        folder: sum(path.stat().st_size for path in Path(folder).rglob("*") if path.suffix in (".ckpt", ".pth", ".npy"))
        for folder in ("data", "outputs/vae/a", "outputs/ldm/b")
    }
    ((first,), (second,)) = plans([*wide, *short], 48), plans([*ldm], 48)
    for plan, folder in ((first, "outputs/vae/a"), (second, "outputs/ldm/b")):
        counted = plan.disk(plan.cost(bfloat16=False))
        assert sum(counted.values()) - sum(plan.data.values()) == pytest.approx(written[folder], rel=0.04), folder
    assert sum(second.data.values()) == pytest.approx(written["data"], rel=0.02)


def test_stage_2_has_the_resolution_of_the_vae_that_the_recipe_trains(tmp_path: Path) -> None:
    sizes = [plan.resolution for plan in plans(["experiment=faces64_cpu", "data=folder", f"data.root={tmp_path}"])]
    assert sizes == [64, 64]


def test_the_recipe_for_24_gb_fits() -> None:
    for plan in plans(["experiment=ffhq256", "data=ffhq"]):
        assert sum(plan.cost(bfloat16=True).memory.values()) < 0.8 * 24e9, plan.title
