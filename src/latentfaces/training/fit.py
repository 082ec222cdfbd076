"""Training, validation and test of one run."""

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer

from latentfaces.evaluation import plot_losses
from latentfaces.files import atomic_write, read_json
from latentfaces.report import format_number, write_report
from latentfaces.run import RESULT
from latentfaces.training.base_module import BaseModule
from latentfaces.training.callbacks import BestWeights
from latentfaces.training.callbacks.status import peak_memory
from latentfaces.training.checkpoint import full_disk_named, full_disk_survived
from latentfaces.training.time_limit import TimeLimit


def fit_and_test(
    trainer: Trainer, module: BaseModule, data: LightningDataModule, checkpoint: Path | None, run_dir: str | Path
) -> float:
    """Fit, then test the best weights on all held-out images. Write plots and result.json.

    A finished run without further steps to train is left unchanged.

    Args:
        trainer: has a `BestWeights` and a `TimeLimit` callback.
        module: module to train.
        data: data module.
        checkpoint: checkpoint to resume from, or None.
        run_dir: folder of the run.

    Returns:
        The lowest validation loss.
    """
    run_dir = Path(run_dir)
    best = next(c for c in trainer.callbacks if isinstance(c, BestWeights))  # type: ignore[attr-defined]
    timer = next(c for c in trainer.callbacks if isinstance(c, TimeLimit))  # type: ignore[attr-defined]
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    # An earlier result may be of fewer steps: the run was stopped after its last step, before its test.
    if trainer.global_step == module.resumed_at == read_json(run_dir / RESULT).get("steps"):
        late = timer.progress >= 1
        if trainer.is_global_zero and (late or not trainer.should_stop):  # early stopping prints its own message
            limit = "max_steps" if 0 < trainer.max_steps <= trainer.global_step else "max_epochs"
            limit = "max_time" if late else limit
            print(f"{run_dir} is finished, at step {trainer.global_step}: to train it further raise trainer.{limit}")
        return best.best
    # The last weights are often the best. Lightning validates them already when training is stopped.
    if not trainer.should_stop or best.validated_step != trainer.global_step:
        trainer.validate(module, datamodule=data, verbose=False)
    trainer.strategy.barrier()  # all ranks read what rank 0 writes
    best.load(module)
    result = {
        **trainer.test(module, datamodule=data, verbose=False)[0],
        "val/best_loss": best.best,
        "steps": trainer.global_step,
        "minutes": timer.time_elapsed() / 60,
        "peak_memory_gb": peak_memory(trainer.strategy.root_device) / 1e9,
    }
    if module.finite.num_skipped:
        result["skipped_steps"] = module.finite.num_skipped
    if trainer.is_global_zero:
        write_result(trainer, module, result, run_dir)
    return best.best


def write_result(trainer: Trainer, module: BaseModule, result: dict[str, Any], run_dir: Path) -> None:
    """Write losses.png, result.json with the verdict, and the report. Print the result and the paths."""
    losses = run_dir / "images" / "losses.png"
    with full_disk_survived(trainer, losses):
        losses.parent.mkdir(exist_ok=True)
        plot_losses(run_dir / "metrics.csv", losses)
    print(" · ".join(f"{name} {format_number(value)}" for name, value in result.items()))
    if (verdict := module.verdict()) is not None:
        result |= {f"health/{name}": value for name, value in module.findings.items()}
        result |= {"verdict": verdict, "healthy": module.healthy}
        print(verdict)
    with full_disk_named(run_dir / RESULT), atomic_write(run_dir / RESULT) as file:
        file.write(json.dumps(result, indent=1).encode())
    print(losses)
    with full_disk_survived(trainer, run_dir / "report.html"):
        print(write_report(run_dir))
    print(run_dir)
