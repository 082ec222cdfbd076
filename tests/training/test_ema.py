"""The averages against their definition, that nothing ever loses or swaps them, and what is left of them on disk."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from latentfaces.annealing import WarmupDecay
from latentfaces.errors import UserError
from latentfaces.posthoc_ema import Snapshot, power_of_width, snapshots_in
from latentfaces.training import BaseModule, NonFiniteError
from latentfaces.training.callbacks import EMA
from latentfaces.training.checkpoint import AtomicCheckpointIO

WIDTHS = [0.05, 0.1]


class Walk(BaseModule):
    """Module whose weights walk at random. A test may set the completed fraction of training."""

    def __init__(self, share: float | None = None) -> None:
        super().__init__(torch.optim.SGD, WarmupDecay(), seed=0)
        self.body, self.share = nn.BatchNorm1d(4), share
        self.body.bias.requires_grad_(False)

    @property
    def network(self) -> nn.Module:
        return self.body

    def exports(self) -> Mapping[str, nn.Module]:
        return {}

    def preview(self) -> Tensor:
        raise NotImplementedError

    def progress(self) -> float:
        return super().progress() if self.share is None else self.share

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.body.parameters(), lr=1.0)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (torch.randn(4) * self.body.weight).sum()


def fit(*callbacks: Callback, checkpoint: Path | None = None, batches: int = 10, **limits: Any) -> Trainer:
    """Train a `Walk` in the working folder."""
    silent: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    limits = {"max_epochs": -1, "enable_checkpointing": False} | limits
    trainer = Trainer(callbacks=[*callbacks], plugins=[AtomicCheckpointIO()], accelerator="cpu", **silent, **limits)
    data = DataLoader([torch.zeros(1)] * batches)  # type: ignore[arg-type]
    trainer.fit(Walk(), data, ckpt_path=checkpoint, weights_only=True)
    return trainer


def keeping(folder: Path, snapshots: int = 5, tracks: list[float] = WIDTHS, **options: Any) -> EMA:
    """An EMA that leaves snapshots."""
    return EMA(tracks=tracks, snapshots=snapshots, folder=folder, **options)


def steps_in(folder: Path) -> list[int]:
    return [step for step, _ in snapshots_in(folder)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def trainer(step: int) -> Any:
    """Return a trainer with what the EMA needs."""
    return SimpleNamespace(global_step=step, strategy=SimpleNamespace(checkpoint_io=None))


def after(ema: EMA, module: Walk, step: int) -> None:
    """Complete a step of the EMA."""
    ema.on_train_batch_end(trainer(step), module, None, None, 0)


@pytest.mark.parametrize("sigma_rel", WIDTHS)
def test_averages_are_the_power_profile_over_all_steps(tmp_path: Path, sigma_rel: float) -> None:
    ema, module = keeping(tmp_path), Walk(share=0.0)
    ema.on_fit_start(None, module)  # type: ignore[arg-type]
    values = [1.0, -2.0, 0.5, 4.0, 3.0, 2.5, -1.0]
    for step, value in enumerate(values, start=1):
        nn.init.constant_(module.body.weight, value)
        after(ema, module, step)
        # By definition the weight of a value is the integral of t^gamma over its step.
        edges = torch.arange(step + 1, dtype=torch.float64) ** (power_of_width(sigma_rel) + 1)
        expected = (edges.diff() / edges[-1]) @ torch.tensor(values[:step], dtype=torch.float64)
        assert ema.averages[sigma_rel][0][0].item() == pytest.approx(float(expected), abs=1e-5)


def test_a_skipped_step_does_not_change_the_averages(tmp_path: Path) -> None:
    ema, module = keeping(tmp_path), Walk(share=0.0)
    ema.on_fit_start(None, module)  # type: ignore[arg-type]
    before = ema.average[0].clone()
    nn.init.constant_(module.body.weight, 5.0)
    module.finite.skipped = True
    after(ema, module, 3)
    assert torch.equal(ema.average[0], before)
    module.finite.skipped = False
    after(ema, module, 4)
    assert not torch.equal(ema.average[0], before)


def test_a_snapshot_is_due_where_its_fraction_of_training_is_rounded_down(tmp_path: Path) -> None:
    assert 0.29 * 100 < 29
    assert keeping(tmp_path, snapshots=100).due(Walk(share=0.29)) == 29


@pytest.mark.parametrize("options", [{"tracks": [0.1]}, {"snapshots": 4}])
def test_tracks_and_snapshots_need_each_other(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"tracks and snapshots need each other"):
        EMA(**options)


@pytest.fixture
def pair() -> tuple[EMA, Walk]:
    """Return an average of 7 and weights of 3."""
    ema, module = EMA(), Walk()
    nn.init.constant_(module.body.weight, 3.0)
    ema.averages[ema.sigma_rel] = [torch.full((4,), 7.0)]
    return ema, module


def test_averaged_weights_are_there_inside_and_gone_outside(pair: tuple[EMA, Walk]) -> None:
    ema, module = pair
    with ema.averaged(module):
        assert module.body.weight[0].item() == 7
        with ema.averaged(module):
            assert module.body.weight[0].item() == 7
    assert module.body.weight[0].item() == 3
    assert ema.average[0][0].item() == 7


def test_an_exception_in_validation_leaves_both_in_their_place(pair: tuple[EMA, Walk]) -> None:
    ema, module = pair
    ema.on_validation_start(None, module)  # type: ignore[arg-type]
    assert module.body.weight[0].item() == 7
    ema.on_exception(None, module, KeyboardInterrupt())  # type: ignore[arg-type]
    assert module.body.weight[0].item() == 3
    assert ema.state_dict()["average"][0][0].item() == 7


def test_no_snapshot_of_a_step_whose_gradient_is_nan(tmp_path: Path) -> None:
    ema, module = keeping(tmp_path), Walk(share=1.0)
    ema.on_fit_start(None, module)  # type: ignore[arg-type]
    module.finite.close(0, {"norm": torch.tensor(torch.nan)}, torch.device("cuda"))  # checked one step later
    with pytest.raises(NonFiniteError):
        after(ema, module, 1)
    assert not list(tmp_path.iterdir())


def test_the_validated_width_is_not_kept_twice(tmp_path: Path) -> None:
    ema = keeping(tmp_path, sigma_rel=0.1)
    assert list(ema.averages) == [0.1, 0.05]
    assert list(keeping(tmp_path, sigma_rel=0.07).averages) == [0.07, 0.05, 0.1]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"max_steps": 20}, [4, 8, 12, 16, 20]),
        ({"max_steps": 23}, [5, 10, 14, 19, 23]),
        ({"max_steps": 3}, [1, 2, 3]),
        ({"max_epochs": 2}, [4, 8, 12, 16, 20]),
        ({"max_steps": 20, "accumulate_grad_batches": 3}, [4, 8, 12, 16, 20]),
    ],
)
def test_snapshots_are_spread_over_the_training(tmp_path: Path, limits: dict[str, Any], expected: list[int]) -> None:
    fit(keeping(tmp_path / "ema"), **limits)
    assert steps_in(tmp_path / "ema") == expected


def test_snapshots_of_a_training_by_time_are_spread_over_its_time(tmp_path: Path) -> None:
    ema, module = keeping(tmp_path), Walk(share=0.0)
    ema.on_fit_start(None, module)  # type: ignore[arg-type]
    ema.on_train_start(None, module)  # type: ignore[arg-type]
    for step, module.share in enumerate([0.1, 0.19, 0.21, 0.3, 0.65, 0.7, 0.9, 0.95], start=1):
        after(ema, module, step)
    ema.on_train_end(trainer(0), module)  # stopped early
    assert steps_in(tmp_path) == [3, 5, 7, 8]


def test_a_snapshot_holds_the_tracks_in_float16_and_all_else_as_it_is(tmp_path: Path) -> None:
    ema = keeping(tmp_path / "ema", sigma_rel=0.05, tracks=[0.1])
    trainer = fit(ema, max_steps=10)
    snapshot = Snapshot.read(tmp_path / "ema" / "step_0000010.pth")
    assert snapshot.step == 10
    assert list(snapshot.tracks) == [0.1]
    assert list(snapshot.tracks[0.1]) == ["weight"]
    assert torch.equal(snapshot.tracks[0.1]["weight"], ema.averages[0.1][0].half())
    assert snapshot.rest.keys() == {"bias", "running_mean", "running_var", "num_batches_tracked"}
    assert trainer.lightning_module.network.state_dict().keys() == {*snapshot.rest, "weight"}


def test_without_tracks_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit(EMA(), max_steps=4)
    assert not list(tmp_path.iterdir())


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "ema"
    fit(keeping(folder), max_steps=5)
    monkeypatch.setenv("RANK", "1")
    ema, module = keeping(folder), Walk(share=1.0)
    ema.on_fit_start(None, module)  # type: ignore[arg-type]
    assert steps_in(folder) == [1, 2, 3, 4, 5]
    after(ema, module, 6)
    assert steps_in(folder) == [1, 2, 3, 4, 5]


class Dies(Callback):
    """Ends the process, so to speak, at step 14, in the second epoch; the last checkpoint is of step 10."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 10:
            trainer.save_checkpoint(self.checkpoint)
        elif trainer.global_step == 14:
            raise InterruptedError


