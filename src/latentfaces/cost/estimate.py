"""Report of what a training costs: parameters, FLOPs, memory, disk and hours."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from latentfaces.cost.step import StepCost, TrainedModule, count_step

FRACTION = 0.3
"""Assumed fraction of a data sheet's peak that a training reaches."""


class GPU(NamedTuple):
    """A GPU by its data sheet: dense FLOP/s in bfloat16 (0: not supported) and float32, and memory in bytes."""

    name: str
    bfloat16: float
    float32: float
    memory: float


GPUS = (  # NVIDIA's data sheets
    GPU("A100 80 GB", 312e12, 19.5e12, 80e9),
    GPU("H100 80 GB", 989e12, 67e12, 80e9),
    GPU("RTX 4090", 165e12, 82.6e12, 24e9),
    GPU("L4", 121e12, 30.3e12, 24e9),
    GPU("T4", 0, 8.1e12, 16e9),
)


@dataclass(frozen=True)
class Plan:
    """A training as its config describes it.

    Args:
        title: stage, resolution, batch and devices.
        make_module: returns the module to train.
        batch_size: images or latents per device and batch.
        resolution: of the images, in pixels.
        bfloat16: whether to use bfloat16 where the GPU supports it.
        accumulate: batches per training step.
        max_steps, max_hours: limits of the training, if any.
        num_averages: weight averages kept in memory.
        files: number of files on disk, by the kinds of `StepCost.files`.
        data: bytes of the data on disk, by name.
    """

    title: str
    make_module: Callable[[], TrainedModule]
    batch_size: int
    resolution: int
    bfloat16: bool = True
    accumulate: int = 1
    max_steps: int | None = None
    max_hours: float | None = None
    num_averages: int = 1
    files: Mapping[str, int] = field(default_factory=dict)
    data: Mapping[str, int] = field(default_factory=dict)

    def cost(self, bfloat16: bool) -> StepCost:
        """Return the cost of one batch on one device."""
        return count_step(self.make_module, self.batch_size, self.resolution, bfloat16, self.num_averages)

    def disk(self, cost: StepCost) -> dict[str, int]:
        """Return bytes on disk by name."""
        return {**self.data, **{name: number * cost.files[name] for name, number in self.files.items() if number}}

    def length(self, seconds: float) -> str:
        """Return the hours of `max_steps`, or the steps of `max_hours`, at that many seconds per step."""
        if self.max_steps is not None:
            return f"{self.max_steps * seconds / 3600:,.1f} hours"
        return f"{self.max_hours * 3600 / seconds:,.0f} steps" if self.max_hours is not None else "no limit"


def report(plan: Plan, gpus: tuple[GPU, ...] = GPUS) -> str:
    """Return the report of one training as Markdown."""
    costs = {bfloat16: plan.cost(bfloat16) for bfloat16 in {plan.bfloat16 and gpu.bfloat16 > 0 for gpu in gpus}}
    cost = costs[max(costs)]
    lines = [
        f"## {plan.title}",
        "",
        f"Parameters: {', '.join(f'{name} {count / 1e6:,.1f} M' for name, count in cost.parameters.items())}.",
        f"FLOPs of a training step and device: {plan.accumulate * cost.flops / 1e9:,.1f} G (a multiply-add is 2).",
        f"Memory of a device: {sizes(cost.memory)}.",
        f"Disk: {sizes(plan.disk(cost))}.",
        "",
        "| GPU | precision | peak memory | length |",
        "| --- | --- | --- | --- |",
    ]
    for gpu in gpus:
        bfloat16 = plan.bfloat16 and gpu.bfloat16 > 0
        needed = sum(costs[bfloat16].memory.values())
        seconds = plan.accumulate * costs[bfloat16].flops / (FRACTION * (gpu.bfloat16 if bfloat16 else gpu.float32))
        fits = f"{size(needed)} of {size(gpu.memory)}" + (", does not fit" if needed > gpu.memory else "")
        lines.append(f"| {gpu.name} | {'bf16-mixed' if bfloat16 else '32-true'} | {fits} | {plan.length(seconds)} |")
    return "\n".join([*lines, "", f"Length assumes {FRACTION:.0%} of the data sheet's peak."])


def sizes(parts: dict[str, int]) -> str:
    """Format bytes by name, and their total."""
    return ", ".join(f"{name} {size(value)}" for name, value in parts.items()) + f"; total {size(sum(parts.values()))}"


def size(num_bytes: float) -> str:
    """Format bytes as MB, or GB from 0.1 GB."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:,.1f} MB"
