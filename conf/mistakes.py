"""A person's mistake becomes one sentence."""

import difflib
import errno
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from conf.safety import leaves_of, refuse_secrets_typed
from latentfaces.errors import UserError, no_room

FULL_MEMORY = ("out of memory", "can't allocate memory", "_STATUS_ALLOC_FAILED")
"""What torch's allocators, CUDA, and the libraries on top of it say."""
LOST_WORKER = ("DataLoader worker", "shared memory")
STATE_OF_THE_MACHINE = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "name another folder, or change who may write there"),
    errno.EIO: "look after the disk",
}
"""What the operating system refuses for reasons that are no fault of the program, and the remedies."""


def run(main: Callable[[], Any], config: str) -> None:
    """Run a command; what Hydra itself does not refuse, or refuses without a hint, is told here.

    Args:
        main: the command.
        config: the name of its config.
    """
    try:
        refuse_secrets_typed(sys.argv[1:])
        if any(argument.startswith("--experimental-rerun") for argument in sys.argv):
            raise UserError("--experimental-rerun unpickles a file, which may run anything: type the options instead")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    try:
        main()
    except SystemExit as stop:
        if stop.code == 1 and (hint := nearest_key(config, sys.argv[1:])):
            print(f"error: {hint}", file=sys.stderr)
        raise


def nearest_key(config: str, overrides: list[str]) -> str | None:
    """The sentence for a key that does not exist: which key does, and comes nearest; None where that is no mistake."""
    typed = [override for override in overrides if not override.startswith("-")]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(Path(__file__).parent), version_base="1.3"):
            try:
                compose(config, typed)
                return None
            except ConfigCompositionException as error:
                wrong = getattr(error.__cause__, "full_key", None)
            if wrong is None:
                return None
            known = keys_and_groups(config, [o for o in typed if o.partition("=")[0] != wrong])
    except (HydraException, OmegaConfBaseException):
        return None
    near = [key for key in known if last_word(key) == last_word(wrong)] or difflib.get_close_matches(wrong, known, 1)
    return f"there is no {wrong}" + (f": did you mean {' or '.join(near)}?" if near else "")


def keys_and_groups(config: str, overrides: list[str]) -> list[str]:
    """All that can be typed before a =: `model.optimizer.lr`, and `model/optimizer`."""
    cfg = compose(config, overrides, return_hydra_config=True)
    groups = {group.partition("@")[0] for group in cfg.hydra.runtime.choices if not str(group).startswith("hydra/")}
    return [*sorted(groups), *(key for key, _ in leaves_of(cfg) if not key.startswith("hydra."))]


def last_word(key: str) -> str:
    """`lr` of `model.optimizer.lr`, `loss` of `model/loss`."""
    return re.split(r"[./]", key)[-1]


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
    if isinstance(error, RuntimeError) and any(words in str(error) for words in LOST_WORKER):
        from latentfaces.data.prefetch import lost_worker  # such an error can reach any line of the main process

        return str(lost_worker(error))
    if isinstance(error, OSError) and error.errno in STATE_OF_THE_MACHINE:
        return f"{error.filename or 'a file'}: {error.strerror}: {STATE_OF_THE_MACHINE[error.errno]}"
    if not isinstance(error, InstantiationException):
        return None
    cause = error.__cause__
    if isinstance(cause, UserError):
        return str(cause)
    if isinstance(cause, ValueError | TypeError):
        key = str(error).rpartition("full_key: ")[2].splitlines()[0]
        return f"{key}: {cause}"
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
