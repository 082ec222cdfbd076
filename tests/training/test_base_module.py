"""Steps of a module with known gradients: clipping, progress, logged steps and what is restored."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from latentfaces.annealing import WarmupDecay
from latentfaces.training import BaseModule, NonFiniteError
from latentfaces.training.callbacks import ExactResume
from latentfaces.training.checkpoint import AtomicCheckpointIO

SGD = partial(torch.optim.SGD, lr=1.0)


class Slope(BaseModule):
    """Module whose loss has the gradient (3, 4), plus a constant."""

    def __init__(
        self, optimizer: Callable[..., torch.optim.Optimizer] = SGD, constant: float = 0.0, warmup_steps: int = 0
    ) -> None:
        super().__init__(optimizer, WarmupDecay(warmup_steps, decay_share=0.0), seed=0)
        self.body, self.constant = nn.Linear(2, 1), constant
        nn.init.zeros_(self.body.weight)
        self.body.bias.requires_grad_(False)
        self.seen: list[tuple[float, bool]] = []

    @property
    def network(self) -> nn.Module:
        return self.body

    def exports(self) -> Mapping[str, nn.Module]:
        return {}

    def preview(self) -> Tensor:
        raise NotImplementedError

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.seen.append((self.progress(), self.is_logged))
        return (self.body.weight * torch.tensor([3.0, 4.0])).sum() + self.constant


def fit(module: Slope, checkpoint: Path | None = None, callbacks: list[Callback] | None = None, **limits: Any) -> Any:
    """Train the module on epochs of 4 batches."""
    silent: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu", plugins=[AtomicCheckpointIO()], enable_checkpointing=False, callbacks=callbacks,
        **silent, **limits,
    )  # fmt: skip
    trainer.fit(module, DataLoader([torch.zeros(1)] * 4), ckpt_path=checkpoint, weights_only=True)  # type: ignore[arg-type]
    return trainer


@pytest.mark.parametrize(("clip", "step"), [(None, [3.0, 4.0]), (10.0, [3.0, 4.0]), (1.0, [0.6, 0.8])])
def test_a_step_is_the_clipped_gradient(clip: float | None, step: list[float]) -> None:
    module = Slope()
    fit(module, max_steps=1, max_epochs=-1, gradient_clip_val=clip)
    assert module.body.weight[0].tolist() == pytest.approx([-value for value in step], abs=1e-5)


def test_frozen_weights_are_not_given_to_the_optimizer() -> None:
    given: list[str] = []

    def optimizer(named: Any) -> torch.optim.Optimizer:
        parameters = dict(named)
        given.extend(parameters)
        return SGD(parameters.values())

    fit(Slope(optimizer), max_steps=1, max_epochs=-1)
    assert given == ["weight"]


def test_progress_is_that_of_the_nearest_limit_within_epochs_too() -> None:
    module = Slope()
    fit(module, max_epochs=2, max_steps=20)
    assert [progress for progress, _ in module.seen] == [batch / 8 for batch in range(8)]
    assert module.progress() == 1
    module = Slope()
    fit(module, max_epochs=4, max_steps=5)
    assert [progress for progress, _ in module.seen] == pytest.approx([step / 5 for step in range(5)])


def test_logged_steps_are_those_of_lightning() -> None:
    module = Slope()
    fit(module, max_steps=8, max_epochs=-1, log_every_n_steps=3)
    assert [logged for _, logged in module.seen] == [(step + 1) % 3 == 0 for step in range(8)]


def test_a_loss_of_nan_ends_training_although_its_gradient_is_finite() -> None:
    module = Slope(constant=float("nan"))
    with pytest.raises(NonFiniteError, match="gradient's norm is nan at step 0"):
        fit(module, max_steps=1, max_epochs=-1)
    assert not module.body.weight.any()


def test_the_settings_of_a_resumed_optimizer_are_those_of_this_session(tmp_path: Path) -> None:
    fit(Slope(partial(SGD, momentum=0.9)), max_steps=2, max_epochs=-1).save_checkpoint(tmp_path / "last.ckpt")
    trainer = fit(Slope(partial(SGD, momentum=0.5)), tmp_path / "last.ckpt", max_steps=3, max_epochs=-1)
    assert trainer.optimizers[0].param_groups[0]["momentum"] == 0.5


def test_a_resumed_run_takes_steps_at_the_learning_rate_of_this_session(tmp_path: Path) -> None:
    fit(Slope(warmup_steps=3), max_steps=2, max_epochs=-1).save_checkpoint(tmp_path / "last.ckpt")
    module = Slope(partial(torch.optim.SGD, lr=0.1), warmup_steps=3)
    fit(module, tmp_path / "last.ckpt", [ExactResume()], max_steps=5, max_epochs=-1)
    # The warm-up is 1/4, 1/2, 3/4, 1, 1.
    assert module.body.weight[0, 0].item() == pytest.approx(-3 * (0.25 + 0.5 + 0.1 * (0.75 + 1 + 1)))


def test_skipped_steps_are_counted_over_a_resume() -> None:
    before, after, checkpoint = Slope(), Slope(), dict[str, Any]()
    before.finite.num_skipped = 3
    before.on_save_checkpoint(checkpoint)
    after.on_load_checkpoint(checkpoint)
    assert after.finite.num_skipped == 3


def test_a_changed_meaning_of_the_loss_is_noticed() -> None:
    module = Slope()
    module.objective = {"kl": "1", "same": "x"}
    module.on_load_checkpoint({"objective": {"kl": "2", "same": "x", "gone": "y"}})
    assert module.changed == ["gone: y -> None", "kl: 2 -> 1"]
    module.on_load_checkpoint({})
    assert module.changed == []
