"""The distance of new faces to photos in the log of a training."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.commands import SHORT, TINY_LDM, TINY_VAE, run_command, trained_in
from torch import Tensor

from latentfaces.evaluation.panels import read_curves
from latentfaces.training import LatentDiffusionModule
from latentfaces.training.callbacks import FaceMetrics, face_metrics

MEASURED = [*TINY_LDM, *SHORT, "callbacks=measured", "callbacks.face_metrics.num_images=40"]
OFTEN = "callbacks.face_metrics.every_n_minutes=0"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workplace with a VAE of 400 drawn faces, 100 held out."""
    return trained_in(tmp_path_factory.mktemp("measured"), [*TINY_VAE, *SHORT, "data.num_images=400", "name=faces"])


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


def test_training_waits_no_longer_than_it_says(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    seconds = iter(range(0, 10**6, 20))
    monkeypatch.setattr(face_metrics, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    made: list[int] = []
    make = LatentDiffusionModule.faces_from
    monkeypatch.setattr(
        LatentDiffusionModule,
        "faces_from",
        lambda self, noise, *more: made.append(len(noise)) or make(self, noise, *more),
    )
    run_command(
        "train.py", *MEASURED, OFTEN, "callbacks.face_metrics.batch_size=4", "callbacks.face_metrics.max_seconds=30",
        "name=slow",
    )  # fmt: skip
    assert made.count(4) == 4  # two validations; each batch seems to take 20 seconds
    assert "8 faces in 30 seconds are too few" in capsys.readouterr().out
    assert "val/feature_distance" not in read_curves("outputs/ldm/slow/metrics.csv")


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


def test_stage_one_has_no_new_faces() -> None:
    with pytest.raises(ValueError, match="num_images=31"):
        FaceMetrics(num_images=31)
