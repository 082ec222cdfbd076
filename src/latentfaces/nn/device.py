"""What is fastest depends on the device: the rules, in one place."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Kernel = Literal["sdpa", "plain"]
"""PyTorch's fused attention, or two matrix products and a softmax."""


def best_device() -> torch.device:
    """The fastest kind of device that is there."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has units for bfloat16: two to sixteen times the speed of float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def attention_kernel(device: torch.device, dtype: torch.dtype) -> Kernel:
    """On CPUs PyTorch's kernel is slower than two products in bfloat16; elsewhere it is the fastest."""
    return "plain" if device.type == "cpu" and dtype == torch.bfloat16 else "sdpa"


def phased_upsampling(x: Tensor) -> bool:
    """Whether to double these feature maps and convolve them in one (see `Upsample`).

    On CPUs 1.2 to 1.9 times as fast, but for maps so small that adding up the weights costs more; elsewhere not
    measured.
    """
    return x.device.type == "cpu" and x.shape[-2] * x.shape[-1] >= 64


@dataclass(frozen=True)
class DeviceChoices:
    """How the networks of a training are computed.

    Args:
        precision: of Lightning's trainer: "bf16-mixed", "32-true".
        attention: the kernel; None for the fastest at each call, by `attention_kernel`.
        phased_upsampling: nearest-neighbour upsampling and its convolution as one; None for where it is faster.
        channels_last: feature maps as (b, h, w, channels) in memory, which tensor cores of GPUs read as they lie;
            on CPUs the group norm becomes slower than the convolutions gain.
        compile: compile the network first: minutes, paid back in long trainings alone.
        fused_optimizer: AdamW as one kernel.
    """

    precision: str
    attention: Kernel | None
    phased_upsampling: bool | None
    channels_last: bool
    compile: bool
    fused_optimizer: bool

    @classmethod
    def fastest(cls, device: torch.device) -> "DeviceChoices":
        """Those that need no minutes of preparation."""
        return cls(
            precision="bf16-mixed" if multiplies_bfloat16(device) else "32-true",
            attention=None,
            phased_upsampling=None,
            channels_last=device.type == "cuda",
            compile=False,
            fused_optimizer=True,
        )


def has_convolutions(network: nn.Module) -> bool:
    """Whether the memory format of feature maps matters to it."""
    return any(isinstance(module, nn.Conv2d) for module in network.modules())
