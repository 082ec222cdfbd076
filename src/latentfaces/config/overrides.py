"""Overrides of the command line."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from latentfaces.config.paths import GROUPS

PATHS = (
    *("data.root", "data.folder", "data.labels", "vae", "init", "run", "output", "to"),
    *("hydra.run.dir", "hydra.sweep.dir"),
    *("image", "task.to_image", "task.mask", "mark_certificate", "mark_key"),
    *("task.features", "task.weights", "task.feature_weights", "task.recognizer"),
)
"""Keys whose value is a path, or may be one."""
NOT_TEXT = re.compile(r"[+-]?[\d._]+(e[+-]?\d+)?|true|false|nan|[+-]?inf", re.IGNORECASE)
"""Values that Hydra reads as a number or a truth value."""
NAME = re.compile(r"[A-Za-z_][\w-]*", re.ASCII)
"""Name that Hydra reads as one part of a key. It reads others only within braces."""
MAPPINGS = ("data.label_types.", "labels.")
"""Keys of mappings whose names the user chooses. Hydra accepts new names only with a plus."""


def as_text(override: str) -> str:
    """Quote a name, a path or a choice that Hydra would read as a number or not at all; expand `~/`.

    New names in `MAPPINGS` get a plus, and braces where Hydra needs them.

    Examples are name=2026_11_29, vae=diffusers:ID#vae and labels.5_o_Clock_Shadow=1.
    """
    key, equals, value = override.partition("=")
    if mapping := next((mapping for mapping in MAPPINGS if key.startswith(mapping)), None):
        name = key.removeprefix(mapping)
        return f"++{override}" if NAME.fullmatch(name) else f"++{mapping[:-1]}={{{name}: {value}}}"
    if key not in ("name", *PATHS, *GROUPS) or not equals:
        return override
    text = value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
    if key in PATHS and text.startswith("~/"):
        return f'{key}="{Path.home()}{text[1:]}"'
    return f'{key}="{text}"' if NOT_TEXT.fullmatch(value) or "#" in value else override


def key_of(override: str) -> str:
    """Return the key of `key=value`, `+key=value` or `~key`."""
    return override.lstrip("+~").partition("=")[0]


def overridden_keys() -> list[str]:
    """Return the overridden keys of this command, or of this job of a sweep."""
    return [key_of(override) for override in HydraConfig.get().overrides.task]


def names_its_run() -> bool:
    """Return whether this command names its run or the folder of its run, so that it can be repeated."""
    of_hydra = [key_of(override) for override in HydraConfig.get().overrides.hydra]
    return "name" in overridden_keys() or "hydra.run.dir" in of_hydra


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Return the config as plain containers with every interpolation resolved."""
    container: Any = OmegaConf.to_container(cfg, resolve=True)
    return container


def leaves_of(config: Any, key: str = "", resolve: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of each leaf of a config. A list is one value.

    Args:
        config: a config of OmegaConf, or nested dicts.
        key: key of `config` itself.
        resolve: resolve the interpolations of OmegaConf.
    """
    node: Any = OmegaConf.to_container(config, resolve=resolve) if isinstance(config, DictConfig) else config
    if not isinstance(node, Mapping):
        yield key, node
        return
    for name, value in node.items():
        yield from leaves_of(value, f"{key}.{name}" if key else str(name))
