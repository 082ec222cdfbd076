"""Training with Lightning, which only this package and the data module import."""

from latentfaces.training.adversary import Adversary
from latentfaces.training.base_module import BaseModule
from latentfaces.training.checkpoint import AtomicCheckpointIO, DiskFullError, damage, save_weights
from latentfaces.training.fit import fit_and_test
from latentfaces.training.latent_diffusion_module import LatentDiffusionModule
from latentfaces.training.nan_guard import NonFiniteError, NonFiniteGuard
from latentfaces.training.optimizers import MuonAdamW
from latentfaces.training.step_log import ResumableCSVLogger
from latentfaces.training.time_limit import TimeLimit
from latentfaces.training.vae_module import VAEModule

__all__ = [
    "Adversary",
    "AtomicCheckpointIO",
    "BaseModule",
    "DiskFullError",
    "LatentDiffusionModule",
    "MuonAdamW",
    "NonFiniteError",
    "NonFiniteGuard",
    "ResumableCSVLogger",
    "TimeLimit",
    "VAEModule",
    "damage",
    "fit_and_test",
    "save_weights",
]
