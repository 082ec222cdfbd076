"""Stage 1: variational autoencoder between images and latents."""

from latentfaces.autoencoder.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
)
from latentfaces.autoencoder.losses import Distortion, Rate, VAELoss
from latentfaces.autoencoder.perceptual import LiteDistance, PerceptualDistance
from latentfaces.autoencoder.posterior import DiagonalGaussian
from latentfaces.autoencoder.pretrained import TAESD, DiffusersVAE, PretrainedVAE, is_pretrained, load_pretrained
from latentfaces.autoencoder.vae import VAE, Decoder, Encoder, Skips

__all__ = [
    "TAESD",
    "VAE",
    "Decoder",
    "DiagonalGaussian",
    "DiffusersVAE",
    "Distortion",
    "Encoder",
    "LiteDistance",
    "PatchDiscriminator",
    "PerceptualDistance",
    "PretrainedVAE",
    "Rate",
    "Skips",
    "VAELoss",
    "adaptive_weight",
    "discriminator_loss",
    "generator_loss",
    "is_pretrained",
    "load_pretrained",
]
