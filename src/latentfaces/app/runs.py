"""The tab that shows runs."""

from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from latentfaces.app.commands import one_line
from latentfaces.app.controls import BUTTONS
from latentfaces.evaluation.panels import SECTIONS, best_validation, panels, read_curves
from latentfaces.report.page import REPORT
from latentfaces.report.run_page import drawn
from latentfaces.run import CONFIG, Run, open_run, runs_in

EVERY = 5
"""Seconds between two looks at the selected run."""
HEADERS = ["run", "stage", "state", "step", "best val/loss", "metrics"]
METRICS = ("frechet_distance", "kernel_distance", "memorized_fraction", "fid", "val/psnr", "test/psnr")


class Runs:
    """Tab that shows the runs in a folder of both stages, also while they are trained."""

    def __init__(self, outputs: Path) -> None:
        self.outputs = outputs
        self.table = gr.Dataframe(self.rows, headers=HEADERS, interactive=False, wrap=True, label="Runs")
        with gr.Row():
            self.choice = gr.Dropdown([self.name(run) for run in self.runs()], label="Run", value=None)
            refresh = gr.Button("Refresh", scale=0, min_width=120)
        self.about = gr.HTML()
        self.previews = gr.Gallery(
            label="Previews", show_label=False, object_fit="contain", height="auto", buttons=BUTTONS
        )
        timer = gr.Timer(EVERY, active=False)
        shown = [self.about, self.previews, timer]
        self.choice.change(self.show, self.choice, shown, api_name="show_run")
        timer.tick(self.show, self.choice, shown, show_progress="hidden", api_visibility="private")
        refresh.click(self.refresh, None, [self.table, self.choice], api_name="runs")
        self.served: set[Path] = set()

    def runs(self) -> list[Run]:
        """Return the runs of both stages."""
        return [run for stage in ("ldm", "vae") for run in runs_in(self.outputs / stage)]

    @staticmethod
    def name(run: Run) -> str:
        """Return the name of a run, with its stage."""
        return f"{run.stage}/{run.folder.name}"

    def rows(self) -> list[list[Any]]:
        """Return the rows of the table."""
        return [row(run) for run in self.runs()]

    def refresh(self) -> tuple[Any, Any]:
        """Return the table and the choice of a run."""
        return self.rows(), gr.Dropdown([self.name(run) for run in self.runs()])

    def show(self, name: str | None) -> tuple[str, list[tuple[str, str]], gr.Timer]:
        """Return curves and previews of a run, and the timer, which runs until the run is finished."""
        if name is None:
            return "", [], gr.Timer(active=False)
        folders = (config.parent for config in self.outputs.glob(f"*/*/{CONFIG}"))
        if name not in (folder.relative_to(self.outputs).as_posix() for folder in folders):
            raise one_line(f"There is no run {name}. Refresh the list.")
        run = open_run(self.outputs / name)
        metrics, report, images = (run.folder / name for name in ("metrics.csv", REPORT, "images"))
        if run.folder not in self.served:
            self.served.add(run.folder)
            gr.set_static_paths([report, images])
        curves = read_curves(metrics) if metrics.exists() else {}
        losses = [panel for panel in panels(curves) if panel.section in SECTIONS[:2]]
        drawings = "".join(
            f'<img src="{data}" alt="{escape(title)}" style="width: 420px; max-width: 100%">'
            for title, data in drawn(losses, best_validation(curves))
        )
        link = ""
        if report.exists():
            link = f'<a href="/gradio_api/file={quote(str(report.resolve()))}" target="_blank">report.html</a>'
        previews = sorted(images.glob("step_*.png"))
        return (
            f'{link}<div style="display: flex; flex-wrap: wrap">{drawings}</div>',
            [(str(path), f"step {int(path.stem[5:]):,}") for path in reversed(previews)],
            gr.Timer(active=not run.finished),
        )


def row(run: Run) -> list[Any]:
    """Return name, stage, state, step and metrics of a run."""
    metrics = run.folder / "metrics.csv"
    curves = read_curves(metrics) if metrics.exists() else {}
    best, result = best_validation(curves), run.result()
    step = result.get("steps") or max((steps[-1] for steps, _ in curves.values()), default=0)
    for _, measured in reversed(run.evaluations("metrics.json")):
        result |= measured
    shown = ", ".join(f"{name} {result[name]:.4g}" for name in METRICS if isinstance(result.get(name), int | float))
    state = "finished" if run.finished else "not finished"
    return [run.folder.name, run.stage, state, int(step), f"{best.loss:.4g}" if best else "", shown]
