"""Quality of new faces against minutes of training, for latentfaces and its peers on the same photos.

    python benchmarks/quality.py PHOTOS --vae RUN --minutes 3 6 12 --seeds 0 1 2 [--peers diffusers-flow DiT] \\
        [--json FILE] [--plot FILE]

Each value is from a complete training of N minutes by `benchmarks/diffusion.py`, because the learning rate falls
towards its end. latentfaces is sampled as by sample.py, with autoguidance of weight 1.5. Of the samplers and guidance
of a peer the best counts. A point is the mean over the seeds, with its range.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

from about import about

OURS = "latentfaces, AutoGuidance 1.5"
METRIC = "kid_effnet"

Front = dict[float, dict[str, list[float]]]
"""Values of each seed, by minutes and name."""


def measured(arguments: argparse.Namespace, minutes: float, seed: int) -> dict[str, float]:
    """The metric of each side, and the floor, which is that of the VAE."""
    with tempfile.TemporaryDirectory() as temporary:
        found = Path(temporary) / "rows.json"
        rivals = ",".join(["latentfaces", *arguments.peers])
        script = str(Path(__file__).with_name("diffusion.py"))
        options = ["--minutes", str(minutes), "--rivals", rivals, "--more", "guidance", "--weights", "1.5"]
        options += ["--faces", str(arguments.faces), "--seed", str(seed)]
        command = [sys.executable, script, str(arguments.photos), "--vae", arguments.vae, *options]
        subprocess.run([*command, "--json", str(found)], check=True)
        return points(json.loads(found.read_text())["rows"], arguments.peers)


def points(rows: dict[str, dict[str, float]], peers: list[str]) -> dict[str, float]:
    """Return the points to plot from the rows of one comparison."""
    best = {
        peer: min(row[METRIC] for name, row in rows.items() if name == peer or name.startswith(f"{peer},"))
        for peer in peers
    }
    return {"latentfaces": rows[OURS][METRIC], **best, "floor": rows["floor"][METRIC]}


def plot(front: Front, path: Path) -> None:
    """Plot means and ranges of the metric against minutes, on a logarithmic scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name in next(iter(front.values())):
        values = [by_name[name] for by_name in front.values()]
        (line,) = axes.semilogx(list(front), [*map(mean, values)], "--" if name == "floor" else "o-", label=name)
        axes.fill_between(list(front), [*map(min, values)], [*map(max, values)], color=line.get_color(), alpha=0.2)
    axes.set(xlabel="minutes of training", ylabel=f"{METRIC} (lower is better)")
    axes.set_xticks(list(front), [f"{minutes:g}" for minutes in front])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--vae", required=True, help="a run of stage 1 on these photos")
    parser.add_argument("--minutes", nargs="+", type=float, default=[3.0, 6.0, 12.0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--peers", nargs="+", default=["diffusers-flow", "DiT"], help="of diffusion.py --rivals")
    parser.add_argument("--faces", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    front: Front = {}
    for minutes in sorted(arguments.minutes):
        found = [measured(arguments, minutes, seed) for seed in arguments.seeds]
        front[minutes] = {name: [of_seed[name] for of_seed in found] for name in found[0]}
        shown = (f"{name} {mean(v):.4g} ({min(v):.4g} to {max(v):.4g})" for name, v in front[minutes].items())
        print(f"{minutes:g} minutes: " + "  ".join(shown), flush=True)
        if arguments.json:
            options = {name: getattr(arguments, name) for name in ("minutes", "seeds", "peers")}
            command = "python benchmarks/quality.py PHOTOS --vae RUN" + "".join(
                f" --{name} {' '.join(map(str, values))}" for name, values in options.items()
            )
            about_it = {**about(), "command": f"{command} --faces {arguments.faces}", "metric": METRIC}
            arguments.json.write_text(json.dumps({**about_it, "minutes": front}, indent=1))
        if arguments.plot:
            plot(front, arguments.plot)


if __name__ == "__main__":
    main()
