"""Noise for sampling."""

from collections.abc import Sequence

import torch
from torch import Tensor


class PerSampleNoise:
    """Noise from one CPU generator per sample: the same for any batch size and on any device.

    A GPU does not wait for it: earlier steps are still queued, and the copy from pinned memory is asynchronous.

    Args:
        generators: generators on the CPU, one per sample.
        shape: (c, h, w) of a sample.
        device: device of the noise.
    """

    def __init__(self, generators: Sequence[torch.Generator], shape: tuple[int, ...], device: torch.device) -> None:
        self.generators, self.shape, self.device = generators, shape, device

    def __call__(self) -> Tensor:
        """Draw noise (n, c, h, w)."""
        noise = torch.empty(len(self.generators), *self.shape, pin_memory=self.device.type == "cuda")
        for generator, row in zip(self.generators, noise, strict=True):
            torch.randn(self.shape, generator=generator, out=row)
        return noise.to(self.device, non_blocking=True)
