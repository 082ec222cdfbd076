"""Weights & Biases: online where it can be reached, and never in the way of a training."""

import contextlib
import os
import secrets
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import urlopen

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from latentfaces.config.secrets import key_in_netrc
from latentfaces.errors import UserError
from latentfaces.ranks import is_main_process
from latentfaces.run import CONFIG, open_run

SECONDS = {"WANDB_INIT_TIMEOUT": "10", "WANDB_FINISH_TIMEOUT": "60"}
"""How long W&B may hold up the start and the end of a run: its own variables, and what they are unless set."""
PROBE_SECONDS = 3


def prepare_wandb(cfg: DictConfig) -> None:
    """Decide whether W&B is online, what it calls a job of a sweep, and which run of W&B this one is.

    Raises:
        UserError: checkpoints are to go to W&B, which is offline.
    """
    wandb, hydra = cfg.logger.wandb, HydraConfig.get()
    wandb.offline = wandb_is_offline(cfg)
    if wandb.offline and wandb.log_model:
        raise UserError(
            "logger.wandb.log_model needs W&B online: type `wandb login` once, or take "
            "callbacks.dashboard.upload_weights=true"
        )
    if hydra.mode == RunMode.MULTIRUN:
        wandb.name, wandb.tags = f"{cfg.name}/{hydra.job.num}", [*wandb.tags, "sweep"]
    if wandb.id is None and "WANDB_RUN_ID" not in os.environ:  # which an agent of W&B sets
        wandb.id = earlier_wandb_id(cfg) or secrets.token_hex(4)


def wandb_is_offline(cfg: DictConfig) -> bool:
    """Whether W&B is to log offline; says so."""
    if cfg.logger.wandb.offline != "auto":
        return bool(cfg.logger.wandb.offline)
    reason = offline_reason() if is_main_process() else None
    if reason is not None:
        tell_offline(Path(cfg.run_dir), reason)
    return reason is not None


def earlier_wandb_id(cfg: DictConfig) -> str | None:
    """The run of W&B that the training logged to which this one goes on, if it did."""
    folder = Path(cfg.run_dir)
    if cfg.resume.lower() == "false" or not (folder / CONFIG).exists():
        return None
    return open_run(folder).config["logger"].get("wandb", {}).get("id")


def offline_reason() -> str | None:
    """Why W&B has to log offline, in words; None where nothing speaks against online."""
    mode = os.environ.get("WANDB_MODE")
    if mode == "disabled":
        return None
    if mode in ("offline", "dryrun"):
        return f"as WANDB_MODE={mode} says"
    limit_waiting()
    import wandb

    address = os.environ.get("WANDB_BASE_URL") or wandb.setup().settings.base_url
    host = urlparse(address).hostname or address
    if not os.environ.get("WANDB_API_KEY") and key_in_netrc(host) is None:
        return "for want of an account; to go online type `wandb login` once"
    return None if answers(address) else f"as {host} cannot be reached"


def limit_waiting() -> None:
    """Keep W&B from holding up a run for long; before it reads its environment, which it does once."""
    for name, seconds in SECONDS.items():
        os.environ.setdefault(name, seconds)


def answers(address: str) -> bool:
    """Whether anything at all answers there, within `PROBE_SECONDS`, name servers included."""
    heard = threading.Event()

    def ask() -> None:
        try:
            urlopen(address, timeout=PROBE_SECONDS).close()
        except (OSError, ValueError) as error:
            if not isinstance(error, HTTPError):  # which is an answer too
                return
        heard.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return heard.is_set()


def tell_offline(folder: Path, reason: str) -> None:
    """Say that W&B logs offline, why, and where its files are."""
    files = folder / "wandb" / "offline-run-*"
    print(f"W&B logs offline, {reason}; its files are {files}, and `wandb sync` uploads them")


def begin(logger: Any, config: Mapping[str, Any], folder: Path) -> None:
    """Start the run on W&B with its config; where that fails, offline.

    Args:
        logger: Lightning's `WandbLogger`.
        config: of the run.
        folder: the run's.
    """
    limit_waiting()
    import wandb

    # W&B reads its environment once a process, and may have done so before Lightning writes there that it is offline.
    if logger._offline:
        logger._wandb_init["mode"] = "offline"
        if "WANDB_SILENT" not in os.environ:  # its own dozens of lines say no more than `tell_offline`
            logger._wandb_init["settings"] = wandb.Settings(silent=True)
    try:
        logger.log_hyperparams(config)
    except (wandb.Error, OSError) as error:
        problem = str(error).splitlines()[0]
        tell_offline(folder, f"as it could not be started online ({problem})")
        # W&B holds on to the run that it could not start: another one takes its place.
        logger._wandb_init |= {"mode": "offline", "id": secrets.token_hex(4)}
        logger.log_hyperparams(config)
    if logger._experiment is not None:  # none in the processes of further devices
        logger._experiment = SafeRun(logger._experiment, Loss(folder))


def finish() -> None:
    """End the run on W&B, so that the next one of this process is another."""
    wandb = sys.modules.get("wandb")
    if wandb is not None:
        with contextlib.suppress(wandb.Error, OSError):
            wandb.finish()


class Loss:
    """Tells once that W&B is gone.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.told = folder, False

    def __call__(self, error: BaseException) -> None:
        if not self.told:
            self.told = True
            print(
                f"W&B's process was lost ({type(error).__name__}: {error}); training goes on, and logs to "
                f"{self.folder / 'metrics.csv'}; what W&B had until now is in {self.folder / 'wandb'}",
                file=sys.stderr,
            )


class SafeRun:
    """A run of W&B, or a part of one, whose errors are told once, and raised never.

    Args:
        target: what it stands for.
        lost: called with each error.
    """

    def __init__(self, target: Any, lost: Loss) -> None:
        self.__dict__.update(target=target, lost=lost)

    def attempt(self, action: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """The action's result; None if it fails."""
        import wandb

        try:
            result = action(*arguments, **options)
        except (wandb.Error, OSError) as error:
            self.lost(error)
            return None
        return result if isinstance(result, str | int | float | None) else SafeRun(result, self.lost)

    def __getattr__(self, name: str) -> Any:
        return self.attempt(getattr, self.target, name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.attempt(self.target, *arguments, **options)

    def __setitem__(self, name: str, value: Any) -> None:
        self.attempt(self.target.__setitem__, name, value)
