"""What a training will cost, before it is begun: `python -m latentfaces.cost.estimate experiment=...`.

Parameters, FLOPs, memory and disk are counted from the composed config; hours follow from an assumed share of a
device's peak.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import torch

from latentfaces.cost.step import BareStep, StepCost, TrainedStage, count_step, measure_step
from latentfaces.nn import best_device
from latentfaces.nn.device import multiplies_bfloat16

SHARE, CPU_SHARE = 0.3, 0.65
"""Shares of the peak that a training is assumed to reach; that of CPUs is measured, see docs/scaling.md."""
READING = 1e9
"""Bytes a second that storage is assumed to give: a plain SSD's."""


@dataclass(frozen=True)
class Machine:
    """A device, or a machine with one.

    Args:
        name: as it is sold.
        bfloat16: matrix products in bfloat16, dense, in FLOP/s; 0 where it has no units for them.
        float32: in float32.
        memory: bytes.
        bandwidth: of the memory, bytes/s.
        link: bytes/s that a device can give to others while all do: its share of the network, or of the bus.
        gpu: whether it is one.
    """

    name: str
    bfloat16: float
    float32: float
    memory: float
    bandwidth: float
    link: float
    gpu: bool = True

    @property
    def share(self) -> float:
        """Of the peak, assumed."""
        return SHARE if self.gpu else CPU_SHARE

    def peak(self, bfloat16: bool) -> float:
        """FLOP/s in that precision."""
        return self.bfloat16 if bfloat16 else self.float32


GPUS = (  # NVIDIA's data sheets; links: 200 and 400 Gbit/s of network a GPU, for the others half of their PCIe
    Machine("A100 80 GB", 312e12, 19.5e12, 80e9, 2.04e12, 25e9),
    Machine("H100 80 GB", 989e12, 67e12, 80e9, 3.35e12, 50e9),
    Machine("RTX 4090", 165e12, 82.6e12, 24e9, 1.01e12, 16e9),
    Machine("L4", 121e12, 30.3e12, 24e9, 0.30e12, 16e9),
    Machine("T4", 0, 8.1e12, 16e9, 0.32e12, 8e9),
)


@dataclass(frozen=True)
class Plan:
    """A training as its config has it.

    Args:
        title: stage, batch and data in words.
        make: makes the module.
        batch_size: items of a batch on each device.
        resolution: of the pictures, in pixels.
        item: bytes of an item on disk.
        bfloat16: where the device multiplies in it.
        num_devices: over all machines.
        sharded: weights, gradients and states are shared out over devices rather than repeated.
        accumulate: batches a step.
        max_steps: of the training, if it has such a limit.
        max_hours: likewise.
        num_averages: of the weights, in memory.
        num_checkpoints: `last.ckpt` and the best.
        snapshots: of the averages, on disk in float16.
        disk: further bytes on disk, by what they are.
    """

    title: str
    make: Callable[[], TrainedStage]
    batch_size: int
    resolution: int
    item: int
    bfloat16: bool = True
    num_devices: int = 1
    sharded: bool = False
    accumulate: int = 1
    max_steps: int | None = None
    max_hours: float | None = None
    num_averages: int = 1
    num_checkpoints: int = 2
    snapshots: int = 0
    disk: dict[str, float] = field(default_factory=dict)

    @property
    def items_a_step(self) -> int:
        """Over all devices and accumulated batches."""
        return self.batch_size * self.accumulate * self.num_devices

    def cost(self, bfloat16: bool, gpu: bool) -> StepCost:
        """Of one batch on one device."""
        return counted(self.make, self.batch_size, self.resolution, bfloat16, self.num_averages, gpu)

    def memory(self, cost: StepCost) -> dict[str, float]:
        """Bytes on each device, by what they are."""
        share = self.num_devices if self.sharded else 1
        held = {name: getattr(cost, name) / share for name in ("weights", "gradients", "optimizer", "averages")}
        buckets = cost.gradients if self.num_devices > 1 and not self.sharded else 0  # DDP's copies, to be sent
        return {**held, "activations": cost.activations + buckets}


@cache
def counted(
    make: Callable[[], TrainedStage], batch_size: int, resolution: int, bfloat16: bool, num_averages: int, gpu: bool
) -> StepCost:
    """`count_step`, once."""
    return count_step(make, batch_size, resolution, bfloat16, num_averages, gpu)


@dataclass(frozen=True)
class Estimate:
    """A plan on a machine.

    Args:
        bfloat16: the precision there.
        seconds: what a step takes for each reason, if it were the only one.
        memory: bytes.
    """

    bfloat16: bool
    seconds: dict[str, float]
    memory: float

    @property
    def bound(self) -> str:
        """The slowest of what goes on at once."""
        return max(self.seconds, key=self.seconds.__getitem__)

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return self.seconds[self.bound]