def test_a_resumed_run_leaves_the_snapshots_of_an_uninterrupted_one(tmp_path: Path) -> None:
    straight, last = keeping(tmp_path / "straight"), tmp_path / "last.ckpt"
    fit(straight, batches=8, max_steps=20)
    with pytest.raises(InterruptedError):
        fit(keeping(tmp_path / "killed"), Dies(last), batches=8, max_steps=20)
    assert steps_in(tmp_path / "killed") == [4, 8, 12]
    # Of steps that are about to be done again, differently perhaps.
    (tmp_path / "killed" / "step_0000012.pth").write_text("a future that did not happen")
    (tmp_path / "killed" / "step_0000013.pth").touch()
    resumed = keeping(tmp_path / "killed")
    fit(resumed, checkpoint=last, batches=8, max_steps=20)
    assert steps_in(tmp_path / "straight") == [4, 8, 12, 16, 20]
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")
    for width in WIDTHS:
        assert torch.equal(resumed.averages[width][0], straight.averages[width][0])


def test_a_run_that_starts_afresh_takes_away_the_snapshots_of_the_one_before(tmp_path: Path) -> None:
    fit(keeping(tmp_path / "ema"), max_steps=20)
    fit(keeping(tmp_path / "ema"), max_steps=5)
    assert steps_in(tmp_path / "ema") == [1, 2, 3, 4, 5]


