"""Files survive what happens to processes."""

import resource
from pathlib import Path

import pytest
import torch

from latentfaces.evaluation.panels import read_curves
from latentfaces.files import read_csv
from latentfaces.training import AtomicCheckpointIO, DiskFullError, ResumableCSVLogger


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    writer = AtomicCheckpointIO()
    writer.save_checkpoint({"step": 1}, path)

    def full_disk(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(DiskFullError, match="was not written: no space"):
        AtomicCheckpointIO("fail").save_checkpoint({"step": 2}, path)
    writer.save_checkpoint({"step": 2}, path)
    assert writer.skipped
    assert not path.with_name("last.ckpt.partial").exists()
    assert torch.load(path, weights_only=True) == {"step": 1}


def test_the_last_checkpoint_but_one_is_kept(tmp_path: Path) -> None:
    writer = AtomicCheckpointIO()
    for step in (1, 2, 3):
        for name in ("last", "best"):
            writer.save_checkpoint({"step": step}, tmp_path / f"{name}.ckpt")
    kept = {path.name: torch.load(path, weights_only=True)["step"] for path in tmp_path.iterdir()}
    assert kept == {"last.ckpt": 3, "last.previous.ckpt": 2, "best.ckpt": 3}


def test_a_checkpoint_of_a_gpu_is_loaded_to_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a machine without GPUs cannot resume it, and all ranks of another load it to the first GPU."""
    with monkeypatch.context() as patched:
        patched.setattr("torch.serialization.location_tag", lambda storage: "cuda:0")
        AtomicCheckpointIO().save_checkpoint({"weight": torch.arange(3.0)}, tmp_path / "last.ckpt")
    loaded = AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")["weight"]
    assert loaded.device.type == "cpu"
    assert loaded.tolist() == [0, 1, 2]


def log_six_steps(folder: Path) -> None:
    """Log the loss of steps 0 to 5."""
    first = ResumableCSVLogger(folder)
    for step in range(6):
        first.log_metrics({"train/loss": float(step)}, step)
    first.save()


def test_a_resumed_log_stays_on_disk_until_its_first_save(tmp_path: Path) -> None:
    log_six_steps(tmp_path)
    before = (tmp_path / "metrics.csv").read_bytes()
    resumed = ResumableCSVLogger(tmp_path)
    resumed.log_metrics({"train/loss": 40.0}, 4)
    assert (tmp_path / "metrics.csv").read_bytes() == before
    resumed.save()
    for step in (5, 6):  # a new column must not drop the rows of this session
        resumed.log_metrics({"val/loss": 1.0}, step)
        resumed.save()
    assert [row["step"] for row in read_csv(tmp_path / "metrics.csv")] == ["0", "1", "2", "3", "4", "5", "6"]


@pytest.mark.parametrize("cut", [2, 4, 6])
def test_a_cut_row_is_skipped(tmp_path: Path, cut: int) -> None:
    log_six_steps(tmp_path)
    path = tmp_path / "metrics.csv"
    path.write_bytes(path.read_bytes()[:-cut])
    steps, _ = read_curves(path)["train/loss"]
    assert steps == [0, 1, 2, 3, 4]
    resumed = ResumableCSVLogger(tmp_path)
    resumed.log_metrics({"train/loss": 40.0}, 6)
    resumed.save()
    assert read_curves(path)["train/loss"][0] == [*steps, 6]


def test_rows_of_a_full_disk_wait(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = ResumableCSVLogger(tmp_path)
    path, most = tmp_path / "metrics.csv", resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    for step in range(6):
        log.log_metrics({"train/loss": float(step)}, step)
        full = step in (2, 3)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 3 if full else most, most))
        try:
            log.save()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        if full:
            assert [row["step"] for row in read_csv(path)] == ["0", "1"]
    assert [row["step"] for row in read_csv(path)] == ["0", "1", "2", "3", "4", "5"]
    assert capsys.readouterr().err.count(f"{path} was not written: file too large") == 1


def test_a_resumed_log_keeps_what_came_before_its_step_and_no_more(tmp_path: Path) -> None:
    log_six_steps(tmp_path)
    resumed = ResumableCSVLogger(tmp_path)
    resumed.log_metrics({"train/loss": 40.0, "val/loss": 1.0}, 4)
    resumed.save()
    rows = read_csv(tmp_path / "metrics.csv")
    assert [(row["step"], row["train/loss"]) for row in rows] == [
        ("0", "0.0"), ("1", "1.0"), ("2", "2.0"), ("3", "3.0"), ("4", "40.0"),
    ]  # fmt: skip
