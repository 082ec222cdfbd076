"""Photos to noise and back, where the way has a closed form."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.stand_ins import folder_for, read, save_photo, singles, skip_vae, white_pipeline

from latentfaces.data.images import to_float
from latentfaces.data.pack import Pack
from latentfaces.diffusion import DDPMSampler, HeunSampler
from latentfaces.errors import UserError
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks.invert import Invert


def test_noise_of_independent_values_is_the_latents_over_their_deviation(faces: np.ndarray) -> None:
    pipeline, photos = white_pipeline(std=0.5), torch.from_numpy(faces[:3])
    noise = noise_of(pipeline, photos, 200, 2)
    assert torch.allclose(noise, pipeline.encode(to_float(photos)) / 0.5, atol=2e-3)


def noise_of(pipeline: FacePipeline, photos: torch.Tensor, num_steps: int, batch_size: int) -> torch.Tensor:
    sampling = {"sampler": HeunSampler(num_steps), "num_images": 1, "seed": 0, "batch_size": batch_size}
    return Invert(**sampling, pack=None, image=None).noise_of(pipeline, photos)  # type: ignore[arg-type]


def told(printed: str) -> dict[str, float]:
    return {line.split()[0]: float(line.split()[1]) for line in printed.splitlines()}


def test_photos_come_back_and_their_noise_is_normal(
    pipeline: FacePipeline, pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = Invert(sampler=HeunSampler(60), pack=str(pack.folder), image=None, num_images=12, seed=0, batch_size=8)
    grid = task(pipeline, folder_for(tmp_path / "found"))
    values = told(capsys.readouterr().out)
    assert values["psnr"] > 30
    assert values["psnr_of_vae"] == float("inf")  # this one loses nothing
    assert values["psnr_of_inversion"] == values["psnr"]
    assert values["noise_mean"] == pytest.approx(0, abs=0.1)
    assert values["noise_std"] == pytest.approx(1, abs=0.15)
    noise = np.load(tmp_path / "found" / "noise.npy")
    assert (noise.dtype, noise.shape) == (np.float32, (12, 12, 8, 8))
    again = pipeline.images(torch.from_numpy(noise), task.sampler)
    assert np.abs(again.int().numpy() - singles(tmp_path / "found")).max() <= 1
    assert read(grid).shape == (3, 3 * 18 + 2, 12 * 18 + 2)


def test_noise_does_not_depend_on_the_batch(pipeline: FacePipeline, faces: np.ndarray) -> None:
    photos = torch.from_numpy(faces[:5])
    together, alone = (noise_of(pipeline, photos, 20, size) for size in (5, 1))
    assert torch.allclose(together, alone, atol=2e-3)


def test_a_vae_alone_and_a_random_sampler_are_refused(photo: str, tmp_path: Path) -> None:
    vae_alone = FacePipeline(skip_vae(), None, 16, torch.device("cpu"))
    with pytest.raises(UserError, match="model=ldm"):
        Invert(sampler=HeunSampler(2), pack=None, image=photo, num_images=1, seed=0, batch_size=1)(
            vae_alone, folder_for(tmp_path / "a")
        )
    with pytest.raises(UserError, match="sampler=heun"):
        Invert(sampler=DDPMSampler(2), pack=None, image=photo, num_images=1, seed=0, batch_size=1)(
            white_pipeline(), folder_for(tmp_path / "b")
        )


def test_a_photo_of_my_own(pipeline: FacePipeline, faces: np.ndarray, tmp_path: Path) -> None:
    image = save_photo(faces[1], tmp_path / "me.png")
    Invert(sampler=HeunSampler(60), pack=None, image=image, num_images=8, seed=0, batch_size=8)(
        pipeline, folder_for(tmp_path / "found")
    )
    assert np.abs(singles(tmp_path / "found")[0] - faces[1]).mean() < 1
