"""Modules of latentfaces from the configs of train.py."""

from pathlib import Path
from typing import Any

import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from latentfaces.autoencoder import VAE
from latentfaces.cli.launch_train import prepared_training
from latentfaces.config.compose import compose_config
from latentfaces.cost.step import TrainedModule
from latentfaces.nn.device import multiplies_bfloat16

ROOT = Path(__file__).resolve().parents[1]

__all__ = ["ROOT", "built", "built_ldm", "composed", "equal_vae", "in_bfloat16", "prepared_training"]


def in_bfloat16(accelerator: str = "cpu") -> bool:
    """Return whether train.py chooses bfloat16 on this device."""
    return multiplies_bfloat16(torch.device("cuda" if accelerator == "gpu" else "cpu"))


def composed(*overrides: str) -> DictConfig:
    """Return the config of `train.py OVERRIDES`."""
    GlobalHydra.instance().clear()
    return compose_config("train", overrides)


def built(*overrides: str) -> TrainedModule:
    """Return the module that `train.py OVERRIDES` trains."""
    module: TrainedModule = instantiate(composed(*overrides).model)
    module.train()
    return module


def equal_vae(channels: int, *overrides: str) -> TrainedModule:
    """Return stage 1 with the network of `diffusers_vae`: one more decoder block per level than in our configs."""
    module: Any = built("model=vae", "model/autoencoder=kl_f4", f"model.autoencoder.channels={channels}", *overrides)
    module.autoencoder.decoder = VAE(channels=channels, num_blocks=3).decoder
    return module


def built_ldm(*overrides: str) -> TrainedModule:
    """Return stage 2 with a small VAE, which a training step does not use."""
    vae = "{_target_:latentfaces.autoencoder.VAE,latent_channels:4,channels:8}"
    return built("model=ldm", f"model.autoencoder={vae}", *overrides)
