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

from latentfaces.evaluation import plot_losses, plot_neighbors, visualize_random_input_output
from latentfaces.evaluation.panels import best_validation, panels, read_curves, running_mean, sheet
from latentfaces.evaluation.plots import plot_distances

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

    latent_mean = torch.zeros(1)

    def __init__(self, offset: float) -> None:
        self.offset = offset

    def encode(self, images: Tensor) -> Any:
        return SimpleNamespace(mode=lambda: images)

    def decode(self, latents: Tensor) -> Tensor:
        return latents + self.offset


def axes_of(metrics_csv: Path) -> list[Axes]:
    """Return all panels that show something."""
    return [axes for axes in plot_losses(metrics_csv).axes if axes.get_title(loc="left")]


def panel(metrics_csv: Path, title: str) -> Axes:
    """Return the axes with this title."""
    (axes,) = [axes for axes in axes_of(metrics_csv) if axes.get_title(loc="left") == title]
    return axes


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """Return steps and values of the lines of a panel, by their label."""
    return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def test_curves_hold_what_was_logged_and_where(metrics_csv: Path) -> None:
    assert read_curves(metrics_csv) == {
        "epoch": ([9, 10, 19, 20, 29, 30], [0, 0, 1, 1, 2, 2]),
        "train/loss": ([9, 19, 29], [2.0, 1.0, 0.25]),
        "val/loss": ([10, 20, 30], [1.5, 0.5, 0.75]),
        "val/psnr": ([10, 20, 30], [20.0, 24.0, 23.0]),
        "lr-AdamW": ([9, 19], [0.001, 0.0005]),
        "test/loss": ([30], [0.6]),
    }


def test_training_and_validation_share_a_panel_and_the_test_has_none(metrics_csv: Path) -> None:
    titles = [axes.get_title(loc="left") for axes in axes_of(metrics_csv)]
    assert titles == ["loss", "psnr", "lr-AdamW"]
    shown = lines(panel(metrics_csv, "loss"))
    assert shown["train"] == ([9, 19, 29], [2.0, 1.0, 0.25])
    assert shown["val"] == ([10, 20, 30], [1.5, 0.5, 0.75])


def test_lowest_validation_loss_is_marked_at_its_step(metrics_csv: Path) -> None:
    (mark,) = [(label, x) for label, (x, _) in lines(panel(metrics_csv, "loss")).items() if label.startswith("best")]
    assert mark == ("best 0.5 at step 20, epoch 1", [20, 20])


def test_every_panel_marks_the_best_step(metrics_csv: Path) -> None:
    marks = [
        [list(line.get_xdata()) for line in axes.lines if line.get_linestyle() == ":"] for axes in axes_of(metrics_csv)
    ]
    assert marks == [[[20, 20]], [[20, 20]], []]  # the learning rate was last logged before it


def test_what_was_best_before_the_adversary_came_is_not_marked(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,val/loss,train/adversarial\n1,0.1,\n2,,0.5\n3,0.4,\n4,0.3,\n5,0.35,\n")
    best = best_validation(read_curves(tmp_path / "metrics.csv"))
    assert best is not None
    assert (best.step, best.loss) == (4, 0.3)


def test_values_of_a_kind_share_a_panel_and_each_kind_its_section() -> None:
    names = ["health/kl_0", "health/kl_1", "health/detail_low", "health/detail_high", "health/active_units"]
    names += [
        "val/psnr",
        "val/psnr_with_skips",
        "val/feature_distance",
        "val/memorized_fraction",
        "train/kl_weight",
        "lr-AdamW",
        "train/gradient_norm",
        "train/kl",
        "val/kl",
    ]
    found = {panel.title: (panel.section, list(panel.curves)) for panel in panels({name: ([1], [1]) for name in names})}
    assert found == {
        "kl": ("losses", ["train", "val"]),
        "psnr": ("quality", ["val", "val, with skips"]),
        "feature_distance": ("quality", ["val"]),
        "memorized_fraction": ("quality", ["val"]),
        "kl_weight": ("schedules and gradients", ["train"]),
        "lr-AdamW": ("schedules and gradients", ["lr-AdamW"]),
        "gradient_norm": ("schedules and gradients", ["train"]),
        "latents: active units": ("latents", ["active_units"]),
        "latents: detail": ("latents", ["high", "low"]),
        "latents: kl": ("latents", ["channel 0", "channel 1"]),
    }


def test_32_channels_share_a_panel_without_a_legend() -> None:
    (many,) = panels({f"health/kl_{n}": ([1.0, 2.0], [float(n), 1.0]) for n in range(32)})
    _, axes = sheet()
    many.draw(axes[0, 0], None)
    assert len(axes[0, 0].lines) == 32
    assert axes[0, 0].get_legend() is None
    many.curves = dict(list(many.curves.items())[:8])
    _, axes = sheet()
    many.draw(axes[0, 0], None)
    assert axes[0, 0].get_legend() is not None


def test_long_curves_are_shown_palely_with_their_running_mean() -> None:
    values = [1.0, 3.0] * 100
    mean = running_mean(values)
    assert len(mean) == 200
    assert mean[50:150] == pytest.approx(2.0, abs=0.2)
    assert running_mean([5.0] * 90).tolist() == pytest.approx([5.0] * 90)


def test_nothing_is_marked_where_there_is_no_validation_loss(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,val/psnr\n1,20\n2,22\n")
    assert list(lines(panel(tmp_path / "metrics.csv", "psnr"))) == ["val"]


def test_photos_stand_beside_faces_with_their_distance_red_where_it_is_suspicious() -> None:
    faces = torch.arange(2, dtype=torch.uint8)[:, None, None, None].expand(2, 3, 4, 4)
    photos = torch.full((2, 3, 3, 4, 4), 9, dtype=torch.uint8)
    distances = torch.tensor([[0.1, 0.5, 0.9], [0.6, 0.7, 0.8]])
    figure = plot_neighbors(faces, photos, distances, 0.4)
    (axes,) = figure.axes
    told = [(text.get_text(), text.get_color()) for text in axes.texts]
    assert [text for text, _ in told[:6]] == ["0.1", "0.5", "0.9", "0.6", "0.7", "0.8"]
    assert [text for text, colour in told if colour == "#c53030"] == ["0.1"]
    assert [int(np.asarray(image.get_array()).mean()) for image in axes.images] == [0, 9, 9, 9, 1, 9, 9, 9]


def test_distances_are_shown_in_percent_with_the_limit() -> None:
    figure = plot_distances({"new faces": torch.rand(50), "held-out photos": torch.rand(200)}, 0.25)
    (axes,) = figure.axes
    heights = [sum(patch.get_height() for patch in bars.patches) for bars in axes.containers]
    assert heights == pytest.approx([100, 100])
    assert list(axes.lines[0].get_xdata()) == [0.25, 0.25]


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
