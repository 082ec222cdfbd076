"""Training speed next to a busy process, for several spin counts of OpenMP.

    python benchmarks/busy.py [--spins default,0,1000,10000,100000] [--rounds 5] [--seconds 1.5]

At the end of each parallel region the threads of OpenMP spin before they sleep. That is fast on a quiet machine. Next
to a busy process the spinning threads take the cores from each other. For each setting one process trains both stages
of `experiment=faces64_cpu`. The settings take turns, quiet and next to one process that does nothing but compute.
The table has images per second (median of the rounds) and, in brackets, the ratio to one thread.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

BATCHES = {"vae": (16, 3, 64, 64), "ldm": (32, 2, 4, 16, 16)}
"""Images of stage 1, moments of latents of stage 2."""
ONE_THREAD, SPINS = "1 thread", "GOMP_SPINCOUNT"


def train_on_request() -> None:
    """For each line "STAGE SECONDS" of stdin, train that long and print the images per second."""
    import torch
    from ours import built, built_ldm, in_bfloat16

    from latentfaces.cost.step import TrainingStep

    torch.manual_seed(0)
    recipe = ("experiment=faces64_cpu", "data=synthetic")
    modules = {"vae": built("model=vae", *recipe), "ldm": built_ldm(*recipe)}
    steps = {stage: TrainingStep(modules[stage], torch.rand(shape) * 2 - 1) for stage, shape in BATCHES.items()}
    bfloat16 = in_bfloat16()
    for step in steps.values():
        step(bfloat16)
    print("ready", flush=True)
    for line in sys.stdin:
        stage, seconds = line.split()
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < float(seconds):
            steps[stage](bfloat16)
            count += BATCHES[stage][0]
        print(count / (time.perf_counter() - started), flush=True)


@contextmanager
def busy_process() -> Iterator[None]:
    """Within this context another process computes without pause."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def worker(setting: str) -> subprocess.Popen[str]:
    """Start the training process of a setting."""
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", SPINS)}
    if setting == ONE_THREAD:
        environment["OMP_NUM_THREADS"] = "1"
    elif setting != "default":
        environment[SPINS] = setting
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, __file__, "--worker"], stdin=pipe, stdout=pipe, text=True, env=environment)


def asked(process: subprocess.Popen[str], request: str) -> str:
    """Return the line that the worker prints for a request."""
    assert process.stdin is not None
    assert process.stdout is not None
    if request:
        print(request, file=process.stdin, flush=True)
    return process.stdout.readline()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spins", default="default,0,1000,10000,100000", help="values of GOMP_SPINCOUNT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        train_on_request()
        return
    workers = {setting: worker(setting) for setting in [ONE_THREAD, *options.spins.split(",")]}
    for process in workers.values():
        asked(process, "")
    speeds: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for _ in range(options.rounds):
        for setting, process in workers.items():
            for stage in BATCHES:
                speeds[stage, "quiet", setting].append(float(asked(process, f"{stage} {options.seconds}")))
                with busy_process():
                    speeds[stage, "busy", setting].append(float(asked(process, f"{stage} {options.seconds}")))
    for process in workers.values():
        process.kill()
    medians = {key: statistics.median(values) for key, values in speeds.items()}
    columns = [(stage, state) for stage in BATCHES for state in ("quiet", "busy")]
    print(f"{'spin count':>12}" + "".join(f"{' '.join(column):>20}" for column in columns))
    for setting in workers:
        cells = [(medians[(*column, setting)], medians[(*column, ONE_THREAD)]) for column in columns]
        print(f"{setting:>12}" + "".join(f"{f'{value:.0f} ({value / one:.2f})':>20}" for value, one in cells))


if __name__ == "__main__":
    main()
