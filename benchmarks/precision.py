r"""Whether bfloat16 costs quality: the same trainings in both precisions, a few seeds each.

    python benchmarks/precision.py [--stages vae,ldm] [--steps 500] [--seeds 3] [--vae OPTION ...] [--ldm OPTION ...] \
        [--json FILE]

`train.py experiment=demo` on drawn faces: for each seed the same weights, batches and noise, once in float32 and once
in bfloat16 autocast. Reported: the held-out loss along the way; and the difference of the precisions' means, in
standard deviations of a float32 run between seeds: what is below 1 is less than another seed would do. A CPU without
bfloat16 units emulates them: the same rounding, in many times the minutes, for which smaller networks can be asked for.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from about import about

ROOT = Path(__file__).resolve().parents[1]
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}
Curve = dict[int, float]
"""Held-out loss by step."""


def train(home: Path, stage: str, name: str, steps: int, *options: str) -> Path:
    """One run of train.py; its folder."""
    folder = home / "outputs" / stage / name
    subprocess.run(
        [
            *(sys.executable, str(ROOT / "train.py"), f"model={stage}", "experiment=demo", f"name={name}"),
            *("logger=csv", "trainer.max_time=null", f"trainer.max_steps={steps}"),
            *(f"trainer.val_check_interval={max(1, steps // 10)}", *options),
        ],
        cwd=home,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return folder


def curve(folder: Path) -> Curve:
    """From a run's metrics.csv."""
    with (folder / "metrics.csv").open(newline="") as file:
        return {int(row["step"]) + 1: float(row["val/loss"]) for row in csv.DictReader(file) if row.get("val/loss")}


def compare(curves: dict[str, list[Curve]]) -> dict[str, Any]:
    """Means over seeds by step, their differences, and these in deviations of a float32 run."""
    steps = sorted(set.intersection(*(set(one) for runs in curves.values() for one in runs)))
    table = []
    for step in steps:
        values = {name: [one[step] for one in runs] for name, runs in curves.items()}
        means = {name: statistics.mean(v) for name, v in values.items()}
        deviation = statistics.stdev(values["fp32"])
        gap = means["bf16"] - means["fp32"]
        table.append(
            {"step": step, **means, "difference": gap, "deviation": deviation, "in_deviations": gap / deviation}
        )
    last = table[-1]
    return {
        "steps": table,
        "last_in_deviations": last["in_deviations"],
        "last_percent": 100 * last["difference"] / last["fp32"],
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default="vae,ldm")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    for stage in ("vae", "ldm"):
        parser.add_argument(f"--{stage}", nargs="*", default=[], metavar="OPTION", help=f"of train.py model={stage}")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    if arguments.seeds < 2:
        parser.error("--seeds must be at least 2: the deviation between seeds is the measure")
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        for stage in arguments.stages.split(","):
            options = list(vars(arguments)[stage])
            if stage == "ldm":
                if not (home / "outputs" / "vae" / "bf16-0").exists():
                    train(home, "vae", "bf16-0", arguments.steps, "trainer.precision=bf16-mixed", *arguments.vae)
                options.append("vae=bf16-0")
            curves = {
                name: [
                    curve(
                        train(
                            home,
                            stage,
                            f"{name}-{seed}",
                            arguments.steps,
                            f"seed={seed}",
                            f"trainer.precision={p}",
                            *options,
                        )
                    )
                    for seed in range(arguments.seeds)
                ]
                for name, p in PRECISIONS.items()
            }
            rows[stage] = compare(curves)
            for row in rows[stage]["steps"]:
                print(stage, "  ".join(f"{key} {value:.5g}" for key, value in row.items()), flush=True)
    if arguments.json:
        command = f"python benchmarks/precision.py --stages {arguments.stages} --steps {arguments.steps}"
        command += f" --seeds {arguments.seeds}"
        for stage in ("vae", "ldm"):
            command += f" --{stage} {' '.join(options)}" if (options := vars(arguments)[stage]) else ""
        arguments.json.write_text(json.dumps({**about(), "command": command, "rows": rows}, indent=1))
    return rows


if __name__ == "__main__":
    main()
