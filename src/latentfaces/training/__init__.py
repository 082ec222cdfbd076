"""The only room that knows Lightning, beside the data module."""

from latentfaces.training.adversary import Adversary
from latentfaces.training.checkpoint import AtomicCheckpointIO, DiskFullError, ResumableCSVLogger
from latentfaces.training.finite_steps import FiniteSteps, NonFiniteError
from latentfaces.training.fit import fit_and_test
from latentfaces.training.latent_diffusion_module import LatentDiffusionModule
from latentfaces.training.optimizers import MuonAdamW
from latentfaces.training.sharded_checkpoint import CheckpointFiles, damage, is_checkpoint
from latentfaces.training.stage import Stage
from latentfaces.training.vae_module import VAEModule

__all__ = [
    "Adversary",
    "AtomicCheckpointIO",
    "CheckpointFiles",
    "DiskFullError",
    "FiniteSteps",
    "LatentDiffusionModule",
    "MuonAdamW",
    "NonFiniteError",
    "ResumableCSVLogger",
    "Stage",
    "VAEModule",
    "damage",
    "fit_and_test",
    "is_checkpoint",
]
