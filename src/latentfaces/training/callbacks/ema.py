"""Averages of the weights over training."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from latentfaces.bounds import Interval, Natural
from latentfaces.errors import UserError
from latentfaces.posthoc_ema import WIDEST, Snapshot, decay, power_of_width, snapshots_in
from latentfaces.ranks import is_main_process, local_tensor
from latentfaces.training.base_module import BaseModule
from latentfaces.training.checkpoint import atomic_save, full_disk_survived
from latentfaces.training.distributed.sharding import gathered, placed_like

Width = Annotated[float, Interval(gt=0, lt=WIDEST)]


class EMA(Callback):
    """Power-function averages of the weights (Karras et al. 2024, eq. 2 and 127).

    Their length grows with training: they forget the first steps and need no warm-up. Validation, previews and exports
    see the average of width `sigma_rel`. The optimizer and the checkpoint's `state_dict` see the weights themselves.
    `latentfaces.posthoc_ema.rebuild` makes averages of other widths from the snapshots.

    Args:
        sigma_rel: width of the average relative to the training so far, in (0, 0.28).
        tracks: widths in snapshots. Each one other than `sigma_rel` takes as much memory as the weights.
        snapshots: number of snapshots at equal intervals, 0 for none. Training that stops between two writes one more.
        folder: folder of the snapshots, `step_*.pth`.

    Raises:
        ValueError: tracks without snapshots, or snapshots without tracks.
    """

    def __init__(
        self,
        sigma_rel: Width = 0.1,
        tracks: Sequence[Width] = (),
        snapshots: Natural = 0,
        folder: str | Path = "ema",
    ) -> None:
        if bool(tracks) != bool(snapshots):
            raise ValueError("tracks and snapshots need each other: set both, or tracks=[] and snapshots=0")
        self.sigma_rel, self.tracks, self.snapshots, self.folder = sigma_rel, list(tracks), snapshots, Path(folder)
        self.averages: dict[float, list[Tensor]] = {width: [] for width in (sigma_rel, *tracks)}
        """All averages, by width."""
        self.powers = {width: power_of_width(width) for width in self.averages}
        self.weights: list[Tensor] = []
        """Tensors that are averaged. Listing them in each step would take longer than a small average."""
        self.num_updates = self.num_due = self.num_written = 0
        self.swapped = False

    @property
    def average(self) -> list[Tensor]:
        """The average of width `sigma_rel`."""
        return self.averages[self.sigma_rel]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parameters = self.parameters(pl_module)
        self.weights = [local_tensor(p) for p in parameters]
        self.averages = {
            width: [placed_like(a, p) for a, p in zip(average, parameters, strict=True)]
            if average
            else [p.detach().clone() for p in parameters]
            for width, average in self.averages.items()
        }
        if is_main_process():  # delete what was written in steps that were lost in a kill
            for step, path in snapshots_in(self.folder):
                if step > self.num_updates:
                    path.unlink()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.num_due = min(self.num_due, self.due(pl_module))  # fewer are due if the limit is later than before

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step <= self.num_updates:  # gradients are being accumulated: no step was taken
            return
        self.num_updates = trainer.global_step
        assert isinstance(pl_module, BaseModule)
        if not pl_module.finite.skipped:
            for width, average in self.averages.items():
                own = [local_tensor(a) for a in average]
                get_ema_multi_avg_fn(decay(self.powers[width], self.num_updates))(own, self.weights, self.num_updates)
        if self.due(pl_module) > self.num_due:
            self.num_due = self.due(pl_module)
            self.write_snapshot(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.snapshots and self.num_updates:
            self.write_snapshot(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Lightning moves the module to the CPU, so that the next job of a sweep finds the GPU's memory free.
        self.weights = []
        self.averages = {width: [a.cpu() for a in average] for width, average in self.averages.items()}

    def due(self, pl_module: LightningModule) -> int:
        """Return the number of snapshots that are due by now."""
        if not self.snapshots:
            return 0
        assert isinstance(pl_module, BaseModule)
        return int(pl_module.progress() * self.snapshots + 1e-9)

    def write_snapshot(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write all tracks of this step, unless they were written. Every rank must call it."""
        assert isinstance(pl_module, BaseModule)
        pl_module.finite.check()
        if self.num_written == self.num_updates:
            return
        self.num_written = self.num_updates
        names = [name for name, p in pl_module.network.named_parameters() if p.requires_grad]
        tracks = {
            width: gathered({name: value.half() for name, value in zip(names, self.averages[width], strict=True)})
            for width in self.tracks
        }
        rest = gathered({name: value for name, value in pl_module.network.state_dict().items() if name not in names})
        if is_main_process():
            path = self.folder / Snapshot.name(self.num_updates)
            with full_disk_survived(trainer, path):
                atomic_save(vars(Snapshot(self.num_updates, tracks, rest)), path)

    @staticmethod
    def parameters(pl_module: LightningModule) -> list[Tensor]:
        """Return the trained weights."""
        assert isinstance(pl_module, BaseModule)
        return [p.data for p in pl_module.network.parameters() if p.requires_grad]

    def swap(self, pl_module: LightningModule) -> None:
        """Exchange the weights and their average in place."""
        for parameter, average in zip(self.parameters(pl_module), self.average, strict=True):
            weight, mean = local_tensor(parameter), local_tensor(average)
            kept = weight.clone()
            weight.copy_(mean)
            mean.copy_(kept)
        self.swapped = not self.swapped

    @contextmanager
    def averaged(self, pl_module: LightningModule) -> Iterator[None]:
        """Within this context, the module has the averaged weights."""
        inside = self.swapped
        if not inside:
            self.swap(pl_module)
        try:
            yield
        finally:
            if not inside:
                self.swap(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.average and not self.swapped:
            self.swap(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.swapped:
            self.swap(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.swapped:
            self.swap(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {
            "sigma_rel": self.sigma_rel,
            "average": self.average,
            "others": {width: average for width, average in self.averages.items() if width != self.sigma_rel},
            "num_updates": self.num_updates,
            "num_due": self.num_due,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        kept = {state_dict["sigma_rel"]: state_dict["average"], **state_dict["others"]}
        for width in self.powers:
            if width not in kept:
                raise UserError(
                    f"the checkpoint has averages of width {', '.join(map(str, kept))}, and none of {width}: take "
                    "callbacks.ema.sigma_rel and callbacks.ema.tracks from these, or callbacks=default for no tracks"
                )
        self.averages = {width: kept[width] for width in self.averages}
        self.num_updates, self.num_due = state_dict["num_updates"], state_dict["num_due"]


def averaged_weights(trainer: Trainer, pl_module: LightningModule) -> AbstractContextManager[None]:
    """Within this context, the module has its averaged weights, if the run keeps an average."""
    ema = next((c for c in trainer.callbacks if isinstance(c, EMA)), None)  # type: ignore[attr-defined]
    return nullcontext() if ema is None else ema.averaged(pl_module)
