"""A person's mistake becomes one sentence."""

import functools
import sys
from collections.abc import Callable
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from latentfaces.errors import UserError, no_room


def one_sentence(main: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Decorate a command: a person's mistake is printed as one sentence, without a traceback, and exits with 2."""

    @functools.wraps(main)
    def wrapped(cfg: DictConfig) -> Any:
        try:
            return main(cfg)
        except (UserError, InstantiationException, OmegaConfBaseException, OSError) as error:
            message = explain(error)
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
    if isinstance(error, OSError):
        reason = no_room(error)
        return reason and f"{reason}: {error.filename or 'a file could not be written'}; make room there"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} must be given: type {error.full_key}=..."
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key or 'the config'}: {str(error).splitlines()[0]}"
    cause = error.__cause__
    if isinstance(cause, UserError):
        return str(cause)
    if isinstance(cause, ValueError | TypeError):
        key = str(error).rpartition("full_key: ")[2].splitlines()[0]
        return f"{key}: {cause}"
    if isinstance(error, InstantiationException):
        return " ".join(str(error).split())
    return None
