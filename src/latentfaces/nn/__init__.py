"""Blocks that know neither the VAE nor the diffusion."""

from latentfaces.nn.attention import SelfAttention, SelfAttention2d, attention
from latentfaces.nn.blocks import Downsample, Downsampling, ResBlock, Upsample, Upsampling
from latentfaces.nn.embeddings import TimeEmbedding, rotate, rotation_2d
from latentfaces.nn.normalization import group_norm, zero_init
from latentfaces.nn.weights import weights_hash

__all__ = [
    "Downsample",
    "Downsampling",
    "ResBlock",
    "SelfAttention",
    "SelfAttention2d",
    "TimeEmbedding",
    "Upsample",
    "Upsampling",
    "attention",
    "group_norm",
    "rotate",
    "rotation_2d",
    "weights_hash",
    "zero_init",
]