def estimate(plan: Plan, machine: Machine, share: float | None = None) -> Estimate:
    """What bounds a step: computing at that share of the peak, or moving bytes at the full speed of their way."""
    bfloat16 = machine.bfloat16 > 0 and plan.bfloat16
    cost, others = plan.cost(bfloat16, machine.gpu), plan.num_devices - 1
    # A ring sends each gradient twice, but for the share that is a device's own (Patarasuk & Yuan 2009).
    sent = 2 * others / plan.num_devices * cost.gradients
    seconds = {
        "compute": plan.accumulate * cost.flops / ((share or machine.share) * machine.peak(bfloat16)),
        "memory": plan.accumulate * cost.moved / machine.bandwidth,
        "gradients": sent / machine.link,
        "data": plan.accumulate * plan.batch_size * plan.item / READING,
    }
    return Estimate(bfloat16, seconds, sum(plan.memory(cost).values()))


def report(plan: Plan, machines: list[Machine], share: float | None = None) -> str:
    """All of it, in tables of Markdown."""
    first = estimate(plan, machines[0], share)
    cost = plan.cost(first.bfloat16, machines[0].gpu)
    lines = [f"## {plan.title}", "", "| network | parameters | forward |", "| --- | --- | --- |"]
    lines += [
        f"| {name} | {part.parameters / 1e6:,.1f} M | {part.flops / 1e9:,.2f} GFLOPs |"
        for name, part in cost.parts.items()
    ]
    per_item = cost.flops / cost.batch_size
    held = ", ".join(f"{name} {size(value)}" for name, value in plan.memory(cost).items())
    checkpoints = plan.num_checkpoints * cost.checkpoint + cost.exported + plan.snapshots * cost.trained // 2
    stored = {"checkpoints": checkpoints, **plan.disk}
    lines += [
        "",
        f"A training step: {per_item / 1e9:,.1f} GFLOPs an item, forward and backward, a multiply-add being 2.",
        f"Memory of a device: {held}.",
        f"On disk: {', '.join(f'{name} {size(value)}' for name, value in stored.items())}.",
        "",
        f"| device | precision | memory | {'steps' if plan.max_steps is None else 'hours'} | items/s | bound by |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for machine in machines:
        it = estimate(plan, machine, share)
        fits = f"{size(it.memory)} of {size(machine.memory)}" + (", too much" if it.memory > machine.memory else "")
        lines.append(
            f"| {machine.name} | {'bf16-mixed' if it.bfloat16 else '32-true'} | {fits} | {length(plan, it)} "
            f"| {plan.items_a_step / it.step:,.0f} | {it.bound} |"
        )
    shares = f"{share:.0%} of the peak" if share else f"{SHARE:.0%} of a GPU's peak, {CPU_SHARE:.0%} of a CPU's,"
    return "\n".join([*lines, "", f"Assumed: {shares} in computing; all else overlaps with it."])


def length(plan: Plan, it: Estimate) -> str:
    """Hours of the steps, or steps of the hours."""
    if plan.max_steps is not None:
        return f"{plan.max_steps * it.step / 3600:,.1f}"
    return f"{plan.max_hours * 3600 / it.step:,.0f}" if plan.max_hours is not None else "no limit"


def size(num_bytes: float) -> str:
    """Bytes in words."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:,.1f} MB"


def this_machine() -> Machine:
    """The device that is here, by what it does with large matrices."""
    device = best_device()
    gpu = device.type == "cuda"
    if gpu:
        name, memory = torch.cuda.get_device_name(), float(torch.cuda.get_device_properties(0).total_memory)
    else:
        name = f"this machine, {torch.get_num_threads()} threads"
        memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    side = 8192 if gpu else 2048

    def speed(dtype: torch.dtype) -> float:
        matrix = torch.randn(side, side, device=device).to(dtype)
        return 2 * side**3 / fastest(lambda: matrix @ matrix)

    source = torch.zeros(2**28 // 4, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * 2**28 / fastest(lambda: target.copy_(source))
    bfloat16 = speed(torch.bfloat16) if multiplies_bfloat16(device) else 0.0  # elsewhere train.py takes float32
    return Machine(name, bfloat16, speed(torch.float32), memory, bandwidth, bandwidth, gpu)


def fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of five times."""
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def compare(plan: Plan, machine: Machine, num_steps: int, share: float | None = None) -> str:
    """Real steps on this machine against what is predicted for it."""
    it = estimate(plan, machine, share)
    bare = BareStep(plan.make(), plan.batch_size, plan.resolution, it.bfloat16, best_device())
    seconds = measure_step(bare, num_steps) * plan.accumulate
    speed = plan.accumulate * plan.cost(it.bfloat16, machine.gpu).flops / seconds
    return (
        f"Measured on {machine.name}: {seconds:.3g} s a step, {speed / 1e9:,.0f} GFLOP/s, "
        f"{speed / machine.peak(it.bfloat16):.0%} of the peak; predicted {it.step:.3g} s: "
        f"{it.step / seconds:.2f} of the measured."
    )
