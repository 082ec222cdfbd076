"""What the person typed."""

from hydra.core.hydra_config import HydraConfig


def key_of(override: str) -> str:
    """The key of `key=value`, `+key=value` or `~key`."""
    return override.lstrip("+~").partition("=")[0]


def typed_keys() -> list[str]:
    """The keys of this command, or of this job of a sweep."""
    return [key_of(override) for override in HydraConfig.get().overrides.task]
