"""Errors of Hydra as one line, with the nearest key or choice that exists."""

import difflib
import re
from collections.abc import Sequence

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from latentfaces.config.compose import compose_config
from latentfaces.config.overrides import NOT_TEXT, key_of, leaves_of
from latentfaces.config.paths import CONF, GROUPS


def format_error(error: Exception, config: str, overrides: Sequence[str]) -> str:
    """Return one line for a config that could not be composed.

    Args:
        error: of Hydra or OmegaConf.
        config: name of the command's config.
        overrides: of the command.
    """
    said, cause = str(error).strip(), error.__cause__
    if said.startswith("Config group override must be"):
        groups = [override for override in overrides if key_of(override) in GROUPS]
        wrong_type = (o for o in groups if NOT_TEXT.fullmatch(o.partition("=")[2]) or o.lower().endswith("=null"))
        first = next(wrong_type, "A number")
        return f"{first} is not a choice of this group. Leave it out."
    if isinstance(error, OverrideParseException):
        return f"Cannot parse override {error.override}. Write KEY=VALUE, or 'KEY=\"VALUE\"' for special characters."
    if isinstance(error, MissingConfigException) and (missing := re.search(r"Could not find '(.+?)'", said)):
        return unknown_choice(missing[1], re.findall(r"^\t(\w+)$", said, re.MULTILINE))
    if unknown := re.match(r"Could not override '([\w/@.]+)'\.\s+No match in the defaults list", said):
        if unknown[1] in GROUPS:
            return f"{unknown[1]} has no effect with the other choices (model=..., task=...). Leave it out."
        return f"Unknown group {unknown[1]}." + suggestion(difflib.get_close_matches(unknown[1], GROUPS, 1))
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and (key := getattr(cause, "full_key", None)):
        return unknown_key(key, config, overrides)
    if wrong := re.match(r"Error merging override (.+)", said):
        reason = str(cause).splitlines()[0]
        return f"{wrong[1].strip()} is invalid: {reason[0].lower()}{reason[1:]}."
    said = said.partition("To append to your default list")[0]  # the appended group would have no effect
    return " ".join((said or str(cause)).split())


def suggestion(names: Sequence[str]) -> str:
    """Return the question that ends a message, if there is a name to suggest."""
    return f" Did you mean {' or '.join(names)}?" if names else ""


def unknown_choice(wanted: str, choices: Sequence[str]) -> str:
    """Return the line for `group/choice` where the group has no such choice."""
    group, _, choice = wanted.rpartition("/")
    near = suggestion(difflib.get_close_matches(choice, choices, 1))
    return f"Unknown choice {group}={choice}.{near} Choices: {', '.join(choices)}."


def unknown_key(wrong: str, config: str, overrides: Sequence[str]) -> str:
    """Return the line for a key that does not exist, with the nearest one that does."""
    try:
        composed = compose_config(config, [o for o in overrides if key_of(o) != wrong and "," not in o])
        keys = [key for key, _ in leaves_of(composed) if not key.startswith("hydra.")]
    except (HydraException, OmegaConfBaseException):
        keys = []
    above, _, last = wrong.rpartition(".")
    group = above.replace(".", "/")
    files = sorted((CONF / group).glob("*.yaml")) if group in GROUPS else []
    if with_key := [path.stem for path in files if re.search(rf"^ *{last}:", path.read_text(), re.MULTILINE)]:
        return f"Unknown key {wrong} for this choice of {group}. It belongs to {group}={', '.join(with_key)}."
    near = [name for name in [*keys, *GROUPS] if re.split(r"[./]", name)[-1] == last]
    near = near or difflib.get_close_matches(wrong, [*keys, *GROUPS], 1)
    return f"Unknown key {wrong}." + suggestion(near)
