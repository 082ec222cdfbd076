"""SDEdit: little noise keeps the photo, full noise forgets it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.stand_ins import (
    CPU,
    SCHEDULES,
    SIDE,
    White,
    drawn,
    folder_for,
    read,
    save_photo,
    singles,
    skip_vae,
    white_pipeline,
)

from latentfaces.data.pack import Pack
from latentfaces.diffusion import AutoGuidance, DDPMSampler, DPMpp2MSampler, HeunSampler, NoiseSchedule, Sampler
from latentfaces.errors import UserError
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks import Edit
from latentfaces.tasks.photos import read_photos

TASK = Edit(
    sampler=HeunSampler(10),
    pack=None,
    image=None,
    num_images=3,
    num_photos=4,
    seed=7,
    strength=0.5,
    skips=0.0,
    batch_size=64,
)


def edits(task: Edit, pipeline: FacePipeline, folder: Path) -> np.ndarray:
    task(pipeline, folder_for(folder))
    return singles(folder)


def test_nearly_no_noise_leaves_what_the_vae_makes_of_it(pipeline: FacePipeline, photo: str, tmp_path: Path) -> None:
    made = edits(replace(TASK, image=photo, strength=0.002, sampler=HeunSampler(1000)), pipeline, tmp_path / "out")
    assert np.abs(made - read(Path(photo))).max() <= 2


@pytest.mark.parametrize("sampler", [HeunSampler(4), DDPMSampler(4), DPMpp2MSampler(4)])
def test_at_full_strength_the_photo_is_forgotten(
    sampler: Sampler, pipeline: FacePipeline, photo: str, tmp_path: Path
) -> None:
    made = edits(replace(TASK, image=photo, strength=1.0, sampler=sampler), pipeline, tmp_path / "out")
    assert np.abs(made - pipeline.generate(3, 7, sampler).int().numpy()).max() <= 1


def test_more_strength_leads_further_away(pipeline: FacePipeline, photo: str, tmp_path: Path) -> None:
    away = [
        np.abs(edits(replace(TASK, image=photo, strength=s), pipeline, tmp_path / str(s)) - read(Path(photo))).mean()
        for s in (0.1, 0.4, 0.7, 1.0)
    ]
    assert away == sorted(away)
    assert away[0] < 0.3 * away[-1]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_strength_means_the_same_for_any_schedule(schedule: NoiseSchedule, photo: str, tmp_path: Path) -> None:
    pipeline = white_pipeline(schedule=schedule)
    strength = float(schedule.condition(schedule.time_at(torch.tensor(0.004, dtype=torch.float64))))
    task = replace(TASK, image=photo, strength=strength, sampler=HeunSampler(100, spacing="log_snr"))
    little = edits(task, pipeline, tmp_path / "little")
    assert np.abs(little - read(Path(photo))).max() <= 3
    halfway = edits(replace(TASK, image=photo, strength=0.5), pipeline, tmp_path / "half")
    fresh = pipeline.generate(3, 7, TASK.sampler).int().numpy()
    change = np.abs(halfway - read(Path(photo))).mean() / np.abs(fresh - read(Path(photo))).mean()
    assert 0.1 < change < 0.95  # half of the even scale neither keeps nor forgets the photo
    full = edits(replace(TASK, image=photo, strength=1.0), pipeline, tmp_path / "full")
    assert np.abs(full - pipeline.generate(3, 7, TASK.sampler).int().numpy()).max() <= 1


@pytest.mark.parametrize("sampler", [HeunSampler(4), DDPMSampler(4)])
def test_an_edit_depends_on_photo_seed_and_number_alone(
    sampler: Sampler, pipeline: FacePipeline, tmp_path: Path
) -> None:
    (tmp_path / "album").mkdir()
    for number, pixels in enumerate(drawn(3, first=60)):
        save_photo(pixels, tmp_path / "album" / f"{number}.png")
    task = replace(TASK, image=str(tmp_path / "album"), sampler=sampler)
    together = edits(task, pipeline, tmp_path / "together")
    by_two = edits(replace(task, batch_size=2), pipeline, tmp_path / "by_two")
    assert len(together) == 9
    assert np.abs(together - by_two).max() <= 1
    names = read_photos(task.image, SIDE, 3, task.seed).names
    alone = replace(task, image=str(tmp_path / "album" / names[1]), num_images=2)
    assert np.abs(edits(alone, pipeline, tmp_path / "alone") - together[3:5]).max() <= 1
    other = edits(replace(task, seed=8, num_photos=1), pipeline, tmp_path / "other")
    assert np.abs(other[0] - together[0]).max() > 1


def test_held_out_photos_are_edited_without_a_picture(pipeline: FacePipeline, pack: Pack, tmp_path: Path) -> None:
    task = replace(TASK, pack=str(pack.folder), num_photos=2)
    grid = read(task(pipeline, folder_for(tmp_path / "out")))
    assert grid.shape == (3, 2 * 18 + 2, 4 * 18 + 2)  # two lines of photo and three edits
    first = grid[:, 2:18, 2:18]
    assert any(np.array_equal(first, pack.images[index]) for index in pack.val_indices)


def test_skips_hand_on_the_photos_detail(photo: str, tmp_path: Path) -> None:
    pipeline = FacePipeline(skip_vae(), White(1.0), SIDE, CPU)
    image = read_photos(photo, SIDE, 1, 0).images
    for strength in (0.0, 0.5, 1.0):
        task = replace(TASK, image=photo, strength=0.001, skips=strength, num_images=1, sampler=HeunSampler(2000))
        expected = task.reconstructed(pipeline, image, strength)[0].int().numpy()
        assert np.abs(edits(task, pipeline, tmp_path / str(strength))[0] - expected).max() <= 2


def test_a_strength_or_interval_without_a_sampling_time_is_an_error(
    pipeline: FacePipeline, photo: str, tmp_path: Path
) -> None:
    task = replace(TASK, image=photo, sampler=HeunSampler(10))
    with pytest.raises(UserError, match=r"task.strength=0.05 is below all of the 10 sampling times"):
        replace(task, strength=0.05)(pipeline, folder_for(tmp_path / "strength"))
    guided = white_pipeline()
    guided.guidance = AutoGuidance(2.0, start=1.0, end=0.6)  # above all times of this edit
    guided.find_guide = lambda: White(0.5)
    with pytest.raises(UserError, match=r"guidance.start=1, guidance.end=0.6 contain none"):
        replace(task, strength=0.5)(guided, folder_for(tmp_path / "interval"))


def test_skips_need_a_vae_that_has_them(pipeline: FacePipeline, photo: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task.skips=0.5.*no skip connections"):
        replace(TASK, image=photo, skips=0.5)(pipeline, folder_for(tmp_path / "out"))
