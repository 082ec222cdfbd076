"""Choice of the parameters that are fine-tuned."""

import math
from typing import Literal

from torch import nn

from latentfaces.autoencoder import VAE
from latentfaces.diffusion.dit import DiTBlock
from latentfaces.nn import ResBlock, RMSNorm

Trainable = Literal["all", "last", "norms", "decoder"]
OPTIONAL = {"embed_label", "auxiliary_head", "skips"}
"""Parts that an earlier run may lack. They are always trained."""


def freeze(network: nn.Module, trainable: Trainable) -> None:
    """Freeze parameters of a `Denoiser` or a `VAE` (Moon et al. 2022).

    Args:
        network: its blocks are `ResBlock` or `DiTBlock`, registered in the order of computation.
        trainable: "last": train the last third of the blocks and all that follows them, with the head. "norms": train
            normalization layers (group norm, weighted RMS norm) and the layers that scale and shift their output
            (`ResBlock.scale_shift`, `modulation` of a DiT). "decoder": train the decoder of a VAE, so that latents stay
            the same. "all": freeze nothing.
    """
    if trainable == "all":
        return
    parameters = list(network.parameters())
    if trainable == "decoder":
        assert isinstance(network, VAE)
        parameters = list(network.decoder.parameters())
    elif trainable == "norms":
        norms = (
            module
            for name, module in network.named_modules()
            if isinstance(module, nn.GroupNorm | RMSNorm) or name.endswith(("scale_shift", "modulation"))
        )
        parameters = [p for norm in norms for p in norm.parameters()]
    else:
        blocks = [module for module in network.modules() if isinstance(module, ResBlock | DiTBlock)]
        first = next(blocks[-math.ceil(len(blocks) / 3)].parameters())
        parameters = parameters[next(n for n, p in enumerate(parameters) if p is first) :]
    chosen = {id(p) for p in parameters}
    for name, p in network.named_parameters():
        p.requires_grad_(id(p) in chosen or not OPTIONAL.isdisjoint(name.split(".")))
