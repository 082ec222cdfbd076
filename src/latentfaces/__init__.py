"""Latent diffusion models of faces: photos become latents, noise becomes latents, latents become faces."""
