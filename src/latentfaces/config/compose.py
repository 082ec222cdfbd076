"""Composition of configs outside of Hydra's main."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from latentfaces.config.paths import CONF
from latentfaces.config.schema import register


def initialized() -> AbstractContextManager[None]:
    """Within this context Hydra knows the configs, as within its main."""
    register()
    return initialize_config_dir(str(CONF), version_base="1.3")


def compose_config(name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose a config as its command does, and make it the current HydraConfig.

    Args:
        name: "train" or "sample".
        overrides: as typed on the command line.
    """
    with initialized():
        cfg = compose(name, list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg
