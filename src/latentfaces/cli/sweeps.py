"""Checks before a sweep, the log of a failed job, and the report of all jobs."""

import contextlib
import importlib.metadata
import sys
import traceback
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from latentfaces.cli.errors import explain, fail
from latentfaces.errors import ERROR_LOG, UserError, missing_extra

EXTRAS = {"hydra_optuna_sweeper": "sweep", "hydra_submitit_launcher": "slurm"}
"""Hydra's plug-ins, and our extras that install them."""
CHANGING_ON_RESUME = ("resume", "trainer.max_")


class SweepReport(Callback):
    """Hydra callback: a failed job writes `error.log`, the others continue, and the sweep ends with status 1."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            check_plugins(config)
            check_varied(config)
            check_folder(config)
        except UserError as error:
            fail(str(error))

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        (Path(config.hydra.runtime.output_dir) / ERROR_LOG).unlink(missing_ok=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        if job_return.status == JobStatus.FAILED:
            error = job_return._return_value  # the property raises it
            write_error_log(error, config)
            # Reported to Hydra as completed: it would otherwise end the sweep and drop all results.
            job_return.status, job_return.return_value = JobStatus.COMPLETED, None
        with contextlib.suppress(UserError, FileNotFoundError):  # another job writes it at the same time
            write_page(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        logs = Path(config.hydra.sweep.dir).glob(f"*/{ERROR_LOG}")
        failed = sorted(logs, key=lambda log: (len(log.parent.name), log.parent.name))
        for log in failed:
            print(f"Job {log.parent.name} failed: {log.read_text().splitlines()[0]}", file=sys.stderr)
        if failed:
            print(f"{len(failed)} jobs failed. See {ERROR_LOG} in their folders.", file=sys.stderr)
        try:
            print(write_page(config))
        except Exception:  # Hydra turns an exception of a callback into a warning
            traceback.print_exc()
            sys.exit(1)
        if failed:
            sys.exit(1)


def write_page(config: DictConfig) -> Path:
    """Write the report of the sweep and return its path."""
    from latentfaces.report import write_sweep_report

    return write_sweep_report(Path(config.hydra.sweep.dir))


def write_error_log(error: BaseException, config: DictConfig) -> None:
    """Write an error into the job's folder: one line, and a traceback if it is a bug."""
    folder = Path(config.hydra.runtime.output_dir)
    message = explain(error)
    if message is None:
        first = f"{type(error).__name__}: {error}".splitlines()[0]
        message = f"{first}\n\n{''.join(traceback.format_exception(error))}".rstrip()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ERROR_LOG).write_text(message + "\n")
    overrides = folder / ".hydra" / "overrides.yaml"
    if not overrides.exists():  # it failed before its training started
        overrides.parent.mkdir(exist_ok=True)
        OmegaConf.save(config.hydra.overrides.task, overrides)
    print(f"Job {folder.name} failed: {message.splitlines()[0]}", file=sys.stderr)


def check_plugins(config: DictConfig) -> None:
    """Reject a sweeper or launcher that is not installed."""
    for kind in ("sweeper", "launcher"):
        package = str(config.hydra[kind]._target_).split(".")[1]
        try:
            if package in EXTRAS:
                importlib.metadata.version(package)  # without importing it
        except importlib.metadata.PackageNotFoundError:
            choice = config.hydra.runtime.choices[f"hydra/{kind}"]
            raise missing_extra(f"hydra/{kind}={choice}", EXTRAS[package]) from None


def check_varied(config: DictConfig) -> None:
    """Reject several names, and a search or a pruning by losses that are not comparable between jobs."""
    from latentfaces.report.sweep_page import changes_loss

    varied = varied_keys(config)
    if "name" in varied:  # all jobs of a sweep are in the folder of one name
        raise UserError("A sweep has one name, and each of its jobs a number. Give one name=...")
    chosen = "optuna" in config.hydra.sweeper._target_
    pruned = "median_stop" in config.callbacks
    if (chosen or pruned) and (keys := changes_loss(varied)):
        choice = f"hydra/sweeper={config.hydra.runtime.choices['hydra/sweeper']}" if chosen else "pruning=median"
        raise UserError(f"{keys[0]} changes the loss, so the losses of the jobs are not comparable. Leave out {choice}")


def varied_keys(config: DictConfig) -> list[str]:
    """Return the keys that differ between jobs: overridden as a sweep, or in `hydra.sweeper.params`."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    params = config.hydra.sweeper.get("params") or {}
    typed = [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
    overrides = {o.get_key_element(): o for o in OverridesParser.create().parse_overrides(typed)}
    return [key for key, override in overrides.items() if override.is_sweep_override()]


def check_folder(config: DictConfig) -> None:
    """Reject a folder that contains another sweep, or this one without resume=auto."""
    folder = Path(config.hydra.sweep.dir)
    if not any(folder.glob("*/.hydra/overrides.yaml")):
        return
    if config.resume.lower() == "false":
        raise UserError(
            f"{folder} already contains a sweep. Use resume=auto to continue it, or choose another name=..."
        )
    if "basic" not in config.hydra.sweeper._target_:
        raise UserError(
            f"{folder} already contains a sweep, and this sweeper would try other values. Choose another name=..."
        )
    earlier = OmegaConf.load(folder / "multirun.yaml") if (folder / "multirun.yaml").exists() else None
    if earlier is not None and what_varies(earlier) != what_varies(config):
        raise UserError(f"{folder} contains a sweep of other jobs. Repeat its overrides, or choose another name=...")


def what_varies(config: Any) -> tuple[list[str], Any]:
    """Return the overrides and sweeper parameters that define the jobs of a sweep."""
    overrides = [item for item in config.hydra.overrides.task if not item.lstrip("+").startswith(CHANGING_ON_RESUME)]
    return overrides, config.hydra.sweeper.get("params")
