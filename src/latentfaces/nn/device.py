"""Device-dependent defaults for speed."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Kernel = Literal["sdpa", "plain"]
"""Attention implementation: PyTorch's fused kernel, or two matrix products and a softmax."""


def best_device() -> torch.device:
    """Return the fastest available device."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether the device has bfloat16 units, which are 2 to 16 times as fast as float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch has no public name for these units of a CPU.
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def attention_kernel(device: torch.device, dtype: torch.dtype) -> Kernel:
    """Return the fastest attention kernel: "plain" for bfloat16 on CPUs, "sdpa" otherwise."""
    return "plain" if device.type == "cpu" and dtype == torch.bfloat16 else "sdpa"


def phased_upsampling(x: Tensor) -> bool:
    """Return whether phased upsampling is faster for the feature maps x (see `Upsample`).

    On CPUs it is 1.2 to 1.9 times as fast, except for small maps. Other devices were not measured.
    """
    return x.device.type == "cpu" and x.shape[-2] * x.shape[-1] >= 64


@dataclass(frozen=True)
class DeviceChoices:
    """Settings that affect the speed of training.

    Args:
        precision: precision of the Lightning Trainer, e.g. "bf16-mixed" or "32-true".
        attention: attention kernel; None chooses the fastest at each call (`attention_kernel`).
        phased_upsampling: fuse nearest-neighbor upsampling with its convolution; None: where it is faster.
        channels_last: use the channels_last memory format, the native layout of GPU tensor cores. On CPUs, group
            norm loses more than convolutions gain.
        compile: use `torch.compile`, which takes minutes and pays off only in long trainings.
    """

    precision: str
    attention: Kernel | None
    phased_upsampling: bool | None
    channels_last: bool
    compile: bool

    @classmethod
    def fastest(cls, device: torch.device) -> "DeviceChoices":
        """Return the fastest settings that need no compilation."""
        return cls(
            precision="bf16-mixed" if multiplies_bfloat16(device) else "32-true",
            attention=None,
            phased_upsampling=None,
            channels_last=device.type == "cuda",
            compile=False,
        )


def has_convolutions(network: nn.Module) -> bool:
    """Return whether the network has 2-D convolutions, for which the memory format matters."""
    return any(isinstance(module, nn.Conv2d) for module in network.modules())
