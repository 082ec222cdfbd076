"""Keys `device.*` and `trainer.precision`: how the networks are computed."""

import contextlib
import ctypes
import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import nn

from latentfaces.config.overrides import overridden_keys, plain
from latentfaces.data.packing import num_threads
from latentfaces.errors import UserError, warn
from latentfaces.nn import (
    DeviceChoices,
    attention_kernel,
    best_device,
    choose_kernel,
    choose_upsampling,
    has_convolutions,
)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step instead of returning it to the system.

    Otherwise the system clears the pages of large activations in every step: 4 % of a training step on a CPU in
    bfloat16 (16 images of 64 pixels, 13.9 M parameters). Nothing is changed where MALLOC_... or GLIBC_TUNABLES is
    set, or with another C library.
    """
    if not sys.platform.startswith("linux") or any(name.startswith(("MALLOC_", "GLIBC_TUN")) for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 2**30)  # M_MMAP_THRESHOLD of malloc.h: the largest
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never


def limit_threads(cgroup: Path = Path("/sys/fs/cgroup/cpu.max"), loadavg: Path = Path("/proc/loadavg")) -> None:
    """Use as many threads as the CPU quota of a container allows, and warn next to a busy process.

    OpenMP's threads wait for one another at the end of each operation. Next to one busy process, two threads are 0.4
    times as fast as one (benchmarks/busy.py). OMP_NUM_THREADS is respected.
    """
    if "OMP_NUM_THREADS" in os.environ or not loadavg.exists():
        return
    quota, _, period = cgroup.read_text().partition(" ") if cgroup.exists() else ("max", "", "")
    if quota != "max":
        torch.set_num_threads(max(1, min(torch.get_num_threads(), int(quota) // int(period))))
    samples = []
    for _ in range(5):
        time.sleep(0.01)
        samples.append(int(loadavg.read_text().split()[3].partition("/")[0]) - 1)  # runnable threads but this one
    idle = num_threads() - statistics.median(samples)
    if torch.get_num_threads() > max(idle, 1):
        warn(f"other processes keep the CPU busy. OMP_NUM_THREADS={max(int(idle), 1)} may be faster.")


def training_device(trainer: DictConfig) -> torch.device:
    """Return the kind of device that Lightning chooses."""
    return best_device() if trainer.accelerator in ("auto", "gpu", "cuda", "mps") else torch.device("cpu")


def device_choices(cfg: DictConfig) -> DeviceChoices:
    """Return the device choices of the config, with `auto` resolved to the fastest."""
    keys = {**plain(cfg.device), "precision": str(cfg.trainer.precision)}
    chosen = {key: value for key, value in keys.items() if value != "auto"}
    return replace(DeviceChoices.fastest(training_device(cfg.trainer)), **chosen)


def apply_choices(choices: DeviceChoices, network: nn.Module, device: torch.device) -> str:
    """Apply the device choices to the network.

    Returns:
        A description of them.

    Raises:
        UserError: an overridden key has no effect on this network.
    """
    overridden, words = overridden_keys(), [choices.precision]
    if device.type == "cuda":  # TF32 for products in float32 too; cuDNN's convolutions have it by default
        torch.set_float32_matmul_precision("high")
    if choose_kernel(network, choices.attention):
        dtype = torch.bfloat16 if choices.precision.startswith("bf16") else torch.float32
        words.append(f"{choices.attention or attention_kernel(device, dtype)} attention")
    elif "device.attention" in overridden:
        raise UserError("device.attention has no effect on a network without attention. Leave it out.")
    if choose_upsampling(network, choices.phased_upsampling):
        if choices.phased_upsampling is not None:
            words.append("upsampling in phases" if choices.phased_upsampling else "upsampling plain")
    elif "device.phased_upsampling" in overridden:
        raise UserError("device.phased_upsampling has no effect without nearest-neighbor upsampling. Leave it out.")
    if has_convolutions(network):
        words.append("channels last" if choices.channels_last else "channels first")
        if choices.channels_last:
            network.to(memory_format=torch.channels_last)
    elif "device.channels_last" in overridden:
        raise UserError("device.channels_last has no effect on a network without convolutions. Leave it out.")
    if choices.compile:
        network.compile()
        words.append("compiled at the first step")
    return ", ".join(words)
