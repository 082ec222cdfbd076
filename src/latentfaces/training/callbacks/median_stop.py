"""Jobs of a sweep that are behind are given up."""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from latentfaces.files import atomic_write
from latentfaces.run import PRUNING
from latentfaces.training.base_module import BaseModule

Record = list[list[float]]
"""Of each validation: the share of training that was over, in [0, 1], and the lowest loss until then."""


class MedianStop(Callback):
    """Stops a job whose lowest loss so far is above the median of its siblings' at the same share of training.

    The median stopping rule of Golovin et al. 2017 (Google Vizier), section 3.2.1, with the lowest loss in place of the
    mean one. The jobs know of each other by a file in each one's folder, so that it does not matter who chose and who
    started them, as long as they see the same disk.

    Args:
        folder: this job's; those of the others lie beside it.
        monitor: the logged value to minimise.
        start: share of training before which no job is stopped, in [0, 1).
        min_jobs: how many others must have come as far.

    Raises:
        ValueError: an option is impossible.
    """

    def __init__(self, folder: str | Path, monitor: str = "val/loss", start: float = 0.25, min_jobs: int = 2) -> None:
        if not 0 <= start < 1:
            raise ValueError(f"start={start} must be at least 0 and below 1")
        if min_jobs < 1:
            raise ValueError(f"min_jobs={min_jobs} must be at least 1")
        self.path, self.monitor = Path(folder) / PRUNING, monitor
        self.start, self.min_jobs = start, min_jobs
        self.record: Record = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, BaseModule)
        share = pl_module.progress()
        lowest = min([float(trainer.callback_metrics[self.monitor]), *(loss for _, loss in self.record)])
        self.record.append([share, lowest])
        reason = None
        if trainer.is_global_zero:
            reason = self.behind(share, lowest) if self.start <= share < 1 else None
            with atomic_write(self.path) as file:  # the others read it at any time
                file.write(json.dumps({"validations": self.record, "stopped": reason}).encode())
            if reason is not None:
                print(reason)
        if trainer.strategy.broadcast(reason is not None):
            trainer.should_stop = True

    def behind(self, share: float, lowest: float) -> str | None:
        """Why this job is stopped at this share of its training, or None if it goes on."""
        others = [self.read(path) for path in sorted(self.path.parents[1].glob(f"*/{PRUNING}")) if path != self.path]
        reached = [loss for loss in (lowest_until(share, record) for record in others) if loss is not None]
        if len(reached) < self.min_jobs or lowest <= (median := statistics.median(reached)):
            return None
        return (
            f"given up at {share:.0%} of its training: its lowest {self.monitor}, {lowest:.4g}, is above {median:.4g}, "
            f"the median of {len(reached)} other jobs"
        )

    @staticmethod
    def read(path: Path) -> Record:
        """Read the values that another job has logged."""
        return json.loads(path.read_text())["validations"]

    def state_dict(self) -> dict[str, Any]:
        return {"record": self.record}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.record = state_dict["record"]


def lowest_until(share: float, record: Sequence[Sequence[float]]) -> float | None:
    """The lowest loss of a job when this share of its training was over; None if it has not come so far."""
    if not record or record[-1][0] < share:
        return None
    losses = [loss for at, loss in record if at <= share]
    return losses[-1] if losses else math.inf
