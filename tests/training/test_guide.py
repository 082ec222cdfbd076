"""The early denoiser: written once, at its time, and the same after a kill."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from latentfaces.errors import UserError
from latentfaces.training import AtomicCheckpointIO, LatentDiffusionModule, NonFiniteError, NonFiniteGuard
from latentfaces.training.callbacks import EMA, GuideWeights


class Early(LatentDiffusionModule):
    """A stage 2 of which a test sets how much is over, and the weights."""

    def __init__(self) -> None:
        LightningModule.__init__(self)
        self.denoiser, self.share = nn.Linear(1, 1), 0.0  # type: ignore[assignment]
        self.finite = NonFiniteGuard()

    def progress(self) -> float:
        return self.share


def trainer(*callbacks: Any) -> Any:
    strategy = SimpleNamespace(checkpoint_io=AtomicCheckpointIO())
    return SimpleNamespace(callbacks=list(callbacks), strategy=strategy, global_step=1000)


def begin(guide: GuideWeights, share: float = 0.0) -> Early:
    """Start training where `share` of it is over."""
    module = Early()
    module.share = share
    guide.on_fit_start(trainer(guide), module)
    return module


def step(guide: GuideWeights, module: Early, share: float, *others: Any) -> None:
    """Train until `share` is over; the weights are then `share`."""
    nn.init.constant_(module.denoiser.weight, share)  # type: ignore[arg-type]
    module.share = share
    guide.on_train_batch_end(trainer(guide, *others), module, None, None, 0)


def written(folder: Path) -> float:
    return torch.load(folder / "guide_denoiser.pth", weights_only=True)["weight"].item()


def test_weights_of_the_first_step_past_the_share_are_written_and_later_ones_not(tmp_path: Path) -> None:
    guide = GuideWeights(tmp_path, share=0.25)
    module = begin(guide)
    step(guide, module, 0.125)
    assert not list(tmp_path.iterdir())
    for share in (0.375, 0.5, 0.75):
        step(guide, module, share)
    assert written(tmp_path) == 0.375
    assert [path.name for path in tmp_path.iterdir()] == ["guide_denoiser.pth"]


@pytest.mark.parametrize(
    ("num_steps", "of", "share", "first"),
    [
        (12_000, "long", 1 / 12, 1000),
        (1200, "short", 1 / 12, 200),
        (400, "very short", 1 / 12, 100),
        (400, "a late guide", 0.5, 200),
    ],
)
def test_the_guide_has_200_steps_or_a_quarter_of_a_short_training(
    num_steps: int, of: str, share: float, first: int, tmp_path: Path
) -> None:
    guide = GuideWeights(tmp_path, share)
    assert next(step for step in range(num_steps) if guide.is_due(step, step / num_steps)) == first


def test_no_guide_of_a_step_whose_gradient_is_nan(tmp_path: Path) -> None:
    guide = GuideWeights(tmp_path, share=0.25)
    module = begin(guide)
    module.finite.close(3, {"norm": torch.tensor(float("nan"))}, torch.device("cuda"))  # checked one step later
    with pytest.raises(NonFiniteError):
        step(guide, module, 0.5)
    assert not list(tmp_path.iterdir())


def test_the_average_is_written_and_training_goes_on_with_the_weights(tmp_path: Path) -> None:
    guide, ema = GuideWeights(tmp_path, share=0.25), EMA()
    module = begin(guide)
    ema.on_fit_start(trainer(ema), module)
    nn.init.constant_(ema.average[0], 7.0)
    step(guide, module, 0.5, ema)
    assert written(tmp_path) == 7
    assert module.denoiser.weight.item() == 0.5  # type: ignore[operator]
    assert ema.average[0].item() == 7


def test_a_run_resumed_after_the_point_keeps_its_guide(tmp_path: Path) -> None:
    guide = GuideWeights(tmp_path, share=0.25)
    step(guide, begin(guide), 0.375)
    resumed = GuideWeights(tmp_path, share=0.25)
    resumed.load_state_dict(guide.state_dict())
    # With a later limit the run is before the point again, and still keeps it.
    step(resumed, begin(resumed, share=0.125), 0.5)
    assert written(tmp_path) == 0.375


def test_a_run_resumed_before_the_point_writes_its_guide_again(tmp_path: Path) -> None:
    guide = GuideWeights(tmp_path, share=0.25)
    module = begin(guide)
    step(guide, module, 0.125)
    state = guide.state_dict()
    step(guide, module, 0.5)
    resumed = GuideWeights(tmp_path, share=0.25)
    resumed.load_state_dict(state)
    module = begin(resumed, share=0.125)
    step(resumed, module, 0.375)
    assert written(tmp_path) == 0.375


def test_a_training_by_time_that_was_checkpointed_between_step_and_point_writes_its_guide(tmp_path: Path) -> None:
    resumed = GuideWeights(tmp_path, share=0.25)
    resumed.load_state_dict({"written": False})
    step(resumed, begin(resumed, share=0.2501), 0.375)
    assert written(tmp_path) == 0.375


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    guide = GuideWeights(tmp_path, share=0.25)
    (tmp_path / "guide_denoiser.pth").write_text("by the first")
    module = Early()
    step(guide, module, 0.5)
    assert (tmp_path / "guide_denoiser.pth").read_text() == "by the first"


def test_stage_1_has_no_use_for_a_guide(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"callbacks\.guide .* ~callbacks\.guide"):
        GuideWeights(tmp_path).on_fit_start(trainer(), LightningModule())
