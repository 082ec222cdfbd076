"""Curves from a metrics.csv, the best epoch marked, and rows of inputs, outputs and errors."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor

from latentfaces.evaluation import plot_losses, visualize_random_input_output
from latentfaces.evaluation.plots import read_curves

METRICS = """\
epoch,step,train/loss,val/loss,val/psnr,lr-AdamW,test/loss
0,9,2.0,,,0.001,
0,10,,1.5,20.0,,
1,19,1.0,,,0.0005,
1,20,,0.5,24.0,,
2,29,0.25,,,,
2,30,,0.75,23.0,,
,30,,,,,0.6
"""


@pytest.fixture
def metrics_csv(tmp_path: Path) -> Path:
    """Return a short run's metrics.csv; validation is best at step 20."""
    (tmp_path / "metrics.csv").write_text(METRICS)
    return tmp_path / "metrics.csv"


class Shifted:
    """An autoencoder that adds `offset` to every value."""

    def __init__(self, offset: float) -> None:
        self.offset = offset

    def encode(self, images: Tensor) -> Any:
        return SimpleNamespace(mode=lambda: images)

    def decode(self, latents: Tensor) -> Tensor:
        return latents + self.offset


def panel(metrics_csv: Path, title: str) -> Axes:
    """Return the axes with this title."""
    (axes,) = [axes for axes in plot_losses(metrics_csv).axes if axes.get_title() == title]
    return axes


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """Return steps and values of the lines of a panel, by their label."""
    return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def test_curves_hold_what_was_logged_and_where(metrics_csv: Path) -> None:
    assert read_curves(metrics_csv) == {
        "train/loss": ([9, 19, 29], [2.0, 1.0, 0.25]),
        "val/loss": ([10, 20, 30], [1.5, 0.5, 0.75]),
        "val/psnr": ([10, 20, 30], [20.0, 24.0, 23.0]),
        "lr-AdamW": ([9, 19], [0.001, 0.0005]),
        "test/loss": ([30], [0.6]),
    }


def test_training_and_validation_share_a_panel_and_the_test_has_none(metrics_csv: Path) -> None:
    titles = {axes.get_title() for axes in plot_losses(metrics_csv).axes if axes.get_title()}
    assert titles == {"loss", "psnr", "lr-AdamW"}
    shown = lines(panel(metrics_csv, "loss"))
    assert shown["train"] == ([9, 19, 29], [2.0, 1.0, 0.25])
    assert shown["val"] == ([10, 20, 30], [1.5, 0.5, 0.75])


def test_lowest_validation_loss_is_marked_at_its_step(metrics_csv: Path) -> None:
    (mark,) = [(label, x) for label, (x, _) in lines(panel(metrics_csv, "loss")).items() if label.startswith("best")]
    assert mark == ("best 0.5", [20, 20])


def test_nothing_is_marked_where_there_is_no_validation_loss(metrics_csv: Path) -> None:
    assert list(lines(panel(metrics_csv, "psnr"))) == ["val"]


def test_curve_over_orders_of_magnitude_is_shown_on_a_logarithmic_axis(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/loss,train/kl\n1,1.0,1.0\n2,0.001,0.5\n")
    assert panel(path, "loss").get_yscale() == "log"
    assert panel(path, "kl").get_yscale() == "linear"


def test_figure_is_written_as_a_picture(metrics_csv: Path, tmp_path: Path) -> None:
    plot_losses(metrics_csv, tmp_path / "losses.png")
    with Image.open(tmp_path / "losses.png") as picture:
        assert picture.format == "PNG"
        assert np.asarray(picture.convert("L")).std() > 5


@pytest.fixture
def images() -> Tensor:
    """Return ten images of one grey each."""
    return torch.linspace(-0.9, -0.1, 10).view(10, 1, 1, 1).expand(10, 3, 8, 8).clone()


@pytest.mark.parametrize(
    ("offset", "error"), [(0.0, -1.0), (0.25, 0.0), (-0.25, 0.0), (0.4, 0.6), (0.5, 1.0), (0.9, 1.0)]
)
def test_error_row_is_four_times_the_distance_above_black(
    images: Tensor, tmp_path: Path, offset: float, error: float
) -> None:
    rows = visualize_random_input_output(Shifted(offset), images, tmp_path / "rows.png", num_images=4)  # type: ignore[arg-type]
    originals, reconstructions, errors = rows.chunk(3)
    assert torch.allclose(reconstructions, originals + offset)
    assert torch.allclose(errors, torch.full_like(errors, error), atol=1e-5)


def test_first_row_shows_different_images_of_those_given(images: Tensor, tmp_path: Path) -> None:
    rows = visualize_random_input_output(Shifted(0.0), images, tmp_path / "rows.png", num_images=6)  # type: ignore[arg-type]
    chosen = [int((images == row).flatten(1).all(1).nonzero()) for row in rows[:6]]
    assert rows.shape == (18, 3, 8, 8)
    assert len(set(chosen)) == 6
    assert chosen != list(range(6))


def test_seed_decides_the_choice(images: Tensor, tmp_path: Path) -> None:
    first, same, other = (
        visualize_random_input_output(Shifted(0.0), images, tmp_path / "rows.png", seed=seed)  # type: ignore[arg-type]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_more_images_than_there_are_shows_all_once(images: Tensor, tmp_path: Path) -> None:
    rows = visualize_random_input_output(Shifted(0.0), images, tmp_path / "rows.png", num_images=99)  # type: ignore[arg-type]
    assert sorted(rows[:10, 0, 0, 0].tolist()) == images[:, 0, 0, 0].tolist()


def test_picture_has_inputs_above_outputs_above_errors(images: Tensor, tmp_path: Path) -> None:
    rows = visualize_random_input_output(Shifted(0.5), images, tmp_path / "a" / "rows.png", num_images=4)  # type: ignore[arg-type]
    with Image.open(tmp_path / "a" / "rows.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(float)
    assert pixels.shape == (3 * 10 + 2, 4 * 10 + 2, 3)  # two pixels of frame around each
    tiles = [pixels[2 + 10 * row + 4, 2 + 10 * column + 4, 0] for row in range(3) for column in range(4)]
    assert tiles == pytest.approx(((rows[:, 0, 0, 0] + 1) * 127.5).tolist(), abs=0.51)
