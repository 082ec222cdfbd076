"""What the person typed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf


def key_of(override: str) -> str:
    """The key of `key=value`, `+key=value` or `~key`."""
    return override.lstrip("+~").partition("=")[0]


def overridden_keys() -> list[str]:
    """The keys of this command, or of this job of a sweep."""
    return [key_of(override) for override in HydraConfig.get().overrides.task]


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain containers, every reference resolved."""
    container: Any = OmegaConf.to_container(cfg, resolve=True)
    return container


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of each leaf of nested containers."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for index, value in enumerate(node):
            yield from leaves(value, f"{key}[{index}]")
    else:
        yield key, node


def leaves_of(cfg: Any, resolve: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of each leaf of a config, with interpolations kept or resolved."""
    return leaves(OmegaConf.to_container(cfg, resolve=resolve))
