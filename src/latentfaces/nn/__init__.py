"""Network layers shared by the VAE and the diffusion model."""

from latentfaces.nn.attention import SelfAttention, SelfAttention2d, attention, choose_kernel
from latentfaces.nn.blocks import Downsample, Downsampling, ResBlock, Upsample, Upsampling, choose_upsampling
from latentfaces.nn.device import DeviceChoices, attention_kernel, best_device, has_convolutions
from latentfaces.nn.embeddings import TimeEmbedding, position_table_2d, rotate, rotation_2d
from latentfaces.nn.normalization import RMSNorm, group_norm, zero_init
from latentfaces.nn.weights import weights_hash

__all__ = [
    "DeviceChoices",
    "Downsample",
    "Downsampling",
    "RMSNorm",
    "ResBlock",
    "SelfAttention",
    "SelfAttention2d",
    "TimeEmbedding",
    "Upsample",
    "Upsampling",
    "attention",
    "attention_kernel",
    "best_device",
    "choose_kernel",
    "choose_upsampling",
    "group_norm",
    "has_convolutions",
    "position_table_2d",
    "rotate",
    "rotation_2d",
    "weights_hash",
    "zero_init",
]
