"""Stage 1: images <-> latents."""

from latentfaces.autoencoder.losses import VAELoss, VAELossTerms
from latentfaces.autoencoder.posterior import DiagonalGaussian
from latentfaces.autoencoder.vae import VAE, Decoder, Encoder

__all__ = ["VAE", "Decoder", "DiagonalGaussian", "Encoder", "VAELoss", "VAELossTerms"]
