"""Near a photo, by its noise."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.stand_ins import folder_for, read, save_photo, singles

from latentfaces.data.pack import Pack
from latentfaces.diffusion import DDPMSampler, HeunSampler
from latentfaces.errors import UserError
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks import Variations

TASK = Variations(
    sampler=HeunSampler(20), pack=None, image=None, num_images=4, num_photos=2, seed=3, amount=0.4, batch_size=64
)


def variations(task: Variations, pipeline: FacePipeline, folder: Path) -> np.ndarray:
    task(pipeline, folder_for(folder))
    return singles(folder)


def test_amount_is_how_far_they_are_from_the_photo(pipeline: FacePipeline, faces: np.ndarray, tmp_path: Path) -> None:
    image = save_photo(faces[1], tmp_path / "me.png")
    away = [
        np.abs(variations(replace(TASK, image=image, amount=a), pipeline, tmp_path / str(a)) - faces[1]).mean()
        for a in (0.001, 0.3, 0.7, 0.999)
    ]
    assert away[0] < 3
    assert away == sorted(away)
    fresh = pipeline.generate(4, 3, TASK.sampler).int().numpy()
    assert np.abs(singles(tmp_path / "0.999") - fresh).max() <= 3


def test_a_line_is_the_photo_and_its_variations_for_any_batch_size(
    pipeline: FacePipeline, pack: Pack, tmp_path: Path
) -> None:
    task = replace(TASK, pack=str(pack.folder))
    together = variations(task, pipeline, tmp_path / "together")
    by_three = variations(replace(task, batch_size=3), pipeline, tmp_path / "by_three")
    assert len(together) == 8
    assert np.abs(together - by_three).max() <= 1
    assert read(tmp_path / "together" / "grid.png").shape == (3, 2 * 18 + 2, 5 * 18 + 2)


def test_a_random_sampler_is_refused(pipeline: FacePipeline, photo: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sampler=heun"):
        replace(TASK, image=photo, sampler=DDPMSampler(2))(pipeline, folder_for(tmp_path / "out"))
