"""Rows of the speed table: comparisons of two networks, and the limits of the machine."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import torch
from ours import in_bfloat16
from timing import Spread, Work, cpu_ms, interleaved, wall_ms
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from latentfaces.cost.estimate import GPUS
from latentfaces.cost.step import Meter, num_bytes

H100_BANDWIDTH = 3.35e12
"""Bytes per second, from the data sheet."""


@dataclass(frozen=True)
class Scale:
    """Sizes and numbers of rounds of the table.

    Args:
        kind: device type.
        rounds, rounds_of_wall: measured rounds with one thread (CPU time) and with two (wall time).
        compiled: also measure ours compiled.
        channels: channels of VAEs and U-Nets in their first level.
        resolution: height and width of images.
        images, latents: batch sizes of the two stages.
        side: height and width of latents.
        width, depth, num_heads: sizes of the transformers.
        decoded: batch size of decoding.
        images_for_memory: batch size of the memory row.
        backbone: backbone of LPIPS.
        product: rows and columns of the largest product.
        seconds_of_loading: seconds of a round of loading.
        photos: number of images to load.
        steps: steps of the Trainer row.
        faces: batch size of sampling and encoding with the configs `autoencoder` and `denoiser`.
        paper: count operations on fake tensors, without measuring.
    """

    kind: str = "cpu"
    rounds: int = 5
    rounds_of_wall: int = 3
    compiled: bool = False
    channels: int = 64
    resolution: int = 64
    images: int = 4
    latents: int = 16
    side: int = 16
    width: int = 384
    depth: int = 12
    num_heads: int = 6
    decoded: int = 64
    images_for_memory: int = 8
    backbone: str = "vgg"
    product: int = 2048
    seconds_of_loading: float = 1.0
    photos: int = 512
    steps: int = 500
    faces: int = 4
    autoencoder: str = "kl_f4"
    denoiser: str = "unet_s"
    paper: bool = False

    @property
    def device(self) -> torch.device:
        return torch.device(self.kind)

    @property
    def shipped(self) -> str:
        """Return the precision that train.py chooses on this device."""
        return "bf16" if in_bfloat16("gpu" if self.kind == "cuda" else "cpu") else "fp32"

    @property
    def precisions(self) -> tuple[str, ...]:
        """Return the precisions to measure. Emulated bfloat16 is a hundred times slower, so it is left out."""
        return tuple(dict.fromkeys(("fp32", self.shipped)))


CUDA = Scale(
    kind="cuda", rounds=20, compiled=True, channels=128, resolution=256, images=16, latents=256, side=32, width=768,
    num_heads=12, images_for_memory=16, product=8192, faces=64, autoencoder="kl_f8", denoiser="dit_b",
)  # fmt: skip
"""For a GPU of the H100 class: DiT-B on 256 tokens."""

QUICK = Scale(
    rounds=1, rounds_of_wall=0, channels=16, resolution=32, images=2, latents=2, side=8, width=48, depth=2, num_heads=2,
    decoded=2, images_for_memory=1, backbone="squeeze", product=128, seconds_of_loading=0.05, photos=8, steps=20,
    faces=1,
)  # fmt: skip


@dataclass
class Row:
    """One line of the table.

    Args:
        title: what is measured.
        unit: of the figures.
        figures: by clock ("cpu", "wall", ...) and variant.
        ratios: theirs / ours, by kind.
        more: further values: parameters, gigaflops.
    """

    title: str
    unit: str
    figures: dict[str, dict[str, Spread]]
    ratios: dict[str, float] = field(default_factory=dict)
    more: dict[str, float] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Format the row as text."""
        values = [f"{name} {value:.2f}" for name, value in self.ratios.items()]
        values += [f"{name} {value:.4g}" for name, value in self.more.items()]
        lines = [f"{self.title}: {', '.join(values)}"]
        for clock, variants in self.figures.items():
            for name, s in variants.items():
                lines.append(
                    f"    {clock:4s} {name:36s} {s['median']:10.4g} {self.unit} ({s['min']:.4g}-{s['max']:.4g})"
                )
        return lines


Step = Callable[[bool], object]
"""A step, in bfloat16 autocast or not."""


@dataclass(frozen=True)
class Rival:
    """One side of a row: its parameters, and its step."""

    parameters: int
    step: Step


def count(*modules: nn.Module) -> int:
    """Return the number of trained parameters."""
    return sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)


def gigaflops(work: Work) -> float:
    """Return the gigaflops of one call, with attention as its matrix products."""
    with sdpa_kernel(SDPBackend.MATH), Meter() as meter:
        work()
    return meter.flops / 1e9


