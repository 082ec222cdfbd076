"""The weights averaged over training: what is validated, exported and sampled from."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from latentfaces.errors import UserError
from latentfaces.posthoc_ema import WIDEST, Snapshot, decay, power_of_width, snapshots_in
from latentfaces.ranks import is_main_process, local
from latentfaces.training.base_module import BaseModule
from latentfaces.training.checkpoint import full_disk_survived, gathered, save_whole
from latentfaces.training.distributed.sharding import placed_like


class EMA(Callback):
    """Averages of the trained weights with power-function profiles (Karras et al. 2024, eq. 2 and 127).

    Their length grows with training, so they forget the first steps by themselves and need no warm-up. Validation,
    previews and exports see the average of width `sigma_rel`; the optimiser and the checkpoint's `state_dict` the
    weights themselves, also after an exception in the middle of a validation. Snapshots of the tracks are what
    `latentfaces.posthoc_ema.rebuild` makes averages of other widths from.

    Args:
        sigma_rel: width of the average relative to the training so far, in (0, 0.28).
        tracks: widths of the averages kept in snapshots; each other than `sigma_rel` takes the memory of the weights.
        snapshots: how many over the whole training, in equal shares of it, 0 for none; one more where training stops
            between two.
        folder: where snapshots go, `step_*.pth`.

    Raises:
        ValueError: a width is impossible, or an option has no effect.
    """

    def __init__(
        self,
        sigma_rel: float = 0.1,
        tracks: Sequence[float] = (),
        snapshots: int = 0,
        folder: str | Path | None = None,
    ) -> None:
        tracks = list(tracks)
        for name, width in [("sigma_rel", sigma_rel), *(("tracks", width) for width in tracks)]:
            if not 0 < width < WIDEST:
                raise ValueError(f"{name}={width} must be above 0 and below {WIDEST}")
        if len(set(tracks)) < len(tracks):
            raise ValueError(f"tracks={tracks} names a width twice")
        if snapshots < 0 or snapshots == 1:
            raise ValueError(f"snapshots={snapshots} must be 0, or at least 2 to make another average from")
        if tracks and not snapshots:
            raise ValueError(f"tracks={tracks} has no effect with snapshots=0: set both, or tracks=[]")
        if snapshots and not tracks:
            raise ValueError(f"snapshots={snapshots} has no effect with tracks=[]: set both, or snapshots=0")
        if snapshots and folder is None:
            raise ValueError(f"snapshots={snapshots} needs folder=..., where to write them")
        self.sigma_rel, self.tracks, self.snapshots = sigma_rel, tracks, snapshots
        self.folder = Path(folder) if folder is not None else None
        self.average: list[Tensor] = []
        self.others: dict[float, list[Tensor]] = {width: [] for width in tracks if width != sigma_rel}
        self.powers = {width: power_of_width(width) for width in (sigma_rel, *self.others)}
        self.weights: list[Tensor] = []
        """What is averaged: found once, since a walk through a network's modules costs more than a small average."""
        self.num_updates = self.num_due = self.num_written = 0
        self.swapped = False

    @property
    def averages(self) -> dict[float, list[Tensor]]:
        """All that are kept, by width."""
        return {self.sigma_rel: self.average, **self.others}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parameters = self.parameters(pl_module)
        self.weights = [local(p) for p in parameters]
        placed = {
            width: [placed_like(a, p) for a, p in zip(average, parameters, strict=True)]
            if average
            else [p.detach().clone() for p in parameters]
            for width, average in self.averages.items()
        }
        self.average = placed.pop(self.sigma_rel)
        self.others = placed
        self.forget_future()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # With a later limit than before, fewer snapshots are due by now.
        self.num_due = min(self.num_due, self.due(pl_module))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step <= self.num_updates:  # gradients are being accumulated: no step was taken
            return
        self.num_updates = trainer.global_step
        assert isinstance(pl_module, BaseModule)
        if not pl_module.finite.left_out:
            for width, average in self.averages.items():
                own = [local(a) for a in average]
                # torch has no public name for it; one lerp_ per tensor takes three times as long (200 tensors of 128).
                torch._foreach_lerp_(own, self.weights, 1 - decay(self.powers[width], self.num_updates))
        if self.due(pl_module) > self.num_due:
            self.num_due = self.due(pl_module)
            self.write_snapshot(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.snapshots and self.num_updates:
            self.write_snapshot(trainer, pl_module)

    def due(self, pl_module: LightningModule) -> int:
        """Return how many snapshots are due by now."""
        if not self.snapshots:
            return 0
        assert isinstance(pl_module, BaseModule)
        return int(pl_module.progress() * self.snapshots + 1e-9)

    def write_snapshot(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write all tracks of this step, unless they are there; all ranks must call this."""
        assert isinstance(pl_module, BaseModule)
        assert self.folder is not None
        if self.num_written == self.num_updates:
            return
        self.num_written = self.num_updates
        names = [name for name, p in pl_module.network.named_parameters() if p.requires_grad]
        averages = self.averages
        tracks = {
            width: gathered({name: value.half() for name, value in zip(names, averages[width], strict=True)})
            for width in self.tracks
        }
        rest = gathered({name: value for name, value in pl_module.network.state_dict().items() if name not in names})
        if is_main_process():
            snapshot = Snapshot(self.num_updates, tracks, rest)
            with full_disk_survived(trainer):
                save_whole(vars(snapshot), self.folder / Snapshot.name(self.num_updates))

    def forget_future(self) -> None:
        """Delete snapshots of steps that a run killed since then had done, but this one has not."""
        if self.folder is None or not is_main_process():
            return
        for orphan in self.folder.glob("step_*.pth.partial"):
            orphan.unlink()
        for step, path in snapshots_in(self.folder):
            if step > self.num_updates:
                path.unlink()

    @staticmethod
    def parameters(pl_module: LightningModule) -> list[Tensor]:
        """The trained weights."""
        assert isinstance(pl_module, BaseModule)
        return [p.data for p in pl_module.network.parameters() if p.requires_grad]

    def swap(self, pl_module: LightningModule) -> None:
        """Exchange the weights and their average, in place."""
        for parameter, average in zip(self.parameters(pl_module), self.average, strict=True):
            weight, mean = local(parameter), local(average)
            kept = weight.clone()
            weight.copy_(mean)
            mean.copy_(kept)
        self.swapped = not self.swapped

    @contextmanager
    def averaged(self, pl_module: LightningModule) -> Iterator[None]:
        """Within this context the module has the averaged weights."""
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
            "others": self.others,
            "num_updates": self.num_updates,
            "num_due": self.num_due,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Checkpoints of before there were tracks do not tell their width: it is taken to be the one asked for.
        kept = {state_dict.get("sigma_rel", self.sigma_rel): state_dict["average"], **state_dict.get("others", {})}
        for width in self.powers:
            if width not in kept:
                raise UserError(
                    f"the checkpoint has averages of width {', '.join(map(str, kept))}, and none of {width}: take "
                    "callbacks.ema.sigma_rel and callbacks.ema.tracks from these, or callbacks=default for no tracks"
                )
        self.average = kept[self.sigma_rel]
        self.others = {width: kept[width] for width in self.others}
        self.num_updates, self.num_due = state_dict["num_updates"], state_dict.get("num_due", 0)


@contextmanager
def averaged_weights(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Within this context the module has its averaged weights, where the run keeps an average."""
    ema = next((c for c in trainer.callbacks if isinstance(c, EMA)), None)  # type: ignore[attr-defined]
    if ema is None:
        yield
    else:
        with ema.averaged(pl_module):
            yield