def test_a_later_limit_spreads_the_rest_of_the_snapshots_over_the_rest(tmp_path: Path) -> None:
    trainer = fit(keeping(tmp_path / "ema"), max_steps=10)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    fit(keeping(tmp_path / "ema"), checkpoint=tmp_path / "last.ckpt", max_steps=20)
    assert steps_in(tmp_path / "ema") == [2, 4, 6, 8, 10, 12, 16, 20]


def restored(state: dict[str, Any], tmp_path: Path, **options: Any) -> EMA:
    """Return an EMA that is resumed from a checkpoint's state."""
    ema = keeping(tmp_path, **options)
    ema.load_state_dict(state)
    return ema


def test_validated_width_and_tracks_may_be_exchanged(tmp_path: Path) -> None:
    old = keeping(tmp_path, sigma_rel=0.1)
    old.averages = {0.1: [torch.tensor([1.0])], 0.05: [torch.tensor([2.0])]}
    new = restored(old.state_dict(), tmp_path, sigma_rel=0.05)
    assert new.average[0].item() == 2
    assert new.averages[0.1][0].item() == 1


def test_a_width_that_the_checkpoint_does_not_have_is_refused(tmp_path: Path) -> None:
    state = keeping(tmp_path).state_dict()
    with pytest.raises(UserError, match=r"averages of width 0\.1, 0\.05, and none of 0\.2: .*callbacks\.ema\.tracks"):
        restored(state, tmp_path, tracks=[0.2])
