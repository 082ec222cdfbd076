"""What is done when all jobs of a sweep are over."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from latentfaces.errors import UserError


class SweepReport(Callback):
    """Writes the page of the sweep, and says where it is."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from latentfaces.report import write_sweep_report

        try:
            print(write_sweep_report(Path(config.hydra.sweep.dir)))
        except UserError as error:  # every job was refused before it began: each has said why
            print(error)
