"""Files survive what happens to processes."""

from pathlib import Path

import pytest
import torch

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


def test_a_resumed_log_keeps_what_came_before_its_step_and_no_more(tmp_path: Path) -> None:
    first = ResumableCSVLogger(tmp_path)
    for step in range(6):
        first.log_metrics({"train/loss": float(step)}, step)
    first.save()
    resumed = ResumableCSVLogger(tmp_path)
    resumed.log_metrics({"train/loss": 40.0, "val/loss": 1.0}, 4)
    resumed.save()
    rows = ResumableCSVLogger(tmp_path).read()
    assert [(row["step"], row["train/loss"]) for row in rows] == [
        ("0", "0.0"), ("1", "1.0"), ("2", "2.0"), ("3", "3.0"), ("4", "40.0"),
    ]  # fmt: skip
