"""Timing of steps, interleaved in one process."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

Work = Callable[[], object]
Spread = dict[str, float]
"""Median, min, max."""


def spread(values: list[float]) -> Spread:
    """Return the median, minimum and maximum of some rounds."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def cpu_ms(work: Work) -> float:
    """Return CPU milliseconds of all threads of this process."""
    started = time.process_time()
    work()
    return 1e3 * (time.process_time() - started)


def wall_ms(work: Work) -> float:
    """Return wall milliseconds, including the work of a GPU."""
    finish()
    started = time.perf_counter()
    work()
    finish()
    return 1e3 * (time.perf_counter() - started)


def finish() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleaved(works: Mapping[str, Work], rounds: int, cost: Callable[[Work], float]) -> dict[str, Spread]:
    """Return the cost of each, in turn, after one warm-up round."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            times[name].append(cost(work))
    return {name: spread(values[1:]) for name, values in times.items()}
