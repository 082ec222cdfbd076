"""A person's mistake becomes one sentence."""

import contextlib
import errno
import functools
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from latentfaces.config.secrets import refuse_secret_overrides
from latentfaces.config.suggestions import format_error
from latentfaces.errors import UserError, escape_stdout, no_room

FULL_ERROR = "HYDRA_FULL_ERROR"
FULL_MEMORY = ("out of memory", "can't allocate memory", "_STATUS_ALLOC_FAILED")
"""What torch's allocators, CUDA, and the libraries on top of it say."""
STATE_OF_THE_MACHINE = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "name another folder, or change who may write there"),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG), "name another folder"),
    errno.EIO: "look after the disk",
}
"""What the operating system refuses for reasons that are no fault of the program, and the remedies."""


def run(main: Callable[[], Any], config: str) -> None:
    """Run a command; what Hydra itself does not refuse, or refuses without a hint, is told here.

    Args:
        main: the command.
        config: the name of its config.
    """
    escape_stdout()
    try:
        refuse_secret_overrides(sys.argv[1:])
        for argument in sys.argv[1:]:
            if config == "train" and argument.encode(errors="replace").decode() != argument:
                raise UserError(f"{argument} is not in UTF-8. Rename the file or folder.")
        if any(argument.startswith("--experimental-rerun") for argument in sys.argv):
            raise UserError("--experimental-rerun unpickles a file, which may run anything: type the options instead")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    # Wherever they stand: what follows an option of its own would be unknown to argparse.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: argument not in ("-m", "--multirun"))
    overrides = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    try:
        with errors_raised():
            main()
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {format_error(error, config, overrides)}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        if sentence := explain(error):  # of Hydra's own work: the run's folder cannot be made
            print(f"error: {sentence}", file=sys.stderr)
            sys.exit(2)
        traceback.print_exc()
        sys.exit(1)


@contextlib.contextmanager
def errors_raised() -> Iterator[None]:
    """Within this context Hydra raises what goes wrong, rather than print it in its own way."""
    before = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[FULL_ERROR]
        else:
            os.environ[FULL_ERROR] = before


def one_sentence(main: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Decorate a command: a person's mistake is printed as one sentence, without a traceback, and exits with 2."""

    @functools.wraps(main)
    def wrapped(cfg: DictConfig) -> Any:
        try:
            return main(cfg)
        except Exception as error:
            message = out_of_memory(error, cfg) or explain(error)
            if message is None:
                raise
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise UserError(message) from error  # the other jobs of the sweep go on
            print(f"error: {message}", file=sys.stderr)
            sys.exit(2)

    return wrapped


def explain(error: BaseException) -> str | None:
    """The sentence for a person's mistake; None for a fault of the program's."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and (reason := no_room(error)) is not None:
        return f"{error.filename or 'a file could not be written'}: {reason}: make room there"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} must be given: type {error.full_key}=..."
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key or 'the config'}: {str(error).splitlines()[0]}"
    if isinstance(error, OSError) and error.errno in STATE_OF_THE_MACHINE:
        return f"{error.filename or 'a file'}: {error.strerror}: {STATE_OF_THE_MACHINE[error.errno]}"
    if not isinstance(error, InstantiationException):
        return None
    cause = error.__cause__
    if isinstance(cause, UserError):
        return str(cause)
    # Lightning has a class of its own for what was typed wrong.
    if isinstance(cause, ValueError | TypeError | ImportError) or type(cause).__name__ == "MisconfigurationException":
        _, nested, key = str(error).rpartition("full_key: ")
        return f"{key.splitlines()[0]}: {cause}" if nested else str(cause)
    return " ".join(str(error).split())


def out_of_memory(error: BaseException, cfg: DictConfig) -> str | None:
    """The sentence for memory that is full: how much there is, what was asked for, and what takes less."""
    full = next((cause for cause in causes(error) if isinstance(cause, MemoryError) or is_full_memory(cause)), None)
    if full is None:
        return None
    device, size = device_of(full)
    if "trainer" not in cfg:
        remedies = [f"lower batch_size={cfg.batch_size}", "take precision=bf16" * (cfg.precision.name == "fp32")]
    else:
        steps = cfg.trainer.accumulate_grad_batches
        remedies = [
            f"lower data.batch_size={cfg.data.batch_size} (and raise trainer.accumulate_grad_batches={steps} to keep "
            "what a step learns from)",
            "take trainer.precision=bf16-mixed" * (not str(cfg.trainer.precision).startswith("bf16")),
            "turn on model.autoencoder.gradient_checkpointing=true"
            * (cfg.stage == "vae" and not cfg.model.autoencoder.gradient_checkpointing),
            "choose a smaller model/denoiser" * (cfg.stage == "ldm"),
        ]
    choices = [remedy for remedy in remedies if remedy]
    return f"out of memory: {device} has {size / 2**30:.1f} GiB in all; {', or '.join(choices)}"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__


def is_full_memory(error: BaseException) -> bool:
    """Whether it is torch's way to say so: a class of its own on a GPU, words elsewhere."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in FULL_MEMORY)


def device_of(error: BaseException) -> tuple[str, int]:
    """Name and bytes of the memory that was full."""
    import torch

    if torch.cuda.is_available() and not isinstance(error, MemoryError) and "CPU" not in str(error):
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        return properties.name, properties.total_memory
    return "this machine", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
