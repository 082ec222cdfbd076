"""latentfaces as train.py makes it, by the same config."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from latentfaces.autoencoder import VAE
from latentfaces.cli.launch_train import prepared_training
from latentfaces.config.paths import CONF
from latentfaces.config.schema import register
from latentfaces.nn.device import multiplies_bfloat16
from latentfaces.training.base_module import BaseModule

ROOT = Path(__file__).resolve().parents[1]

__all__ = ["ROOT", "OurStep", "built", "built_ldm", "composed", "equal_vae", "in_bfloat16", "prepared_training"]


def in_bfloat16(accelerator: str = "cpu") -> bool:
    """Whether train.py chooses bfloat16 on this device."""
    return multiplies_bfloat16(torch.device("cuda" if accelerator == "gpu" else "cpu"))


def composed(*overrides: str) -> DictConfig:
    """The config of `train.py overrides...`."""
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg


def built(*overrides: str) -> BaseModule:
    """The module that `train.py overrides...` trains."""
    module: BaseModule = instantiate(composed(*overrides).model)
    return module.train()


class OurStep:
    """A training step of ours without the Trainer around it.

    Args:
        module: from `built`.
        batch: what it sees in each step.
    """

    def __init__(self, module: BaseModule, batch: Tensor) -> None:
        self.module, self.batch = module.to(batch.device), batch
        # What a step asks of the Trainer, in a step that nothing is logged of.
        self.trainer = SimpleNamespace(
            global_step=1,
            log_every_n_steps=2,
            accumulate_grad_batches=1,
            gradient_clip_val=None,
            max_steps=100,
            max_epochs=-1,
            callbacks=[],
            world_size=1,
        )
        module.trainer = self.trainer  # type: ignore[assignment]
        module.on_fit_start()
        self.optimizer = module.make_optimizer((n, p) for n, p in module.network.named_parameters() if p.requires_grad)

    def __call__(self, bfloat16: bool) -> None:
        with torch.autocast(self.batch.device.type, torch.bfloat16, enabled=bfloat16):
            loss = self.module.training_step(self.batch, 0)
        loss.backward()
        self.module.on_before_optimizer_step(self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad()


def equal_vae(channels: int, *overrides: str) -> BaseModule:
    """Stage 1 with the network of `diffusers_vae`: a block more in each level of the decoder than our configs have."""
    module: Any = built("model=vae", "model/autoencoder=kl_f4", f"model.autoencoder.channels={channels}", *overrides)
    module.autoencoder.decoder = VAE(channels=channels, num_blocks=3).decoder
    return module


def built_ldm(*overrides: str) -> BaseModule:
    """Stage 2 beside a VAE that has nothing to do in a step."""
    vae = "{_target_:latentfaces.autoencoder.VAE,latent_channels:4,channels:8}"
    return built("model=ldm", f"model.autoencoder={vae}", *overrides)
