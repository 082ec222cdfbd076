"""What was typed does not make a config: Hydra's complaint as one sentence, with what would."""

import difflib
import re
from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from latentfaces.config.overrides import key_of, leaves_of
from latentfaces.config.paths import CONF

GROUPS = sorted(path.relative_to(CONF).as_posix() for path in CONF.rglob("*") if path.is_dir() and path.name[0] != "_")


def in_quotes(override: str) -> str:
    """An override as a shell hands it to Hydra whole, whatever is in its value."""
    key, _, value = override.partition("=")
    return f"""'{key}="{value}"'"""


def format_error(error: Exception, config: str, overrides: Sequence[str]) -> str:
    """The sentence for what could not be composed.

    Args:
        error: Hydra's or OmegaConf's.
        config: the name of the command's config.
        overrides: what was typed.
    """
    said, cause = str(error).strip(), error.__cause__
    if isinstance(error, OverrideParseException):
        if "=" not in error.override and error.override[:1] != "~":
            return f"{error.override} has no value: type {error.override}=..."
        return f"{error.override} cannot be read; as one value it is typed {in_quotes(error.override)}"
    if several := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.*?)'", said):
        override = several[1]
        return f"{override} has several values: for one job each add -m; as one value type {in_quotes(override)}"
    if isinstance(error, MissingConfigException) and (missing := re.search(r"Could not find '(.+?)'", said)):
        return unknown_option(missing[1], re.findall(r"^\t(\w+)$", said, re.MULTILINE))
    if unknown := re.match(r"Could not override '([\w/@.]+)'\.\s+No match in the defaults list", said):
        if unknown[1] in GROUPS:
            return f"{unknown[1]} has no effect with what else was chosen (model=..., task=...): leave it out"
        near = difflib.get_close_matches(unknown[1], GROUPS, 1)
        return f"there is no group {unknown[1]}" + (f": did you mean {near[0]}?" if near else "")
    if deleted := re.match(r"Could not delete from config. '(.+?)' does not exist", said):
        return unknown_key(deleted[1], config, overrides)
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and (key := getattr(cause, "full_key", None)):
        return unknown_key(key, config, overrides)
    if wrong := re.match(r"Error merging override (.*)", said):
        return f"{wrong[1]} does not fit: {str(cause).splitlines()[0]}"
    return " ".join((said or str(cause)).split("\n")[0].split())


def unknown_option(wanted: str, options: Sequence[str]) -> str:
    """The sentence for a choice that its group has not: `wanted` is group/choice."""
    group, _, choice = wanted.rpartition("/")
    near = difflib.get_close_matches(choice, options, 1)
    hint = f": did you mean {near[0]}?" if near else ""
    return f"there is no {group}={choice}{hint} (choices: {', '.join(options)})"


def unknown_key(wrong: str, config: str, overrides: Sequence[str]) -> str:
    """The sentence for a key that does not exist: with which choice it does, or which comes nearest."""
    above, _, last = wrong.rpartition(".")
    if above and (choices := choices_with(above, last)):
        return f"there is no {wrong} with what was chosen: it goes with {' or '.join(choices)}"
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            others = [o for o in overrides if key_of(o) != wrong and "," not in o]
            composed = compose(config, others)
        known = [key for key, _ in leaves_of(composed)]
    except (HydraException, OmegaConfBaseException):
        known = []
    near = [name for name in [*known, *GROUPS] if re.split(r"[./]", name)[-1] == last]
    nodes = {key[: dot.start()] for key in known for dot in re.finditer(r"\.", key)}
    near = near or difflib.get_close_matches(wrong, [*known, *sorted(nodes), *GROUPS], 1)
    return f"there is no {wrong}" + (f": did you mean {' or '.join(near)}?" if near else "")


def choices_with(above: str, key: str) -> list[str]:
    """The choices of `above` that have the key, or those of a group beside it that bring `above` and the key in it."""
    folder, _, part = above.replace(".", "/").rpartition("/")
    own, brought = rf"^{re.escape(key)}:", rf"^{re.escape(part)}:\n(?:  .*\n)*  {re.escape(key)}:"
    found = dict.fromkeys((CONF / folder / part).glob("*.yaml"), own)
    found |= {path: brought for path in (CONF / folder).glob("*/*.yaml") if folder and path not in found}
    return [
        f"{path.parent.relative_to(CONF).as_posix()}={path.stem}"
        for path, pattern in sorted(found.items())
        if re.search(pattern, path.read_text(), re.MULTILINE)
    ]
