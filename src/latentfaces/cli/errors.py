"""Errors that the user can fix, printed as one line."""

import errno
import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from latentfaces.config.overrides import as_text
from latentfaces.config.paths import CONF
from latentfaces.config.schema import register
from latentfaces.config.secrets import refuse_secret_overrides
from latentfaces.config.suggestions import format_error
from latentfaces.errors import UserError, escape_stdout, no_room

FULL_MEMORY = ("out of memory", "can't allocate memory", "_STATUS_ALLOC_FAILED")
"""Parts of the messages of torch's allocators and of CUDA libraries."""
STATE_OF_THE_MACHINE = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Choose another folder, or change its permissions."),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG), "Choose another folder."),
    errno.EIO: "Check the disk.",
}
"""Errors of the operating system that are no bug of the program, and their fixes."""


def run(task: Callable[[DictConfig], Any], config: str) -> None:
    """Run a command, and print an error that the user can fix as one line.

    Args:
        task: the command.
        config: the name of its config.
    """
    escape_stdout()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises errors instead of printing them
    register()
    command = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config)(one_sentence(task))
    try:
        check_arguments(config)
        # -m comes first, since argparse would not know an override that follows it.
        sys.argv[1:] = sorted(map(as_text, sys.argv[1:]), key=lambda argument: argument not in ("-m", "--multirun"))
        command()
    except Exception as error:
        is_of_config = isinstance(error, HydraException | OmegaConfBaseException)
        if is_of_config or str(error).startswith("Config group override"):  # a plain ValueError of Hydra
            overrides = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
            print(f"error: {format_error(error, config, overrides)}", file=sys.stderr)
            sys.exit(1)
        if sentence := explain(error):  # of an argument, or Hydra cannot create the run folder
            print(f"error: {sentence}", file=sys.stderr)
            sys.exit(2)
        raise


def check_arguments(config: str) -> None:
    """Reject arguments that Hydra may not see.

    Raises:
        UserError: an argument holds a secret, is not in UTF-8, or runs code.
    """
    refuse_secret_overrides(sys.argv[1:])
    for argument in sys.argv[1:]:
        if config == "train" and argument.encode(errors="replace").decode() != argument:
            raise UserError(f"{argument} is not in UTF-8. Rename the file or folder.")
        if argument.startswith("--experimental-rerun"):
            raise UserError(
                "--experimental-rerun unpickles a file, which can run any code. Repeat the overrides instead."
            )


def one_sentence(main: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
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
            print(f"error: {message}", file=sys.stderr)
            sys.exit(2)

    return wrapped


def explain(error: BaseException) -> str | None:
    """Return one line for an error that the user can fix, or None for a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and (reason := no_room(error)) is not None:
        return f"{error.filename or 'A file could not be written'}: {reason}. Free some space there."
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is missing. Add {error.full_key}=..."
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key or 'the config'}: {str(error).splitlines()[0]}"
    if isinstance(error, OSError) and error.errno in STATE_OF_THE_MACHINE:
        return f"{error.filename or 'a file'}: {error.strerror}. {STATE_OF_THE_MACHINE[error.errno]}"
    if isinstance(error, RuntimeError) and str(error).startswith("Error(s) in loading state_dict"):
        return (
            f"The checkpoint does not fit the network ({str(error).splitlines()[1].strip()}). It is of another "
            "version: resume with that version, or choose another name=..."
        )
    if not isinstance(error, InstantiationException):
        return None
    cause = error.__cause__
    if isinstance(cause, UserError):
        return str(cause)
    # MisconfigurationException is Lightning's class for wrong arguments.
    if isinstance(cause, ValueError | TypeError | ImportError) or type(cause).__name__ == "MisconfigurationException":
        _, nested, key = str(error).rpartition("full_key: ")
        return f"{key.splitlines()[0]}: {cause}" if nested else str(cause)
    return " ".join(str(error).split())


def out_of_memory(error: BaseException, cfg: DictConfig) -> str | None:
    """Return one line for an out-of-memory error: the device, its memory, and options that need less."""
    full = next((cause for cause in causes(error) if isinstance(cause, MemoryError) or is_full_memory(cause)), None)
    if full is None:
        return None
    device, size = device_of(full)
    if "trainer" not in cfg:
        remedies = [f"lower batch_size={cfg.batch_size}", "use precision=bf16" * (cfg.precision.name == "fp32")]
    else:
        steps = cfg.trainer.accumulate_grad_batches
        remedies = [
            f"lower data.batch_size={cfg.data.batch_size} (raise trainer.accumulate_grad_batches={steps} to keep the "
            "images of a step)",
            "use trainer.precision=bf16-mixed" * (not str(cfg.trainer.precision).startswith("bf16")),
            "use model.autoencoder.gradient_checkpointing=true"
            * (cfg.stage == "vae" and cfg.model.autoencoder.get("gradient_checkpointing") is False),
            "choose a smaller model/denoiser" * (cfg.stage == "ldm"),
        ]
    choices = [remedy for remedy in remedies if remedy]
    return f"Out of memory: {device} has {size / 2**30:.1f} GiB. To use less, {', or '.join(choices)}."


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__


def is_full_memory(error: BaseException) -> bool:
    """Return whether this is torch's error of full memory: a class on a GPU, a message elsewhere."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in FULL_MEMORY)


def device_of(error: BaseException) -> tuple[str, int]:
    """Return the name and the bytes of the memory that was full."""
    import torch

    if torch.cuda.is_available() and not isinstance(error, MemoryError) and "CPU" not in str(error):
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        return properties.name, properties.total_memory
    return "this machine", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
