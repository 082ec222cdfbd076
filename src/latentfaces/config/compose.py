"""Composition of configs outside of Hydra's main."""

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from latentfaces.config.paths import CONF
from latentfaces.config.schema import register


def compose_config(name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose a config as its command does.

    Within a running command its search path is used. Elsewhere the config also becomes the current HydraConfig.

    Args:
        name: "train" or "sample".
        overrides: as on the command line.

    Returns:
        The config, with Hydra's own in `hydra`.
    """
    if GlobalHydra.instance().is_initialized():
        return compose(name, list(overrides), return_hydra_config=True)
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(name, list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg
