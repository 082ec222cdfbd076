"""Quality and novelty of samples in the log of a training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import SHORT, TINY_LDM, many_faces, refused, run_command
from helpers.states import rows_of
from torch import Tensor

from latentfaces.data import open_pack
from latentfaces.evaluation.panels import read_curves
from latentfaces.training import LatentDiffusionModule

MEASURED = [*TINY_LDM, *SHORT, "callbacks=measured", "callbacks.face_metrics.num_images=40"]
OFTEN = "callbacks.face_metrics.every_n_minutes=0"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many_faces(tmp_path_factory)


@pytest.fixture
def home(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


def test_each_validation_logs_the_distance_of_the_same_faces(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[Tensor, Tensor]] = []
    make = LatentDiffusionModule.faces_from

    def kept(self: LatentDiffusionModule, noise: Tensor, generator: torch.Generator, *labels: Any) -> Tensor:
        state = generator.get_state()
        faces = make(self, noise, generator, *labels)
        if len(noise) == 40:
            begun.append((noise, state))
            again = torch.Generator().set_state(state)
            assert torch.equal(make(self, noise, again), faces)  # though the sampler adds noise
        return faces

    monkeypatch.setattr(LatentDiffusionModule, "faces_from", kept)
    run_command("train.py", *MEASURED, OFTEN, "sampler@model.sampler=dpmpp_2m_sde", "name=often")
    steps, values = read_curves("outputs/ldm/often/metrics.csv")["val/feature_distance"]
    assert steps == [2, 4]
    assert min(values) > 0  # after four steps they are no faces
    for first, second in zip(*begun, strict=True):
        assert torch.equal(first, second)
    state = torch.load("outputs/ldm/often/checkpoints/last.ckpt", weights_only=True)
    assert not any("FaceMetrics" in str(key) for key in state["callbacks"])


@pytest.mark.parametrize(
    ("options", "clue"),
    [
        (["callbacks.face_metrics.features=nowhere.pt"], "nowhere.pt"),
        (["callbacks.face_metrics.features=inception", "callbacks.face_metrics.weights=nowhere.pth"], "nowhere.pth"),
        (["callbacks.face_metrics.num_images=3"], "num_images=3"),
    ],
)
def test_what_cannot_be_measured_is_said_before_training_starts(
    options: list[str], clue: str, home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LatentDiffusionModule, "training_step", lambda *_: pytest.fail("training began"))
    with pytest.raises(SystemExit):
        run_command("train.py", *MEASURED, *options, "name=never")
    said = capfd.readouterr().err
    assert clue in said
    assert "Traceback" not in said


NOVEL = [*MEASURED, OFTEN, "callbacks.face_metrics.max_memorized=0.05", "trainer.max_steps=8"]


def give_images(monkeypatch: pytest.MonkeyPatch, *parts: str) -> None:
    """Let each measurement "sample" 40 images of a part of the pack: "train", "mirrored" or "held out"."""
    pack = open_pack(next(Path("data").glob("*-16")))
    make, order = LatentDiffusionModule.faces_from, iter(parts)

    def given(self: LatentDiffusionModule, noise: Tensor, generator: torch.Generator, *labels: Tensor | None) -> Tensor:
        if len(noise) < 40:  # the previews
            return make(self, noise, generator, *labels)
        part = next(order)
        images = torch.from_numpy(pack.images[(pack.val_indices if part == "held out" else pack.train_indices)[:40]])
        return images.flip(-1) if part == "mirrored" else images

    monkeypatch.setattr(LatentDiffusionModule, "faces_from", given)


def weights(run: str) -> dict[str, Tensor]:
    return torch.load(f"outputs/ldm/{run}/checkpoints/best_denoiser.pth", weights_only=True)


@pytest.mark.parametrize("copies", ["train", "mirrored"])
def test_copies_of_training_images_stop_training_and_are_never_the_best(
    copies: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    falling = ["model.optimizer.lr=3e-3", "model.lr_schedule.warmup_steps=1", f"name={copies}"]
    give_images(monkeypatch, "held out", "held out", copies, copies)
    run_command("train.py", *NOVEL, *falling)
    steps, values = read_curves(f"outputs/ldm/{copies}/metrics.csv")["val/memorized_fraction"]
    assert steps == [2, 4, 6]
    assert values == pytest.approx([0.01, 0.01, 1.0], abs=0.03)
    losses = [float(row["val/loss"]) for row in rows_of(f"ldm/{copies}") if row["val/loss"]]
    assert min(losses) == losses[-1]  # the copies would have been the best
    assert "is 1.00 at step 6, above 0.05: training stops" in capsys.readouterr().out
    kept = weights(copies)
    give_images(monkeypatch, copies)
    run_command("train.py", *NOVEL, *falling, "resume=auto")
    assert "is 1.00 at step 6, above 0.05: training stops" in capsys.readouterr().out
    assert all(torch.equal(kept[name], value) for name, value in weights(copies).items())
    give_images(monkeypatch, copies, copies)
    run_command("train.py", *NOVEL, *falling, "resume=auto", "callbacks.face_metrics.max_memorized=1")
    assert not all(torch.equal(kept[name], value) for name, value in weights(copies).items())


def test_copies_in_the_first_validation_leave_nothing_to_export(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give_images(monkeypatch, "train")
    said = refused("train.py", *NOVEL, "name=copied")
    assert "val/memorized_fraction is 1.00 at step 2, above 0.05, in the first validation. Add images" in said


def test_few_held_out_images_raise_the_limit(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_command("train.py", *NOVEL, "callbacks.face_metrics.num_photos=16", "trainer.max_steps=2", "name=coarse")
    said = capsys.readouterr().out
    assert "With 16 held-out images val/memorized_fraction is coarse: training stops above 0.25." in said
    curves = read_curves("outputs/ldm/coarse/metrics.csv")
    assert "val/feature_distance" not in curves
    assert curves["val/memorized_fraction"][1] == [0.0]  # after two steps samples are no faces
