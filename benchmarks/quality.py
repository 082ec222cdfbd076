"""How good new faces are after how many minutes: latentfaces and diffusers, for the same minutes on the same photos.

    python benchmarks/quality.py PHOTOS --vae RUN --minutes 3 6 12 [--peer diffusers-tuned] [--json FILE] [--plot FILE]

Each point is a complete training of N minutes by `benchmarks/diffusion.py`, since rates fall towards a training's
end: a long one cut short would show neither side at its best. Ours is sampled as sample.py does it, with autoguidance
of weight 1.5; of the peer's samplers the best counts. Takes twice the sum of the minutes, and the sampling.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from about import about

OURS = "latentfaces, AutoGuidance 1.5"
METRIC = "kid_effnet"


def measured(arguments: argparse.Namespace, minutes: float) -> dict[str, float]:
    """The metric of both sides, and the floor, which is that of the VAE."""
    with tempfile.TemporaryDirectory() as temporary:
        found = Path(temporary) / "rows.json"
        rivals = f"latentfaces,{arguments.peer}"
        script = str(Path(__file__).with_name("diffusion.py"))
        options = ["--minutes", str(minutes), "--rivals", rivals, "--more", "guidance", "--weights", "1.5"]
        options += ["--faces", str(arguments.faces)]
        command = [sys.executable, script, str(arguments.photos), "--vae", arguments.vae, *options]
        subprocess.run([*command, "--json", str(found)], check=True)
        return points(json.loads(found.read_text())["rows"], arguments.peer)


def points(rows: dict[str, dict[str, float]], peer: str) -> dict[str, float]:
    """Return the points to plot from the rows of one comparison."""
    theirs = min(row[METRIC] for name, row in rows.items() if name.startswith(f"{peer},"))
    return {"latentfaces": rows[OURS][METRIC], peer: theirs, "floor": rows["floor"][METRIC]}


def plot(table: dict[float, dict[str, float]], path: Path) -> None:
    """Plot the metric against minutes, both on logarithmic scales."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name in next(iter(table.values())):
        style = "--" if name == "floor" else "o-"
        axes.loglog(list(table), [row[name] for row in table.values()], style, label=name)
    axes.set(xlabel="minutes of training", ylabel=f"{METRIC} (lower is better)")
    axes.set_xticks(list(table), [f"{minutes:g}" for minutes in table])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--vae", required=True, help="a run of stage 1 on these photos")
    parser.add_argument("--minutes", nargs="+", type=float, default=[3.0, 6.0, 12.0])
    parser.add_argument("--peer", default="diffusers-tuned", choices=["diffusers", "diffusers-tuned"])
    parser.add_argument("--faces", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    table: dict[float, dict[str, float]] = {}
    for minutes in sorted(arguments.minutes):
        table[minutes] = measured(arguments, minutes)
        print(f"{minutes:g} minutes: " + "  ".join(f"{k} {v:.4g}" for k, v in table[minutes].items()), flush=True)
        if arguments.json:
            command = f"python benchmarks/quality.py PHOTOS --vae RUN --minutes {' '.join(map(str, arguments.minutes))}"
            command += f" --faces {arguments.faces}"
            told = {**about(), "command": command, "metric": METRIC, "minutes": table}
            arguments.json.write_text(json.dumps(told, indent=1))
        if arguments.plot:
            plot(table, arguments.plot)


if __name__ == "__main__":
    main()
