"""Cost of the safeguards of a training: collective stop decision, checksums of checkpoints, check for NaN.

    python benchmarks/operate.py

It prints medians of: 2,000 decisions of two processes on the CPU, the check of a checkpoint of 200 MB from a warm disk
cache, and the check of the loss of a step.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from about import about
from lightning.pytorch.strategies import DDPStrategy

from latentfaces.training import NonFiniteGuard, damage
from latentfaces.training.callbacks import GracefulStop

CPU = torch.device("cpu")


def seconds(call: Callable[[], Any], times: int) -> float:
    """Return the median seconds of `times` calls."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return median(taken)


def agree(rank: int, folder: str) -> None:
    """Time the collective stop decision in one of two processes."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    strategy = DDPStrategy(parallel_devices=[CPU, CPU])
    trainer: Any = SimpleNamespace(world_size=2, strategy=SimpleNamespace(root_device=CPU, reduce=strategy.reduce))
    stop = GracefulStop(Path(folder) / "last.ckpt")
    taken = seconds(lambda: stop.check(trainer), 2000)
    library = seconds(lambda: dist.broadcast(torch.tensor([0]), src=0), 2000)
    if rank == 0:
        print(f"{1e6 * taken:.0f} us: collective stop decision of two processes, once a step")
        print(f"{1e6 * library:.0f} us: the broadcast of Lightning that it replaces")


def checksums(folder: Path) -> None:
    """Time the checksums of a checkpoint of 200 MB."""
    path = folder / "last.ckpt"
    torch.save({f"weights {number}": torch.randn(1_000_000) for number in range(50)}, path)
    check = seconds(lambda: damage(path), 5)
    read = seconds(lambda: torch.load(path, weights_only=True), 5)
    print(f"{check:.2f} s: the checksums of a checkpoint of 200 MB, once a resume (reading it: {read:.2f} s)")


def guards() -> None:
    """Time the check of one step for NaN, without the gradient's norm, which clipping computes."""
    steps = NonFiniteGuard()
    terms = {f"term {number}": torch.rand((), requires_grad=True) * 2 for number in range(5)}
    norm = torch.rand(())

    def step() -> None:
        steps.add(terms, list)
        1 + 0 * norm
        steps.close(0, {"the gradient's norm": norm}, CPU)

    print(f"{1e6 * seconds(step, 20_000):.0f} us: check of loss and gradient for NaN and Inf, once a step")


def main() -> None:
    """Print all."""
    print(about())
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(agree, (folder,), nprocs=2)
        checksums(Path(folder))
    guards()


if __name__ == "__main__":
    main()
