"""Edits by labels: on Gaussian data that the label shifts, the photo is shifted by as much."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.stand_ins import CPU, SIDE, PixelVAE, folder_for, save_photo, singles, write_pack
from torch import Tensor, nn

from latentfaces.diffusion import Conditioning, DDPMSampler, Denoiser, HeunSampler, RectifiedFlow
from latentfaces.diffusion.schedule import per_sample
from latentfaces.errors import UserError
from latentfaces.evaluation.features import EncoderFeatures
from latentfaces.labels import Label
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks import Edit
from latentfaces.tasks.relabel import usual_distance

STD, SHIFT = 0.3, 0.4
PHOTO = np.random.default_rng(0).integers(60, 130, (3, SIDE, SIDE), dtype=np.uint8)
TASK = Edit(
    sampler=HeunSampler(100, spacing="log_snr"), pack=None, image=None, num_images=8, num_photos=4, seed=0,
    strength=0.5, skips=0.0, batch_size=64,
)  # fmt: skip


class Shifted(Denoiser):
    """The best denoiser of data N(SHIFT, STD^2) where "bright" is 1, else N(0, STD^2)."""

    def __init__(self) -> None:
        super().__init__(nn.Identity(), RectifiedFlow())

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        assert condition is not None
        alpha, sigma = per_sample(self.schedule.alpha(t)), per_sample(self.schedule.sigma(t))
        mean = SHIFT * per_sample(condition[:, 0])
        x0 = mean + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x_t - alpha * mean)
        return self.target_of(x0, (x_t - alpha * x0) / sigma, t)


@pytest.fixture
def pipeline() -> FacePipeline:
    return FacePipeline(PixelVAE(), Shifted(), SIDE, CPU, conditioning=Conditioning([Label("bright", "binary")]))


@pytest.fixture
def photo(tmp_path: Path) -> str:
    return save_photo(PHOTO, tmp_path / "me.png")


def edited(task: Edit, pipeline: FacePipeline, folder: Path) -> np.ndarray:
    task(pipeline, folder_for(folder))
    (result,) = singles(folder)
    return result


def test_a_photo_is_moved_by_what_the_label_says(
    pipeline: FacePipeline, photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.stack([PHOTO, PHOTO // 2, PHOTO // 3, PHOTO])
    pack = write_pack(tmp_path / "pack", images, val_every=2)
    pipeline.ask({"bright": 1})
    task = replace(TASK, image=photo, pack=str(pack.folder), photo_labels={"bright": 0})
    result = edited(task, pipeline, tmp_path / "out")
    assert np.abs(result - PHOTO - SHIFT * 127.5).max() <= 2
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert float(printed["psnr_without_change"]) > 40
    brightness = abs(PHOTO.astype(float).mean() - (PHOTO // 3).mean())  # of the two held-out images
    assert float(printed["moved"].split()[0]) == pytest.approx(SHIFT * 127.5 / brightness, rel=0.2)


def test_the_label_that_the_photo_has_changes_nothing(pipeline: FacePipeline, photo: str, tmp_path: Path) -> None:
    pipeline.ask({"bright": 1})
    elsewhere = replace(TASK, image=photo, photo_labels={"bright": 1}, pack=str(tmp_path / "not on this machine"))
    result = edited(elsewhere, pipeline, tmp_path / "out")
    assert np.abs(result - PHOTO).max() <= 2


def test_outside_of_the_mask_the_photo_stays(pipeline: FacePipeline, photo: str, tmp_path: Path) -> None:
    mask = np.zeros((3, SIDE, SIDE), np.uint8)
    mask[:, 4:12, 4:12] = 255
    pipeline.ask({"bright": 1})
    task = replace(TASK, image=photo, mask=save_photo(mask, tmp_path / "mask.png"))
    changed = edited(task, pipeline, tmp_path / "out") - PHOTO
    assert not changed[mask == 0].any()
    assert np.abs(changed[:, 6:10, 6:10] - SHIFT * 127.5).max() <= 2


def test_a_pack_with_one_held_out_image_has_a_usual_distance(pipeline: FacePipeline, tmp_path: Path) -> None:
    images = np.stack([PHOTO, PHOTO // 2, PHOTO // 3])
    features = EncoderFeatures(pipeline.vae)
    first, second, _ = features(torch.from_numpy(images))
    pack = write_pack(tmp_path / "pack", images, val_every=3)
    assert usual_distance(features, pack) == pytest.approx(float((first - second).norm()))


def test_mistakes_name_the_key(pipeline: FacePipeline, photo: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task\.mask=hole\.png needs a photo"):
        replace(TASK, mask="hole.png")
    pipeline.ask({"bright": 1})
    with pytest.raises(UserError, match=r"sampler=heun"):
        edited(replace(TASK, image=photo, sampler=DDPMSampler(4)), pipeline, tmp_path / "random")
    with pytest.raises(UserError, match=r"Unknown label labels\.brigt"):
        edited(replace(TASK, image=photo, photo_labels={"brigt": 0}), pipeline, tmp_path / "unknown")
