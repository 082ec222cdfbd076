"""What must not come in, and what must not get out: links, parts of strangers' configs, secrets."""

import netrc
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from latentfaces.config.overrides import leaves_of
from latentfaces.errors import UserError

LINK = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
SECRET_KEY = re.compile(
    r"(^|_)((api|access|private|secret|kaggle)_?key|((api|access|auth)_?)?token|secret|passw(or)?d|credentials?)$",
    re.IGNORECASE,
)
SECRET_VARIABLE = re.compile(r"KEY|TOKEN|SECRET|PASSW(OR)?D|CREDENTIAL")
SHORTEST_SECRET = 12
"""Characters: a shorter value of such a variable is more likely a word that stands elsewhere by chance."""


def refuse_links(cfg: DictConfig) -> None:
    """Nothing is loaded from a link: what it gives can change, or be somebody else's. W&B's address is none to load.

    Raises:
        UserError: naming the key.
    """
    for key, value in leaves_of(cfg):
        if isinstance(value, str) and LINK.match(value) and not key.startswith("logger."):
            raise UserError(f"{key} is a link, and nothing is loaded from one: fetch the file, and give its path")


def key_in_netrc(host: str) -> str | None:
    """What `wandb login` has left here for a host; None if it has not."""
    try:
        login = netrc.netrc().authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return None
    return login[2] if login is not None else None


def secrets_here() -> dict[str, str]:
    """The secrets of this machine that are known, by where they are."""
    found = {f"${name}": value for name, value in os.environ.items() if SECRET_VARIABLE.search(name)}
    found["~/.netrc"] = key_in_netrc("api.wandb.ai") or ""
    return {place: value for place, value in found.items() if len(value) >= SHORTEST_SECRET}


def instead_of(key: str) -> str:
    """Where a secret belongs."""
    for name, place in (("wandb", "WANDB_API_KEY"), ("kaggle", "KAGGLE_API_TOKEN")):
        if name in key.lower():
            return f"the environment variable {place}"
    return "an environment variable"


def refuse_secret(key: str, value: Any, secrets: Mapping[str, str]) -> None:
    """Refuse a key that asks for a secret, or a value that has one in it: what is typed is written down.

    Raises:
        UserError: naming the key, and not the secret.
    """
    if value is not None and SECRET_KEY.search(key.rpartition(".")[2]):
        raise UserError(
            f"{key} would be written into the run's folder, where a secret must not be: leave it out, and put the "
            f"secret into {instead_of(key)}"
        )
    for place, secret in secrets.items():
        if isinstance(value, str) and secret in value:
            raise UserError(f"{key} has the secret in it that is in {place}, and would be written down: leave it out")


def refuse_secrets_typed(arguments: Sequence[str]) -> None:
    """Look through the words of a command, before Hydra names a folder after them.

    Raises:
        UserError: naming the key, and not the secret.
    """
    secrets = secrets_here()
    for argument in arguments:
        key, _, value = argument.lstrip("+~").partition("=")
        refuse_secret(key.partition("@")[0], value or None, secrets)
        refuse_secret("what was typed", key, secrets)


def refuse_secrets_in(cfg: DictConfig) -> None:
    """Look through a config, which may come from files of the person's own.

    Raises:
        UserError: naming the key, and not the secret.
    """
    secrets = secrets_here()
    for key, value in leaves_of(cfg, resolve=True):
        refuse_secret(key, value, secrets)
