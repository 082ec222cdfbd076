"""Train and use latent diffusion models of human faces: photos become latents, noise becomes latents, latents become faces."""
