"""Speed of each part of latentfaces, compared with its peers and with the limits of the machine.

    pip install -e '.[diffusers]'
    python benchmarks/speed.py [--rows vae,dit] [--rounds 5] [--device cpu] [--compile] [--quick] [--json FILE]
    python benchmarks/speed.py --paper    # without a GPU: lower bounds for a GPU, from counted operations

Both sides have equal parameters, see the same batches, and take turns in one process. On a CPU the
figures are CPU time with one thread and wall time with two: median, minimum and maximum of some rounds. On a GPU they
are wall time. A row of two networks has three ratios, theirs / ours: as shipped (peers: float32 and AdamW; ours: the
choices of train.py), both in float32, and both in bfloat16 if the device supports it. `share` is our rate as a fraction
of the fastest product or convolution on this machine.

A training step is loss, gradient and optimizer, without clipping, averaging and logging, which row `trainer` measures.
Run nothing else at the same time.
"""

import argparse
import contextlib
import dataclasses
import gc
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from about import about
from around import loading, peak_memory, sampling_step, starting, trainer
from networks import decoding, dit_step, stage1_step, unet_step, vae_step
from ours import ROOT
from rows import CUDA, QUICK, Row, Scale, limits
from waiting import encoding, faces

from latentfaces.cost.step import fake_gpu

PACKAGES = ("torch", "lightning", "diffusers", "torchmetrics", "torchvision", "numpy", "pillow")


ROWS: dict[str, Callable[[Scale], Row]] = {
    "limits": limits,
    "vae": vae_step,
    "stage1": stage1_step,
    "unet": unet_step,
    "dit": dit_step,
    "decode": decoding,
    "faces": faces,
    "encode": encoding,
    "loading": loading,
    "trainer": trainer,
    "sampling": sampling_step,
    "start": starting,
    "memory": peak_memory,
}


COUNTABLE = ("vae", "stage1", "unet", "dit", "decode", "faces", "encode")
"""Rows whose operations depend on sizes alone."""


def versions() -> dict[str, str]:
    """Return the versions of the packages that the results depend on."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def main(argv: list[str] | None = None) -> dict[str, Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", help=f"comma-separated, of {', '.join(ROWS)}; all by default")
    parser.add_argument("--rounds", type=int, help="measured rounds, after one for warm-up")
    parser.add_argument("--no-wall", action="store_true", help="leave out wall time, which needs an idle machine")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="also measure ours compiled (minutes on a CPU)")
    parser.add_argument("--quick", action="store_true", help="toy sizes, for tests")
    parser.add_argument("--paper", action="store_true", help="only count operations, at the sizes of a GPU")
    parser.add_argument("--json", type=Path, help="output; benchmarks/results/speed_DATE.json for the complete table")
    arguments = parser.parse_args(argv)
    chosen = (arguments.rows or ",".join(COUNTABLE if arguments.paper else ROWS)).split(",")
    if unknown := [name for name in chosen if name not in ROWS]:
        parser.error(f"--rows {','.join(unknown)} is none of {', '.join(ROWS)}")
    if arguments.paper and not set(chosen) <= set(COUNTABLE):
        parser.error(f"--paper only counts {', '.join(COUNTABLE)}")
    if "limits" not in chosen and not arguments.paper:
        chosen = ["limits", *chosen]  # `share` needs it
    scale = QUICK if arguments.quick else CUDA if arguments.device == "cuda" else Scale()
    scale = dataclasses.replace(scale, kind=arguments.device, compiled=scale.compiled or arguments.compile)
    if arguments.paper:
        scale = dataclasses.replace(CUDA, kind="cpu", compiled=False, paper=True)
    if arguments.rounds:
        scale = dataclasses.replace(scale, rounds=arguments.rounds)
    if arguments.no_wall:
        scale = dataclasses.replace(scale, rounds_of_wall=0)
    machine = about()
    complete = not arguments.quick and chosen == list(ROWS)
    target = arguments.json or (ROOT / f"benchmarks/results/speed_{machine['date']}.json" if complete else None)
    command = " ".join(["python benchmarks/speed.py", *(sys.argv[1:] if argv is None else argv)])
    rows: dict[str, Row] = {}
    for name in chosen:
        started = time.monotonic()
        torch.manual_seed(0)
        try:
            with fake_gpu() if arguments.paper else contextlib.nullcontext():
                rows[name] = ROWS[name](scale)
        except ModuleNotFoundError as error:
            parser.exit(2, f"row {name} needs {error.name}: pip install '.[diffusers]', or leave it out with --rows\n")
        gc.collect()
        print("\n".join([*rows[name].lines(), f"    ({time.monotonic() - started:.0f} s)"]), flush=True)
        if target is not None:
            kept = {name: dataclasses.asdict(row) for name, row in rows.items()}
            target.write_text(
                json.dumps({**machine, "versions": versions(), "command": command, "rows": kept}, indent=1)
            )
    return rows


if __name__ == "__main__":
    main()
