"""Noise for sampling."""

import functools
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor


class PerSampleNoise:
    """Noise from one CPU generator per sample: the same for any batch size and on any device.

    A GPU need not wait: threads draw the next noise while it computes, and the copy from pinned memory is asynchronous.

    Args:
        generators: generators on the CPU, one per sample.
        shape: (c, h, w) of a sample.
        device: device of the noise.
    """

    def __init__(self, generators: Sequence[torch.Generator], shape: tuple[int, ...], device: torch.device) -> None:
        self.generators, self.shape, self.device = generators, shape, device
        self.ahead = device.type != "cpu"
        self.upcoming: tuple[Tensor, list[Future[Tensor]]] | None = None

    def __call__(self) -> Tensor:
        """Draw noise (n, c, h, w)."""
        noise, parts = self.upcoming or self.begin()
        for part in parts:
            part.result()
        self.upcoming = self.begin() if self.ahead else None
        return noise.to(self.device, non_blocking=True)

    def begin(self) -> tuple[Tensor, list[Future[Tensor]]]:
        """Return a tensor for the next noise, and what is still to be drawn."""
        noise = torch.empty(len(self.generators), *self.shape, pin_memory=self.device.type == "cuda")
        pairs = zip(self.generators, noise, strict=True)
        if self.ahead:
            return noise, [threads().submit(torch.randn, self.shape, generator=g, out=row) for g, row in pairs]
        for generator, row in pairs:
            torch.randn(self.shape, generator=generator, out=row)
        return noise, []


@functools.cache
def threads() -> ThreadPoolExecutor:
    """Return the threads that draw noise."""
    return ThreadPoolExecutor()
