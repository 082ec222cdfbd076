"""From the keys `device.*` and `trainer.precision` to how the networks are computed."""

import contextlib
import ctypes
import os
import sys
from dataclasses import replace
from typing import Any, get_args

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from latentfaces.config.overrides import overridden_keys
from latentfaces.errors import UserError
from latentfaces.nn import (
    DeviceChoices,
    Kernel,
    attention_kernel,
    best_device,
    choose_kernel,
    choose_upsampling,
    has_convolutions,
)

ATTENTION = {"auto": None, **{kernel: kernel for kernel in get_args(Kernel)}}
SWITCH: dict[Any, bool | None] = {"auto": None, True: True, False: False}
# Of glibc's malloc.h; see mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
NEVER, LARGEST = -1, 2**30


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step, up to 1 GB apiece, rather than give it back to the system.

    Large activations would otherwise be new memory in every step, whose pages the system clears at their first use: a
    twenty-fifth of a training step on a CPU in bfloat16 (16 photos of 64 pixels, 13.9 M parameters).
    Whoever has set MALLOC_... or GLIBC_TUNABLES knows better; with another C library nothing happens.
    """
    if not sys.platform.startswith("linux") or any(name.startswith(("MALLOC_", "GLIBC_TUN")) for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, NEVER)


def training_device(trainer: DictConfig) -> torch.device:
    """The kind of device that Lightning will choose."""
    return best_device() if trainer.accelerator in ("auto", "gpu", "cuda", "mps") else torch.device("cpu")


def device_choices(cfg: DictConfig) -> DeviceChoices:
    """Return the device choices of the config, with `auto` resolved to the fastest.

    Raises:
        UserError: a value is not one of those there are, or has no effect with the chosen optimizer.
    """
    fastest = DeviceChoices.fastest(training_device(cfg.trainer))
    choices = replace(
        fastest,
        attention=one_of("attention", cfg.device.attention, ATTENTION),
        fused_optimizer=cfg.device.fused_optimizer,
    )
    for name in ("phased_upsampling", "channels_last", "compile"):
        if (switch := one_of(name, cfg.device[name], SWITCH)) is not None:
            choices = replace(choices, **{name: switch})
    if "device.fused_optimizer" in overridden_keys() and not OmegaConf.is_interpolation(cfg.model.optimizer, "fused"):
        raise UserError(f"device.fused_optimizer has no effect: {cfg.model.optimizer._target_} does not ask for it")
    return choices if cfg.trainer.precision == "auto" else replace(choices, precision=str(cfg.trainer.precision))


def one_of(name: str, value: Any, known: dict[Any, Any]) -> Any:
    """Return the entry of `known` for a key's value."""
    if value not in known:
        raise UserError(f"device.{name}={value} is not one of {', '.join(str(key).lower() for key in known)}")
    return known[value]


def apply_choices(choices: DeviceChoices, network: nn.Module, device: torch.device) -> str:
    """Make the network compute as chosen; what that is, in a few words.

    Raises:
        UserError: a key that was typed has no effect on this network.
    """
    typed, words = overridden_keys(), [choices.precision]
    if device.type == "cuda":  # TF32 for products in float32 too; cuDNN's convolutions have it by default
        torch.set_float32_matmul_precision("high")
    if choose_kernel(network, choices.attention):
        dtype = torch.bfloat16 if choices.precision.startswith("bf16") else torch.float32
        words.append(f"{choices.attention or attention_kernel(device, dtype)} attention")
    elif "device.attention" in typed:
        raise UserError("device.attention has no effect on a network without attention: leave it out")
    if choose_upsampling(network, choices.phased_upsampling):
        words += [
            f"upsampling {'in phases' if phased else 'plain'}"
            for phased in [choices.phased_upsampling]
            if phased is not None
        ]
    elif "device.phased_upsampling" in typed:
        raise UserError("device.phased_upsampling has no effect without nearest-neighbour upsampling: leave it out")
    if has_convolutions(network):
        words.append("channels last" if choices.channels_last else "channels first")
        if choices.channels_last:
            network.to(memory_format=torch.channels_last)
    elif "device.channels_last" in typed:
        raise UserError("device.channels_last has no effect on a network without convolutions: leave it out")
    words.append("fused optimizer" if choices.fused_optimizer else "optimizer not fused")
    if choices.compile:
        network.compile()
        words.append("compiled at the first step")
    return ", ".join(words)
