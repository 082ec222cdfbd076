"""Errors that the user can fix, printed as one line."""

import contextlib
import errno
import functools
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from latentfaces.config.overrides import as_text, key_of
from latentfaces.config.paths import CONF, GROUPS
from latentfaces.config.schema import register
from latentfaces.config.secrets import refuse_secret_overrides
from latentfaces.config.suggestions import format_error
from latentfaces.errors import UserError, escape_stdout, no_room

FULL_MEMORY = ("out of memory", "can't allocate memory", "_STATUS_ALLOC_FAILED")
"""Parts of the messages of torch's allocators and of CUDA libraries."""
WRONG_FOLDER = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG)
"""Errors of the operating system that another folder avoids."""


def run(task: Callable[[DictConfig], Any], config: str) -> None:
    """Run a command, and print an error that the user can fix as one line.

    Args:
        task: the command.
        config: the name of its config.
    """
    escape_stdout()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises errors instead of printing them
    register()
    command = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config)(with_one_line_errors(task))
    # -m comes first, since argparse would not know an override that follows it.
    arguments = sorted(map(as_text, sys.argv[1:]), key=lambda argument: argument not in ("-m", "--multirun"))
    with one_line_errors(config, arguments):
        check_arguments(config)
        sys.argv[1:] = arguments
        command()


@contextlib.contextmanager
def one_line_errors(config: str, arguments: Sequence[str]) -> Iterator[None]:
    """Within this context, an error that the user can fix is printed as one line and exits with status 2.

    Ctrl-C exits with status 130.

    Args:
        config: name of the command's config, which may fail to compose.
        arguments: of the command.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if message := explain(error):
            fail(message)
        is_bug = isinstance(error, InstantiationException)  # its cause is no mistake of the user, as `explain` says
        no_group = str(error).startswith("Config group override")  # a ValueError of Hydra
        if no_group or (isinstance(error, HydraException) and not is_bug):
            overrides = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
            fail(format_error(error, config, overrides))
        raise


def check_arguments(config: str) -> None:
    """Reject arguments that Hydra may not see.

    Raises:
        UserError: an argument holds a secret, is not in UTF-8, runs code, or replaces a group by a list of numbers.
    """
    refuse_secret_overrides(sys.argv[1:])
    for argument in sys.argv[1:]:
        if config == "train" and argument.encode(errors="replace").decode() != argument:
            raise UserError(f"{argument} is not in UTF-8. Rename the file or folder.")
        if key_of(argument) in GROUPS and re.search(r"=\[\s*[-\d]", argument):
            raise UserError(f"{argument} is not a choice of this group. Leave it out.")
        if argument.startswith("--e"):  # argparse accepts abbreviations
            raise UserError(
                "--experimental-rerun unpickles a file, which can run any code. Repeat the overrides instead."
            )


def with_one_line_errors(main: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Decorate a command: an error that the user can fix is printed as one line and exits with status 2."""

    @functools.wraps(main)
    def wrapped(cfg: DictConfig) -> Any:
        try:
            return main(cfg)
        except Exception as error:
            message = out_of_memory(error, cfg) or explain(error)
            if message is None:
                raise
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise UserError(message) from error  # the other jobs of the sweep continue
            fail(message)

    return wrapped


def fail(message: str) -> NoReturn:
    """Print an error and exit with status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def explain(error: BaseException) -> str | None:
    """Return one line for an error that the user can fix, or None for a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and (reason := no_room(error)) is not None:
        return f"{error.filename or 'A file could not be written'}: {reason}. Free some space there."
    if isinstance(error, OSError) and error.errno in WRONG_FOLDER:
        return f"{error.filename or 'a file'}: {error.strerror}. Choose another folder, or change its permissions."
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is missing. Add {error.full_key}=..."
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key or 'the config'}: {str(error).splitlines()[0]}"
    if isinstance(error, RuntimeError) and str(error).startswith("Early stopping conditioned on metric"):
        return f"callbacks.early_stopping.monitor: {' '.join(str(error).split())}"
    if type(error).__name__ == "MisconfigurationException":  # Lightning's class for wrong arguments
        return " ".join(str(error).split())
    if isinstance(error, RuntimeError) and str(error).startswith("Error(s) in loading state_dict"):
        return (
            f"The checkpoint does not fit the network ({str(error).splitlines()[1].strip()}). Restore the config and "
            "the version of its training, or choose another name=..."
        )
    if isinstance(error, InstantiationException):
        cause = error.__cause__ or error
        wrong_argument = isinstance(cause, ValueError | TypeError | ImportError | HydraException)
        if not wrong_argument and type(cause).__name__ != "MisconfigurationException":
            return explain(cause)
        key = str(error).rpartition("full_key: ")[2] if "full_key: " in str(error) else "config"
        return " ".join(f"{key}: {cause}".split())
    return None


def out_of_memory(error: BaseException | None, cfg: DictConfig) -> str | None:
    """Return one line for an out-of-memory error: options that need less, then its message. None for other errors."""
    while not is_out_of_memory(error):
        if error is None:
            return None
        error = error.__cause__
    remedies: list[str] = []  # none for latentfaces-export
    if "batch_size" in cfg:
        remedies = [f"lower batch_size={cfg.batch_size}", "use precision=bf16" * (cfg.precision == "fp32")]
    elif "trainer" in cfg:
        steps = cfg.trainer.accumulate_grad_batches
        remedies = [
            f"lower data.batch_size={cfg.data.batch_size} (raise trainer.accumulate_grad_batches={steps} to keep the "
            "images of a step)",
            "use trainer.precision=bf16-mixed" * (not str(cfg.trainer.precision).startswith("bf16")),
            "use model.autoencoder.gradient_checkpointing=true"
            * (cfg.stage == "vae" and cfg.model.autoencoder.get("gradient_checkpointing") is False),
            "choose a smaller model/denoiser" * (cfg.stage == "ldm"),
        ]
    advice = f"To use less, {', or '.join(filter(None, remedies))}." if remedies else ""
    return " ".join(f"Out of memory. {advice} {error}".split())


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether Python, an allocator of torch or a CUDA library found no memory."""
    full = isinstance(error, RuntimeError) and any(words in str(error) for words in FULL_MEMORY)
    return full or isinstance(error, MemoryError)
