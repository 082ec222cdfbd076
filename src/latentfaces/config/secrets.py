"""Overrides that are rejected for safety: links, and keys that hold secrets."""

import re
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from latentfaces.config.overrides import key_of, leaves_of
from latentfaces.errors import UserError

LINK = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
SECRET_KEY = re.compile(
    r"(^|_)((api|access|private|secret|kaggle)_?key|((api|access|auth)_?)?token|secret|passw(or)?d|credentials?)$",
    re.IGNORECASE,
)


def refuse_unsafe(cfg: DictConfig) -> None:
    """Reject links and secrets in a composed config, which may come from the user's own files.

    The file behind a link can change, or be untrusted. The address of W&B is not loaded.

    Raises:
        UserError: naming the key, and not the secret.
    """
    for key, value in leaves_of(cfg):
        texts = value if isinstance(value, list) else [value]
        if any(LINK.match(str(text)) for text in texts) and not key.startswith("logger."):
            raise UserError(f"{key} is a link, and links are not loaded. Download the file and give its path.")
        refuse_secret(key, value)


def refuse_secret_overrides(arguments: Sequence[str]) -> None:
    """Reject secrets in the arguments of a command, before Hydra names a folder after them.

    Raises:
        UserError: naming the key, and not the secret.
    """
    for argument in arguments:
        refuse_secret(key_of(argument).partition("@")[0], argument.partition("=")[2] or None)


def refuse_secret(key: str, value: Any) -> None:
    """Reject a key that asks for a secret: the run folder keeps every override. The token of the page is in none."""
    if value is not None and key != "task.token" and SECRET_KEY.search(key.rpartition(".")[2]):
        raise UserError(
            f"{key} would be written into the run folder. Put the secret into an environment variable: "
            "WANDB_API_KEY, or KAGGLE_API_TOKEN."
        )
