"""An evaluation as one page."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from latentfaces.report.page import REPORT, as_data, embedded, write_page

MEANINGS = {
    "fid": "Frechet distance of Inception's features to those of held-out photos: lower is better",
    "frechet_distance": "distance of the features' means and covariances to those of held-out photos: lower is better",
    "kernel_distance": "the same by a kernel, without a bias for few pictures: lower is better, 0 is as good as real",
    "precision": "share of faces that look like some real one: higher is better",
    "recall": "share of held-out photos that look like some face: higher is better, low where variety is missing",
    "duplicates": "share of faces nearer to another face than 99 % of held-out photos are to another: 0.01 is right",
    "memorised": "share of faces nearer to a training photo than 99 % of held-out photos are: 0.01 is right",
}


def write_evaluation_page(
    folder: Path,
    run: str,
    told: Mapping[str, Any],
    reference: Mapping[str, float],
    grid: Path,
    pictures: Sequence[tuple[str, Figure]],
    command: str,
    settings: str,
) -> Path:
    """Write `report.html` into an evaluation's folder.

    Args:
        folder: where to.
        run: its name.
        told: what metrics.json holds.
        reference: the same figures of real photos, where they were measured.
        grid: the first pictures.
        pictures: captions and figures of how near they come to photos that were trained on.
        command: that makes this again.
        settings: all that decides the pictures.

    Returns:
        The page, with all its pictures inside.
    """
    values = {name: told[name] for name in MEANINGS if name in told}
    kind = told["kind"]
    memorised = values.get("memorised", 0.0)
    return write_page(
        folder / REPORT,
        "evaluation.html.j2",
        name=f"{run}: {kind} against photos",
        sentence=f"{told['num_images']:,} {kind}, {told['num_photos']:,} held-out photos, features {told['features']}",
        date=f"{datetime.now():%Y-%m-%d %H:%M}",
        kind=kind,
        reference=reference,
        figures=[
            (
                name.replace("_", " "),
                f"{value:.4g}",
                f"{reference[name]:.4g}" if name in reference else "",
                MEANINGS[name],
            )
            for name, value in values.items()
        ],
        shown_title=f"The first {kind}",
        grid=as_data(grid.read_bytes()),
        memory=f"{memorised:.1%} of the faces are nearer to a training photo than 99 % of the held-out photos, which "
        "nothing was trained on. About 1 % is what a model that has learnt, not learnt by heart, comes to.",
        pictures=[(caption, embedded(figure)) for caption, figure in pictures],
        command=command,
        settings=settings,
    )
