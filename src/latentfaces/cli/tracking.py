"""Weights & Biases: online where the user is logged in, and never a reason for a training to fail."""

import contextlib
import netrc
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from omegaconf import DictConfig

from latentfaces.cli.resume import resumed_run
from latentfaces.config.validation import is_sweep_job
from latentfaces.ranks import is_main_process

SECONDS = {"WANDB_INIT_TIMEOUT": "10", "WANDB_FINISH_TIMEOUT": "60"}
"""Environment variables of W&B that limit how long it delays the start and the end of a run, with our defaults."""


def prepare_wandb(cfg: DictConfig) -> None:
    """Decide whether W&B is online, how it names a job of a sweep, and which W&B run a resume continues."""
    wandb = cfg.logger.wandb
    wandb.offline = is_offline() if wandb.offline == "auto" else bool(wandb.offline)
    if is_sweep_job(cfg):
        wandb.name, wandb.tags = f"{cfg.name}/{Path(cfg.run_dir).name}", [*wandb.tags, "sweep"]
    if wandb.id is None and "WANDB_RUN_ID" not in os.environ:  # which an agent of W&B sets
        run = resumed_run(cfg)
        earlier = run.config["logger"].get("wandb", {}).get("id") if run is not None else None
        wandb.id = earlier or secrets.token_hex(4)


def is_offline() -> bool:
    """Return whether W&B logs offline: as WANDB_MODE says, else unless the user is logged in."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode in ("offline", "dryrun")
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        if os.environ.get("WANDB_API_KEY") or netrc.netrc().authenticators(host):  # as `wandb login` writes it
            return False
    if is_main_process():
        print("W&B: not logged in, logging offline. Run `wandb login` to sync.")
    return True


def begin(logger: Any, config: Mapping[str, Any]) -> None:
    """Start the run on W&B with its config. If it cannot start online, start it offline.

    Args:
        logger: Lightning's `WandbLogger`.
        config: of the run.
    """
    for name, seconds in SECONDS.items():
        os.environ.setdefault(name, seconds)
    import wandb

    try:
        logger.log_hyperparams(config)
    except (wandb.Error, OSError) as error:
        print(f"W&B: could not start online ({str(error).splitlines()[0]}). Logging offline.", file=sys.stderr)
        # The failed run keeps its id: the offline run needs another. `_wandb_init` holds the arguments of `wandb.init`,
        # and Lightning has no public way to change them.
        logger._wandb_init |= {"mode": "offline", "id": secrets.token_hex(4)}
        logger.log_hyperparams(config)


def finish() -> None:
    """End the W&B run, so that the next job of this process starts another."""
    wandb = sys.modules.get("wandb")
    if wandb is not None:
        with contextlib.suppress(wandb.Error, OSError):
            wandb.finish()
