"""Median stopping rule for the jobs of a sweep."""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from lightning.pytorch import Callback, LightningModule, Trainer

from latentfaces.bounds import Interval, Positive
from latentfaces.files import atomic_write
from latentfaces.run import PRUNING
from latentfaces.training.base_module import BaseModule
from latentfaces.training.checkpoint import full_disk_survived

Record = list[list[float]]
"""For each validation: the completed fraction of training, in [0, 1], and the lowest loss so far."""


class MedianStop(Callback):
    """Stop a job whose lowest `val/loss` is above the median of the other jobs at the same fraction of training.

    The median stopping rule of Golovin et al. 2017 (Google Vizier), section 3.2.1, with the lowest loss instead of the
    mean. Jobs read each other's files, so any sweeper and launcher works if the jobs share a disk.

    Args:
        folder: folder of this job, next to those of the others.
        start: fraction of training before which no job is stopped, in [0, 1).
        min_jobs: number of other jobs that must have reached this fraction, at least 1.
    """

    def __init__(
        self,
        folder: str | Path,
        start: Annotated[float, Interval(ge=0, lt=1)] = 0.25,
        min_jobs: Positive = 2,
    ) -> None:
        self.path = Path(folder) / PRUNING
        self.start, self.min_jobs = start, min_jobs
        self.record: Record = []
        self.stopped: str | None = None
        """Why this job was stopped. It stays stopped when it is resumed."""

    def forget(self) -> None:
        """Forget the losses so far."""
        self.record = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.stopped is not None:
            trainer.should_stop = True
            if trainer.is_global_zero:
                print(f"This job was {self.stopped}. To continue it, use pruning=none.")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, BaseModule)
        share = pl_module.progress()
        lowest = min([float(trainer.callback_metrics["val/loss"]), *(loss for _, loss in self.record)])
        self.record.append([share, lowest])
        if trainer.is_global_zero:
            self.stopped = self.behind(share, lowest) if self.start <= share < 1 else None
            # Other jobs may read the file at any time.
            with full_disk_survived(trainer, self.path), atomic_write(self.path) as file:
                file.write(json.dumps({"validations": self.record, "stopped": self.stopped}).encode())
            if self.stopped is not None:
                print(self.stopped)
        self.stopped = trainer.strategy.broadcast(self.stopped)
        if self.stopped is not None:
            trainer.should_stop = True

    def behind(self, share: float, lowest: float) -> str | None:
        """Return why this job is stopped at this fraction of its training, or None."""
        paths = [path for path in sorted(self.path.parents[1].glob(f"*/{PRUNING}")) if path != self.path]
        others = [json.loads(path.read_text())["validations"] for path in paths]
        reached = [loss for loss in (lowest_until(share, record) for record in others) if loss is not None]
        if len(reached) < self.min_jobs or lowest <= (median := statistics.median(reached)):
            return None
        return (
            f"stopped at {share:.0%} of its training: its lowest val/loss, {lowest:.4g}, is above {median:.4g}, "
            f"the median of {len(reached)} other jobs"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"record": self.record, "stopped": self.stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.record, self.stopped = state_dict["record"], state_dict.get("stopped")


def lowest_until(share: float, record: Sequence[Sequence[float]]) -> float | None:
    """Return a job's lowest loss at this fraction of training, or None if it has not reached it."""
    if not record or record[-1][0] < share:
        return None
    losses = [loss for at, loss in record if at <= share]
    return losses[-1] if losses else math.inf
