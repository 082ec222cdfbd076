"""GIFs and films: how many frames, how long, in which order."""

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageSequence

from latentfaces.tasks.animation import save_animation, there_and_back

FRAMES = torch.arange(0, 250, 50).to(torch.uint8).view(5, 1, 1, 1).expand(5, 3, 16, 16).contiguous()


@pytest.mark.parametrize(("number", "order"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2, 1]), (5, [0, 1, 2, 3, 4, 3, 2, 1])])
def test_a_loop_shows_no_frame_twice_in_turn(number: int, order: list[int]) -> None:
    assert [int(frame[0, 0, 0]) // 50 for frame in there_and_back(FRAMES[:number])] == order


@pytest.mark.parametrize(("frames_per_second", "milliseconds"), [(12.0, 80), (10.0, 100), (50.0, 20), (0.1, 10_000)])
def test_gif_has_every_frame_for_its_time_and_loops(
    tmp_path: Path, frames_per_second: float, milliseconds: int
) -> None:
    save_animation(FRAMES, tmp_path / "a.gif", frames_per_second, "what made it")
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 5  # type: ignore[attr-defined]
        assert gif.info["loop"] == 0
        assert gif.info["comment"] == b"what made it"
        frames = [
            (frame.info["duration"], frame.convert("RGB").getpixel((3, 3))) for frame in ImageSequence.Iterator(gif)
        ]
    assert frames == [(milliseconds, (level, level, level)) for level in range(0, 250, 50)]


def test_film_has_every_frame_for_its_time(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    save_animation(FRAMES, tmp_path / "a.mp4", 12.0, "what made it")
    with av.open(str(tmp_path / "a.mp4")) as film:
        assert film.metadata["comment"] == "what made it"
        shades = [frame.to_ndarray(format="rgb24").mean() for frame in film.decode(video=0)]
        assert float(film.streams.video[0].average_rate) == 12.0
    assert shades == pytest.approx([0, 50, 100, 150, 200], abs=3)
