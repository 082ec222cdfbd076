"""CSV files of a running training: metrics.csv and tensors.csv."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from latentfaces.errors import no_room
from latentfaces.files import append, atomic_write, read_csv
from latentfaces.training.checkpoint import DiskFullError


class StepLog:
    """CSV file with a row for each log entry and its training step.

    `save` appends. It rewrites the file atomically if there is a new column, and at the first save of a resumed run,
    to drop the rows of steps that are repeated. If the disk is full, rows wait in memory.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting: list[Mapping[str, Any]] = []
        self.columns: list[str] = []
        self.first_step: float | None = None
        self.full = False

    def add(self, step: float, *rows: Mapping[str, Any]) -> None:
        """Add rows of a step, each with a "step"."""
        self.waiting += rows
        if self.first_step is None:
            self.first_step = step

    def save(self) -> None:
        """Write the new rows."""
        if not self.waiting or self.first_step is None:
            return
        try:
            self.write(self.first_step)
        except OSError as error:
            if (reason := no_room(error)) is None:
                raise
            if not self.full:
                DiskFullError(self.path, reason).warn("New rows wait in memory.")
            self.full = True
        else:
            self.waiting, self.full = [], False

    def write(self, first_step: float) -> None:
        """Append the new rows, or rewrite the file with them."""
        new = dict.fromkeys(key for row in self.waiting for key in row if key not in self.columns)
        if not new and self.path.exists():
            append(self.path, as_csv(self.columns, self.waiting))
            return
        rows: list[Mapping[str, Any]] = []
        if self.path.exists():
            # Rows of this session stay: the first rewrite sets `columns`.
            rows += [row for row in read_csv(self.path) if self.columns or float(row["step"]) < first_step]
        rows += self.waiting
        columns = list(dict.fromkeys(["step", *(key for row in rows for key in row)]))
        with atomic_write(self.path) as file:
            file.write((as_csv(columns, [dict(zip(columns, columns, strict=True))]) + as_csv(columns, rows)).encode())
        self.columns = columns


def as_csv(columns: list[str], rows: list[Mapping[str, Any]]) -> str:
    """Return rows as CSV text."""
    text = io.StringIO()
    csv.DictWriter(text, columns).writerows(rows)
    return text.getvalue()


class ResumableCSVLogger(Logger):
    """Log to `metrics.csv`. A resumed run keeps the rows up to its first step.

    Args:
        folder: folder of the run.
    """

    name = version = ""

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.log = StepLog(Path(folder) / "metrics.csv")

    @property
    def save_dir(self) -> str:
        return str(self.log.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        assert step is not None
        self.log.add(step, {"step": step, **metrics})

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml has them."""

    @rank_zero_only
    def save(self) -> None:
        self.log.save()

    def finalize(self, status: str) -> None:
        self.save()
