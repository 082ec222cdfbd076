"""Overrides that are rejected for safety: links, and keys that hold secrets."""

import netrc
import re
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from latentfaces.config.overrides import leaves_of
from latentfaces.errors import UserError

LINK = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
SECRET_KEY = re.compile(
    r"(^|_)((api|access|private|secret|kaggle)_?key|((api|access|auth)_?)?token|secret|passw(or)?d|credentials?)$",
    re.IGNORECASE,
)


def refuse_links(cfg: DictConfig) -> None:
    """Reject links: the file behind one can change, or be untrusted. The address of W&B is not loaded.

    Raises:
        UserError: naming the key.
    """
    for key, value in leaves_of(cfg):
        if isinstance(value, str) and LINK.match(value) and not key.startswith("logger."):
            raise UserError(f"{key} is a link, and links are not loaded. Download the file and give its path.")


def key_in_netrc(host: str) -> str | None:
    """Return the API key that `wandb login` stored for a host, or None."""
    try:
        login = netrc.netrc().authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return None
    return login[2] if login is not None else None


def instead_of(key: str) -> str:
    """Return where the secret of a key belongs."""
    for name, place in (("wandb", "WANDB_API_KEY"), ("kaggle", "KAGGLE_API_TOKEN")):
        if name in key.lower():
            return f"the environment variable {place}"
    return "an environment variable"


def refuse_secret(key: str, value: Any) -> None:
    """Reject a key that asks for a secret: the run folder keeps every override.

    Raises:
        UserError: naming the key, and not the secret.
    """
    if key == "task.token":  # of the page, which is in no run folder
        return
    if value is not None and SECRET_KEY.search(key.rpartition(".")[2]):
        raise UserError(f"{key} would be written into the run folder. Put the secret into {instead_of(key)}.")


def refuse_secret_overrides(arguments: Sequence[str]) -> None:
    """Check the overrides of a command, before Hydra names a folder after them.

    Raises:
        UserError: naming the key, and not the secret.
    """
    for argument in arguments:
        key, _, value = argument.lstrip("+~").partition("=")
        refuse_secret(key.partition("@")[0], value or None)


def refuse_secrets_in(cfg: DictConfig) -> None:
    """Check a composed config, which may come from the user's own files.

    Raises:
        UserError: naming the key, and not the secret.
    """
    for key, value in leaves_of(cfg, resolve=True):
        refuse_secret(key, value)
