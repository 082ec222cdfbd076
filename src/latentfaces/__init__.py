"""Latent diffusion models of faces: photos become latents, noise becomes latents, latents become faces."""

__version__ = "0.1.0"
