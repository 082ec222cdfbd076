"""The only room that knows Lightning, beside the data module."""

from latentfaces.training.adversary import Adversary
from latentfaces.training.checkpoint import AtomicCheckpointIO, ResumableCSVLogger
from latentfaces.training.fit import fit_and_test
from latentfaces.training.latent_diffusion_module import LatentDiffusionModule
from latentfaces.training.optimizers import MuonAdamW
from latentfaces.training.sharded_checkpoint import CheckpointFiles
from latentfaces.training.stage import NonFiniteError, Stage
from latentfaces.training.vae_module import VAEModule

__all__ = [
    "Adversary",
    "AtomicCheckpointIO",
    "CheckpointFiles",
    "LatentDiffusionModule",
    "MuonAdamW",
    "NonFiniteError",
    "ResumableCSVLogger",
    "Stage",
    "VAEModule",
    "fit_and_test",
]
