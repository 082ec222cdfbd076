"""Stage 2: diffusion model that maps noise to latents."""

from latentfaces.diffusion.augmentation import Augmentation
from latentfaces.diffusion.conditioning import Conditioning
from latentfaces.diffusion.denoiser import Denoiser, Predictor, Target
from latentfaces.diffusion.dit import DiT
from latentfaces.diffusion.flow_map import FlowMapLoss, FlowMapSampler
from latentfaces.diffusion.guidance import AutoGuidance, Guidance, InternalGuidance, LabelGuidance, NoGuidance
from latentfaces.diffusion.loss import (
    DenoisingLoss,
    EDMWeighting,
    MinSNRWeighting,
    UniformWeighting,
    VWeighting,
    Weighting,
)
from latentfaces.diffusion.noise import PerSampleNoise
from latentfaces.diffusion.samplers import DDIMSampler, DDPMSampler, DPMpp2MSampler, EulerSampler, HeunSampler, Sampler
from latentfaces.diffusion.schedule import EDM, NoiseSchedule, RectifiedFlow, VPCosine, VPLinear
from latentfaces.diffusion.time_sampler import LogitNormalTime, LogNormalNoise, TimeSampler, UniformTime
from latentfaces.diffusion.unet import UNet

__all__ = [
    "EDM",
    "Augmentation",
    "AutoGuidance",
    "Conditioning",
    "DDIMSampler",
    "DDPMSampler",
    "DPMpp2MSampler",
    "Denoiser",
    "DenoisingLoss",
    "DiT",
    "EDMWeighting",
    "EulerSampler",
    "FlowMapLoss",
    "FlowMapSampler",
    "Guidance",
    "HeunSampler",
    "InternalGuidance",
    "LabelGuidance",
    "LogNormalNoise",
    "LogitNormalTime",
    "MinSNRWeighting",
    "NoGuidance",
    "NoiseSchedule",
    "PerSampleNoise",
    "Predictor",
    "RectifiedFlow",
    "Sampler",
    "Target",
    "TimeSampler",
    "UNet",
    "UniformTime",
    "UniformWeighting",
    "VPCosine",
    "VPLinear",
    "VWeighting",
    "Weighting",
]
