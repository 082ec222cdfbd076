"""Report of what a training costs: parameters, FLOPs, memory, disk and hours."""

from typing import NamedTuple

from latentfaces.cost.step import StepCost

FRACTION = 0.3
"""Assumed fraction of a data sheet's peak that a training reaches."""


class GPU(NamedTuple):
    """A GPU by its data sheet: dense FLOP/s in bfloat16 and float32, and memory in bytes."""

    name: str
    bfloat16: float
    float32: float
    memory: float


GPUS = (  # NVIDIA's data sheets
    GPU("A100 80 GB", 312e12, 19.5e12, 80e9),
    GPU("H100 80 GB", 989e12, 67e12, 80e9),
    GPU("RTX 4090", 165e12, 82.6e12, 24e9),
    GPU("L4", 121e12, 30.3e12, 24e9),
)


def report(cost: StepCost, disk: dict[str, int], bfloat16: bool, max_steps: int, max_seconds: float) -> str:
    """Return the cost of a training as Markdown, with the bytes on disk by kind. A limit of 0 or less is none."""
    memory = cost.state + cost.activations
    lines = [
        f"Parameters: {', '.join(f'{name} {count / 1e6:,.1f} M' for name, count in cost.parameters.items())}.",
        f"FLOPs of a training step and device: {cost.flops / 1e9:,.1f} G (a multiply-add is 2).",
        f"Memory of a device: {memory / 1e9:,.2f} GB "
        f"(training state {cost.state / 1e9:,.2f} GB, activations {cost.activations / 1e9:,.2f} GB).",
        f"Disk: {', '.join(f'{name} {size / 1e9:,.2f} GB' for name, size in disk.items())}.",
        "",
        "| GPU | memory | length |",
        "| --- | --- | --- |",
    ]
    for gpu in GPUS:
        seconds = cost.flops / (FRACTION * (gpu.bfloat16 if bfloat16 else gpu.float32))
        if max_steps > 0:
            length = f"{max_steps * seconds / 3600:,.1f} hours"
        elif max_seconds > 0:
            length = f"{max_seconds / seconds:,.0f} steps"
        else:
            length = f"{3600 / seconds:,.0f} steps per hour"
        lines.append(f"| {gpu.name} | {'fits' if memory <= gpu.memory else 'does not fit'} | {length} |")
    precision = "bf16-mixed" if bfloat16 else "32-true"
    return "\n".join([*lines, "", f"Length in {precision} assumes {FRACTION:.0%} of the data sheet's peak."])
