"""How long a step takes, beside others: in turns, in one process."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

Work = Callable[[], object]
Spread = dict[str, float]
"""Median, min, max."""


def spread(values: list[float]) -> Spread:
    """Of some rounds."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def cpu_ms(work: Work) -> float:
    """CPU milliseconds of this process, over all its threads: what else the machine does counts little."""
    started = time.process_time()
    work()
    return 1e3 * (time.process_time() - started)


def wall_ms(work: Work) -> float:
    """Milliseconds until it is done, on a GPU too."""
    finish()
    started = time.perf_counter()
    work()
    finish()
    return 1e3 * (time.perf_counter() - started)


def finish() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleaved(works: Mapping[str, Work], rounds: int, cost: Callable[[Work], float]) -> dict[str, Spread]:
    """Cost of each, in turn, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            times[name].append(cost(work))
    return {name: spread(values[1:]) for name, values in times.items()}
