"""Stage 2: noise -> latents."""

from latentfaces.diffusion.denoiser import Denoiser
from latentfaces.diffusion.dit import DiT
from latentfaces.diffusion.loss import DenoisingLoss, LogitNormalTime, TimeSampler, UniformTime
from latentfaces.diffusion.samplers import EulerSampler, HeunSampler, Sampler
from latentfaces.diffusion.schedule import NoiseSchedule, RectifiedFlow
from latentfaces.diffusion.unet import UNet

__all__ = [
    "Denoiser",
    "DenoisingLoss",
    "DiT",
    "EulerSampler",
    "HeunSampler",
    "LogitNormalTime",
    "NoiseSchedule",
    "RectifiedFlow",
    "Sampler",
    "TimeSampler",
    "UNet",
    "UniformTime",
]
