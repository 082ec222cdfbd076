"""Start a run from scratch, or resume it from a checkpoint with the config that it was started with."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from latentfaces.config.overrides import leaves_of
from latentfaces.errors import UserError, warn
from latentfaces.ranks import is_main_process
from latentfaces.run import CONFIG, MOVED, RESULT, Run, folders_named, open_run, program, resume_command

CANDIDATES = ("last", "last.previous", "best")
"""Checkpoints to resume from, the newest first."""
LOCK, PATIENCE, SLURM_PATIENCE = ".lock", 10.0, 120.0
"""The lock file of a training, and seconds to wait for a training that is about to end."""

NEW_KEYS = {
    "model.denoiser.network.position_table": "False",
    "trainable": "all",
    "data.labels": "None",
    "model.labels": "None",
}
"""Keys that runs of earlier versions lack, and the values that they had."""
NOT_COMPARED = (
    *("name", "version", "resume", "requeue", "run_dir", "pack", "logger.*", "on_full_disk"),
    *("vae", "init", "run"),  # `check_same` compares them
    *("model.conditioning*", "model.denoiser.network.label_channels"),  # of data.labels; see `cli.labels`
    # Keys of earlier versions.
    *("data.num_workers", "trainer.sync_batchnorm", "trainer.use_distributed_sampler"),
    *("trainer.fast_dev_run", "trainer.overfit_batches", "trainer.gradient_clip_algorithm"),
)
"""Keys that do not affect training, or that are compared elsewhere."""
HARMLESS = (
    *("on_nonfinite", "max_skipped_*", "data.folder", "callbacks.*", "device.*", "model.sampler.*", "trainer.*"),
    "model.*optimizer.fused",  # changes rounding alone
)
"""Keys that may change at a resume, except `HARMFUL`. All others affect the trained weights."""
HARMFUL = ("trainer.accumulate_*", "trainer.gradient_clip_*", "trainer.limit_train_*", "trainer.limit_val_*")
FIXED = ("trainable", "model.optimizer._target_")
"""Keys that cannot change at a resume: a checkpoint has the averages and the optimizer state of the same parameters."""


@contextlib.contextmanager
def trained_alone(cfg: DictConfig) -> Iterator[None]:
    """Within this context no other process trains in the run folder.

    Raises:
        UserError: another process does.
    """
    if not is_main_process():
        yield
        return
    folder = Path(cfg.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    # A killed training ends within seconds. A file server keeps the locks of a lost machine for about 90 seconds.
    patience = SLURM_PATIENCE if "SLURM_JOB_ID" in os.environ else PATIENCE
    lock = FileLock(folder / LOCK, timeout=patience)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"Another process trains in {folder}. Wait for it, or choose another name=... (If there is none, "
            f"remove {folder / LOCK}.)"
        ) from None
    for unfinished in (folder / "checkpoints").rglob("*.partial"):  # of a training that was killed in a save
        unfinished.unlink()
    try:
        yield
    except BaseException:
        if [entry.name for entry in folder.iterdir()] == [LOCK]:  # so that drop_if_empty can remove the folder
            (folder / LOCK).unlink()
        raise
    finally:
        lock.release()


def resumed_run(cfg: DictConfig) -> Run | None:
    """Return the run that this training resumes, if it has a checkpoint."""
    folder = Path(cfg.run_dir)
    resumes = cfg.resume.lower() != "false" and checkpoints_of(cfg) and (folder / CONFIG).exists()
    return open_run(folder) if resumes else None


def checkpoints_of(cfg: DictConfig) -> list[Path]:
    """Return the checkpoints in the run folder, the newest first."""
    paths = (Path(cfg.run_dir) / "checkpoints" / f"{name}.ckpt" for name in CANDIDATES)
    return [path for path in paths if path.is_file()]


def check_same(cfg: DictConfig, key: str, named: str | None, stored: str | None) -> None:
    """Check that a resume names the run that the training was started with, which may be gone since.

    Raises:
        UserError: the key names another.
    """
    if named in (None, "latest"):
        return
    folders = [folder.resolve() for folder in folders_named(named, "vae" if key == "vae" else cfg.stage)]
    if stored is None or Path(stored).resolve() not in folders:
        raise UserError(
            f"{cfg.run_dir} was started with {key}={stored or 'null'}, and not {named}. Restore it, or choose another "
            "name=..."
        )


def claim_run(cfg: DictConfig) -> Path | None:
    """Return the checkpoint to resume from, or None to start from scratch.

    Raises:
        UserError: the folder contains a run and resume=false, or contains none and resume=true or force; or a finished
            run without a checkpoint; or the checkpoint is damaged; or the config has changed.
    """
    folder, resume = Path(cfg.run_dir), cfg.resume.lower()
    checkpoints = checkpoints_of(cfg)
    if resume == "false":
        if (checkpoints or (folder / RESULT).exists()) and is_main_process():
            raise UserError(
                f"{folder} already contains a run. Use resume=auto to continue it, or choose another name=..."
            )
        return None
    if not checkpoints:
        if resume != "auto":
            raise UserError(
                f"resume={resume}, but there is no {folder}/checkpoints/last.ckpt to resume from. Check name=..., "
                "or use resume=auto"
            )
        if (folder / RESULT).exists() and is_main_process():
            raise UserError(f"{folder} is finished and has no checkpoint to resume from. Choose another name=...")
        if is_main_process():
            print(f"No checkpoint in {folder}: starting from scratch")
        return None
    checkpoint = newest_intact(checkpoints, fall_back=resume == "auto")
    compare_configs(cfg, force=resume == "force")
    if is_main_process():
        print(f"Resuming from {checkpoint}")
    return checkpoint


def newest_intact(checkpoints: list[Path], fall_back: bool) -> Path:
    """Return the newest checkpoint that is not damaged.

    Raises:
        UserError: the newest of all is damaged and `fall_back` is false, or all are damaged.
    """
    from latentfaces.training import damage

    found: list[str] = []
    for path in checkpoints:
        if (problem := damage(path)) is None:
            break
        found.append(f"{path} is damaged ({problem})")
    else:
        raise UserError(f"{'; '.join(found)}. Restore one of them, or start again with another name=...")
    if found and not fall_back:
        raise UserError(f"{'; '.join(found)}. Restore it, or resume from {path} with resume=auto")
    if found and is_main_process():
        warn(f"{'; '.join(found)}. The steps since {path.name} are repeated.")
    return path


def compare_configs(cfg: DictConfig, force: bool) -> None:
    """Print each key whose value has changed since the run was last trained.

    Raises:
        UserError: one of them affects the trained weights, and `force` is false or cannot change it.
    """
    path = Path(cfg.run_dir) / ".hydra" / "config.yaml"
    if not path.exists():
        return
    # Interpolations are not resolved: of two linked keys, only the one that was changed is reported.
    before, now = (
        {key: MOVED.get(str(value), str(value)) for key, value in leaves_of(config)}
        for config in (OmegaConf.load(path), cfg)
    )
    changes = {
        key: f"{key}: {before.get(key, NEW_KEYS.get(key, 'not there'))} -> {now.get(key, 'not there')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key, NEW_KEYS.get(key)) != now.get(key) and not matches(key, NOT_COMPARED)
    }
    harmful = [change for key, change in changes.items() if matches(key, HARMFUL) or not matches(key, HARMLESS)]
    fixed = any(matches(key, FIXED) for key in changes)
    if harmful and (fixed or not force):
        forced = "" if fixed else "use resume=force to continue with the new ones, "
        raise UserError(
            f"{cfg.run_dir} was last trained with another config ({'; '.join(harmful)}). Restore these values, "
            f"{forced}or choose another name=..."
        )
    if changes and is_main_process():
        print("\n".join(["Changed since the run was last trained:", *changes.values()]))


def matches(key: str, patterns: tuple[str, ...]) -> bool:
    """Return whether one of the patterns matches the key."""
    return any(fnmatch(key, pattern) for pattern in patterns)


def command_to_resume(cfg: DictConfig) -> str:
    """Return the command that resumes this run."""
    train = ["torchrun", "...", "train.py"] if "TORCHELASTIC_RUN_ID" in os.environ else program("train")
    # A job of a sweep must not start the sweep again.
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    overrides = HydraConfig.get().overrides.task if in_sweep else sys.argv[1:]
    return resume_command(train, overrides, Path(cfg.run_dir))


def requeue() -> None:
    """Return this SLURM job to the queue, which starts the same command again."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    print(f"Job {job} is queued again" if done.returncode == 0 else f"scontrol requeue {job}: {done.stderr}")