def timed(works: Mapping[str, Work], scale: Scale) -> dict[str, dict[str, Spread]]:
    """ "cpu": milliseconds of CPU time, one thread; "wall": milliseconds with two. On a GPU "wall" alone."""
    if scale.device.type != "cpu":
        return {"wall": interleaved(works, scale.rounds, wall_ms)}
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        figures = {"cpu": interleaved(works, scale.rounds, cpu_ms)}
        if scale.rounds_of_wall:  # next to other processes, two threads wait for each other
            torch.set_num_threads(min(2, os.cpu_count() or 1))
            figures["wall"] = interleaved(works, scale.rounds_of_wall, wall_ms)
        return figures
    finally:
        torch.set_num_threads(threads)


class MovedBytes(Meter):
    """A meter that also counts the bytes that operations read and write, each operation by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if outputs and not func.is_view and func is not torch.ops.aten._unsafe_view.default:
            self.moved += num_bytes([*outputs, *(x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))])
        return result


def on_paper(title: str, work: Work) -> Row:
    """Return the least time on an H100 by its data sheet.

    Arithmetic runs at the peak. Each operation moves its own bytes at the memory bandwidth; compiling moves fewer.
    """
    gpu = next(machine for machine in GPUS if machine.name.startswith("H100"))
    with MovedBytes() as meter:
        work()
    floors = {"arithmetic": meter.flops / gpu.bfloat16, "memory": meter.moved / H100_BANDWIDTH}
    figures = {name: dict.fromkeys(("median", "min", "max"), 1e3 * seconds) for name, seconds in floors.items()}
    more = {"TFLOP": meter.flops / 1e12, "GB moved": meter.moved / 1e9}
    return Row(f"{title}: at least, on an H100", "ms", {"paper": figures}, {}, more)


def compare(title: str, ours: Rival, theirs: Rival, scale: Scale, compiled: Step | None = None) -> Row:
    """Return the row of two networks.

    Args:
        title: title of the row.
        ours, theirs: both sides.
        scale: sizes and rounds.
        compiled: our compiled step.
    """
    if scale.paper:
        return on_paper(title, partial(ours.step, True))
    works: dict[str, Work] = {
        f"{side} {precision}": partial(rival.step, precision == "bf16")
        for precision in scale.precisions
        for side, rival in (("ours", ours), ("theirs", theirs))
    }
    if compiled is not None:
        works["ours compiled"] = partial(compiled, scale.shipped == "bf16")
    operations = {side: gigaflops(works[f"{side} fp32"]) for side in ("ours", "theirs")}
    figures = timed(works, scale)
    ratios = {}
    for clock, variants in figures.items():
        took = {name: values["median"] for name, values in variants.items()}
        after = "" if clock == next(iter(figures)) else f" ({clock})"
        ratios |= {
            f"shipped{after}": took["theirs fp32"] / took[f"ours {scale.shipped}"],
            **{f"{one}{after}": took[f"theirs {one}"] / took[f"ours {one}"] for one in scale.precisions},
        }
        if compiled is not None:
            ratios[f"compiled{after}"] = took["theirs fp32"] / took["ours compiled"]
    first = next(iter(figures.values()))
    rate = operations["ours"] / first[f"ours {scale.shipped}"]["median"] * 1e3
    more = {
        "share": rate / limit(scale, scale.shipped),
        "ours M": ours.parameters / 1e6,
        "theirs M": theirs.parameters / 1e6,
        "ours GF": operations["ours"],
        "theirs GF": operations["theirs"],
    }
    return Row(title, "ms", figures, ratios, more)


@cache
def limits(scale: Scale) -> Row:
    """Return the row of the fastest large product and 3x3 convolution, in GF/s."""
    works: dict[str, Work] = {}
    operations: dict[str, float] = {}
    size, channels, side = scale.product, max(16, scale.product // 8), max(8, scale.product // 32)
    for precision in scale.precisions:
        kind = torch.bfloat16 if precision == "bf16" else torch.float32
        a, b = torch.randn(2, size, size, device=scale.device).to(kind)
        images = torch.randn(4, channels, side, side, device=scale.device).to(kind)
        kernels = torch.randn(channels, channels, 3, 3, device=scale.device).to(kind)
        works[f"product {precision}"] = partial(torch.mm, a, b)
        for layout, form in (("nchw", torch.contiguous_format), ("nhwc", torch.channels_last)):
            x, w = images.contiguous(memory_format=form), kernels.contiguous(memory_format=form)
            works[f"convolution {precision} {layout}"] = partial(torch.conv2d, x, w, padding=1)
    for name, work in works.items():
        operations[name] = gigaflops(work)
    times = timed(works, replace(scale, rounds=2 * scale.rounds))
    # The fastest time gives the highest rate.
    figures = {
        clock: {
            name: {"median": 1e3 * operations[name] / t["median"]}
            | {"min": 1e3 * operations[name] / t["max"], "max": 1e3 * operations[name] / t["min"]}
            for name, t in variants.items()
        }
        for clock, variants in times.items()
    }
    return Row("limits of this machine", "GF/s", figures)


def limit(scale: Scale, precision: str) -> float:
    """Return the highest measured GF/s."""
    figures = next(iter(limits(scale).figures.values()))
    return max(rate["median"] for name, rate in figures.items() if precision in name)
