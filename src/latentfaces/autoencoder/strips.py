"""Large pictures strip by strip: what the whole would give, in a part of its memory and a multiple of its time.

A convolution looks at a neighbourhood, so that a strip with a margin is enough for it. A group norm looks at the whole
picture, but all it needs of it are a mean and a variance: they are measured first, norm after norm, each in a pass over
all strips that ends where that norm is.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentfaces.nn import SelfAttention2d, Upsample

PIXELS = 2**17
"""Of a strip without its margin."""


def at_once(run: Callable[..., Tensor], layers: Sequence[nn.Module], x: Tensor, *others: Tensor) -> Tensor:
    """`run(x, *others)` as it is."""
    return run(x, *others)


def in_strips(run: Callable[..., Tensor], layers: Sequence[nn.Module], x: Tensor, *others: Tensor) -> Tensor:
    """`run(x, *others)` strip by strip, without gradients; at once where the layers hold attention.

    Args:
        run: calls the layers.
        layers: if one doubles the size, it is the first.
        x: (b, channels, h, w).
        others: feature maps whose heights are multiples of that of x.
    """
    parts = [part for layer in layers for part in layer.modules()]
    strips = strips_of(x, parts)
    if len(strips) == 1 or any(isinstance(part, SelfAttention2d) for part in parts):
        return run(x, *others)
    norms = [part for part in parts if isinstance(part, nn.GroupNorm)]
    hook = Norms()

    def results() -> Iterator[tuple[Strip, Tensor]]:
        for strip in strips:
            hook.strip = strip
            with suppress(Measured):
                yield strip, strip.inside(run(*(strip.of(each, x.shape[-2]) for each in (x, *others))))

    handles = [norm.register_forward_hook(hook) for norm in norms]
    try:
        for _ in norms:
            assert not list(results())
            hook.finish_pass()
        return put_together(results(), x.shape[-2])
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Strip:
    """Rows of a picture with a margin.

    Args:
        top, bottom: the first row and the one after the last.
        start, stop: the same without the margin.
    """

    top: int
    bottom: int
    start: int
    stop: int

    def of(self, x: Tensor, height: int) -> Tensor:
        """The strip of a feature map (..., h, w) of the whole picture, where h is a multiple of its `height`."""
        factor = x.shape[-2] // height
        return x[..., factor * self.top : factor * self.bottom, :]

    def inside(self, x: Tensor) -> Tensor:
        """A feature map (..., h, w) of the strip without the margin."""
        factor = x.shape[-2] // (self.bottom - self.top)
        return x[..., factor * (self.start - self.top) : factor * (self.stop - self.top), :]


def strips_of(x: Tensor, parts: Sequence[nn.Module]) -> list[Strip]:
    """Strips of x (..., h, w), each with the margin that the parts need."""
    factor = 2 if any(isinstance(part, Upsample) for part in parts) else 1
    reach = sum(part.kernel_size[0] // 2 for part in parts if isinstance(part, nn.Conv2d))
    margin = -(-reach // factor) + 1  # one more for an interpolation
    height, width = x.shape[-2:]
    rows = max(1, PIXELS // (width * factor**2))
    return [
        Strip(max(0, start - margin), min(height, start + rows + margin), start, min(height, start + rows))
        for start in range(0, height, rows)
    ]


def put_together(results: Iterator[tuple[Strip, Tensor]], height: int) -> Tensor:
    """Strips (..., rows, w), one below the other, of a picture of this `height` in the strips' own rows."""
    whole: Tensor | None = None  # made once and filled: joining them at the end would need twice the memory
    for strip, result in results:
        factor = result.shape[-2] // (strip.stop - strip.start)
        if whole is None:
            whole = result.new_empty(*result.shape[:-2], factor * height, result.shape[-1])
        whole[..., factor * strip.start : factor * strip.stop, :] = result
    assert whole is not None
    return whole


class Measured(Exception):  # noqa: N818 # nothing is wrong
    """A norm has measured a strip; what follows has to wait for the other strips."""


class Norms:
    """What group norms do instead of looking at a strip alone; a hook after their forward pass."""

    def __init__(self) -> None:
        self.strip: Strip
        self.known: dict[nn.GroupNorm, WholeStatistics] = {}
        self.measuring: tuple[nn.GroupNorm, WholeStatistics] | None = None

    def __call__(self, norm: nn.GroupNorm, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        (x,) = inputs
        if norm in self.known:
            return self.known[norm].normalize(x, norm).to(output.dtype)
        if self.measuring is None:
            self.measuring = norm, WholeStatistics()
        self.measuring[1].add(self.strip.inside(x), norm.num_groups)
        raise Measured

    def finish_pass(self) -> None:
        """The norm that has seen all strips is known from now on."""
        assert self.measuring is not None
        norm, statistics = self.measuring
        self.known[norm], self.measuring = statistics, None


class WholeStatistics:
    """The mean and the variance that a group norm would find in the whole picture."""

    def __init__(self) -> None:
        self.count = 0
        self.total = self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, x: Tensor, num_groups: int) -> None:
        """Take in further rows (b, channels, rows, w)."""
        values = x.float().reshape(len(x), num_groups, -1)
        variance, mean = (value.cpu().double() for value in torch.var_mean(values, -1, correction=0))
        count = values.shape[-1]
        self.count += count
        self.total = self.total + count * mean
        self.squares = self.squares + count * (variance + mean.square())

    def normalize(self, x: Tensor, norm: nn.GroupNorm) -> Tensor:
        """What `norm` would make of these rows (b, channels, rows, w) of the picture."""
        mean = self.total / self.count
        inverse = (self.squares / self.count - mean.square() + norm.eps).rsqrt()
        channels = x.shape[1] // norm.num_groups
        mean, inverse = (value.float().repeat_interleave(channels, 1).to(x.device) for value in (mean, inverse))
        scale = inverse * norm.weight.float()
        shift = norm.bias.float() - mean * scale
        return x.float() * scale[..., None, None] + shift[..., None, None]
