"""Hours and disk against closed forms and a real run, and the command."""

import re
import sys
from pathlib import Path

import pytest
from helpers.commands import ADVERSARIAL, SHORT, TINY_VAE, Command

from latentfaces.cli.budget import describe, main, stage_config
from latentfaces.cost.estimate import GPU, report
from latentfaces.cost.step import StepCost

COST = StepCost({"denoiser": 1_000_000}, flops=120 * 10**9, state=4 * 10**6, activations=996 * 10**6, checkpoint=0)
ABACUS = GPU("Abacus", bfloat16=1e12, float32=1e11, memory=2e9)


@pytest.mark.parametrize(
    ("gpu", "bfloat16", "limits", "row"),
    [
        (ABACUS, True, (9000, 0), "| Abacus | fits | 1.0 hours |"),  # 9,000 steps of 0.4 s
        (ABACUS, False, (9000, 0), "| Abacus | fits | 10.0 hours |"),
        (ABACUS, True, (-1, 1800), "| Abacus | fits | 4,500 steps |"),  # half an hour of steps of 0.4 s
        (ABACUS, True, (-1, 0), "| Abacus | fits | 9,000 steps per hour |"),
        (ABACUS._replace(memory=1e9), True, (-1, 0), "| Abacus | fits |"),
        (ABACUS._replace(memory=0.99e9), True, (-1, 0), "| Abacus | does not fit |"),
    ],
)
def test_hours_are_flops_over_a_fraction_of_the_peak(
    gpu: GPU, bfloat16: bool, limits: tuple[int, int], row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentfaces.cost.estimate.GPUS", (gpu,))
    assert row in report(COST, {"pack": 7}, bfloat16, *limits)


def budget(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """Return what the command prints."""
    monkeypatch.setattr(sys, "argv", ["latentfaces-budget", *arguments])
    main()
    return capsys.readouterr().out


def test_the_command_reports_both_stages(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["experiment=demo", "data.num_images=2000000", "data.batch_size=2", "trainer.precision=32-true"]
    first, second = budget(capsys, monkeypatch, *arguments).split("## Stage 2")
    assert "pack of 2,000,000 images 24.58 GB" in first  # 2,000,000 x 3 x 64 x 64
    assert "latents 16.38 GB" in second  # 2,000,000 x 2 x 2 x 4 x 16 x 16 x 2, with their mirror images
    assert "snapshots 0.47 GB" in second  # 16 of 2 averages of 7.3 M parameters of 2 bytes
    assert "Parameters: encoder 0.4 M, decoder 0.4 M." in first
    assert "denoiser 7.3 M" in second
    assert "Length in 32-true" in second


def test_accumulation_multiplies_the_flops_of_a_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentfaces.cost.step.count_step", lambda *_: COST)
    assert "device: 360.0 G" in budget(capsys, monkeypatch, "model=ldm", "trainer.accumulate_grad_batches=3")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["model/denoiser=nonsense"], "nonsense"),
        (["model=vae", "data.resolution=30"], "data.resolution=30 is no multiple"),
        (["model=vae", "trainer.max_step=3"], "max_step"),
        (["model=fast"], "model=fast has no budget."),
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
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert said.startswith("error: ")
    assert sentence in said
    assert said.count("\n") == 1


def test_disk_is_that_of_a_real_run(train: Command, squeezenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = [*TINY_VAE, *ADVERSARIAL, f"model.loss.perceptual.weights={squeezenet}", "model.autoencoder.channels=32"]
    dit = ["model/denoiser=tiny", "model.denoiser.network.depth=2", "data.batch_size=8", "vae=a"]
    short = [*SHORT, "callbacks.last.every_n_train_steps=2"]
    ldm = [*dit, *short, "model.sampler.num_steps=2", "callbacks.ema.snapshots=2"]
    train(*wide, *short, "name=a")
    train("model=ldm", *ldm, "name=b")
    disks: list[dict[str, int]] = []
    monkeypatch.setattr("latentfaces.cost.estimate.report", lambda cost, disk, *_: disks.append(disk))
    describe(stage_config("vae", [*wide, *short]))
    describe(stage_config("ldm", ldm))
    first, second = disks

    def written(pattern: str) -> int:
        return sum(path.stat().st_size for path in Path().glob(pattern))

    assert first["3 checkpoints"] == pytest.approx(written("outputs/vae/a/checkpoints/*.ckpt"), rel=0.04)
    assert second.pop("3 checkpoints") == pytest.approx(written("outputs/ldm/b/checkpoints/*.ckpt"), rel=0.04)
    assert second.pop("snapshots") == pytest.approx(written("outputs/ldm/b/checkpoints/ema/*.pth"), rel=0.04)
    assert sum(second.values()) == pytest.approx(written("data/**/*.npy"), rel=0.02)


def test_stage_2_has_the_resolution_of_the_vae_that_the_recipe_trains(tmp_path: Path) -> None:
    overrides = ["experiment=faces64_cpu", "data=folder", f"data.root={tmp_path}"]
    assert [stage_config(stage, overrides).data.resolution for stage in ("vae", "ldm")] == [64, 64]


def test_the_recipe_for_24_gb_fits(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = budget(capsys, monkeypatch, "experiment=ffhq256", "data=ffhq")
    assert [float(memory) < 0.8 * 24 for memory in re.findall(r"Memory of a device: ([\d.]+) GB", text)] == [True, True]
