"""One training from its first step to its result."""

import json
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer

from latentfaces.errors import UserError
from latentfaces.evaluation import plot_losses
from latentfaces.report import write_report
from latentfaces.run import RESULT
from latentfaces.training.base_module import BaseModule
from latentfaces.training.callbacks import BestWeights
from latentfaces.training.callbacks.status import peak_memory


def fit_and_test(
    trainer: Trainer, module: BaseModule, data: LightningDataModule, checkpoint: Path | None, run_dir: str | Path
) -> float:
    """Fit, then measure the best weights on all held-out photos; write plots and result.json.

    A run that is finished, and has no more steps to do than it had, is left as it is.

    Args:
        trainer: has a `BestWeights` callback.
        module: what to train.
        data: its batches.
        checkpoint: to go on from, if any.
        run_dir: the run's folder.

    Returns:
        The lowest validation loss.
    """
    run_dir = Path(run_dir)
    best = next((c for c in trainer.callbacks if isinstance(c, BestWeights)), None)  # type: ignore[attr-defined]
    if best is None:
        raise UserError("callbacks.best_weights is missing: without it a run leaves no weights to use")
    module.started = time.monotonic()
    if checkpoint is not None and (run_dir / RESULT).exists():  # its minutes are those up to its very end
        module.seconds_before = 60 * json.loads((run_dir / RESULT).read_text())["minutes"]
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    if trainer.global_step == module.resumed_at and (run_dir / RESULT).exists():
        late = any(limit.progress >= 1 for limit in module.time_limits())
        if trainer.is_global_zero and (late or not trainer.should_stop):  # early stopping has its own words
            limit = "trainer.max_time" if late else "trainer.max_steps"
            print(f"{run_dir} is finished, at step {trainer.global_step}: to train it further raise {limit}")
        return best.best
    # The limit of training rarely falls on a validation: the last weights, often the best, get theirs here.
    trainer.validate(module, datamodule=data, verbose=False)
    trainer.strategy.barrier()  # the first process writes what all read now
    best.load(module)
    metrics = trainer.test(module, datamodule=data, verbose=False)[0]
    if trainer.is_global_zero:
        result: dict[str, Any] = {**metrics, "val/best_loss": best.best, "steps": trainer.global_step}
        result |= {"minutes": module.seconds / 60, "peak_memory_gb": peak_memory(trainer.strategy.root_device) / 1e9}
        if module.finite.num_skipped:
            result["skipped_steps"] = module.finite.num_skipped
        (run_dir / "images").mkdir(exist_ok=True)
        plot_losses(run_dir / "metrics.csv", run_dir / "images" / "losses.png")
        print(" · ".join(f"{name} {value:.4g}" for name, value in result.items()))
        if (verdict := module.verdict()) is not None:
            result |= {f"health/{name}": value for name, value in module.findings.items()} | {
                "verdict": verdict,
                "healthy": module.healthy,
            }
            print(verdict)
        (run_dir / RESULT).write_text(json.dumps(result, indent=1))
        print(run_dir / "images" / "losses.png")
        print(write_report(run_dir))
        print(run_dir)
    return best.best
