"""From one face to another: the ends are the ends, and noise stays noise between."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.stand_ins import folder_for, save_photo, singles
from PIL import Image

from latentfaces.diffusion import DDPMSampler, DPMpp2MSampler, HeunSampler, Sampler
from latentfaces.errors import UserError
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks.interpolate import Interpolate, slerp

TASK = Interpolate(
    sampler=HeunSampler(40),
    image=None,
    to_image=None,
    num_images=4,
    seed=1,
    to_seed=2,
    animation="none",
    frames_per_second=12.0,
    batch_size=64,
)


def test_slerp_keeps_the_length_and_turns_evenly() -> None:
    start, end = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    for share in (0.0, 0.25, 0.5, 1.0):
        angle = torch.tensor(share * torch.pi / 2)
        assert torch.allclose(slerp(start, end, share), 2 * torch.stack([angle.cos(), angle.sin()]), atol=1e-6)
    assert torch.allclose(slerp(start, start, 0.3), start)


@pytest.mark.parametrize("sampler", [HeunSampler(40), DDPMSampler(20), DPMpp2MSampler(10, eta=1.0)])
@pytest.mark.parametrize("batch_size", [3, 64])
def test_ends_are_the_faces_of_the_seeds(
    pipeline: FacePipeline, sampler: Sampler, batch_size: int, tmp_path: Path
) -> None:
    task = replace(TASK, sampler=sampler, batch_size=batch_size)
    task(pipeline, folder_for(tmp_path / "row"))
    row = singles(tmp_path / "row")
    for seed, end in ((1, row[0]), (2, row[-1])):
        assert np.abs(pipeline.generate(1, seed, sampler)[0].int().numpy() - end).max() <= 1
    # Those between are nearer to their neighbours than the ends are to each other.
    assert max(np.abs(row[i] - row[i + 1]).mean() for i in range(3)) < np.abs(row[0] - row[3]).mean()
    assert not (tmp_path / "row" / "animation.gif").exists()


def test_ends_are_the_photos(pipeline: FacePipeline, faces: np.ndarray, tmp_path: Path) -> None:
    ends = [save_photo(faces[number], tmp_path / f"{number}.png") for number in (1, 2)]
    task = replace(TASK, image=ends[0], to_image=ends[1])
    task(pipeline, folder_for(tmp_path / "row"))
    row = singles(tmp_path / "row")
    for end, face in ((row[0], faces[1]), (row[-1], faces[2])):
        assert np.abs(end - face).mean() < 1  # of 255
    assert np.abs(row[0] - row[-1]).mean() > 10


def test_a_film_of_the_row_goes_there_and_back(pipeline: FacePipeline, tmp_path: Path) -> None:
    task = replace(TASK, animation="gif", frames_per_second=10.0, sampler=HeunSampler(3))
    assert task(pipeline, folder_for(tmp_path / "row")) == tmp_path / "row" / "grid.png"
    with Image.open(tmp_path / "row" / "animation.gif") as gif:
        assert gif.n_frames == 6  # type: ignore[attr-defined]
        assert gif.info["duration"] == 100
        assert b'"run"' in gif.info["comment"]


def test_half_a_pair_of_photos_is_refused() -> None:
    for half in ({"to_image": "you.png"}, {"image": "me.png"}):
        with pytest.raises(UserError, match="belong together"):
            replace(TASK, **half)


def test_a_missing_extra_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"latentfaces\[video\].*task.animation=gif"):
        replace(TASK, animation="mp4")


def test_a_face_and_itself_are_refused() -> None:
    with pytest.raises(UserError, match=r"task.to_seed=1 gives the face of seed=1 again"):
        replace(TASK, to_seed=1)
    assert replace(TASK, to_seed=1, to_number=2).to_number == 2


def test_a_sampler_without_a_way_back_is_refused(pipeline: FacePipeline, photo: str, tmp_path: Path) -> None:
    task = replace(TASK, image=photo, to_image=photo, sampler=DDPMSampler(3))
    with pytest.raises(UserError, match="sampler=heun"):
        task(pipeline, folder_for(tmp_path / "row"))
