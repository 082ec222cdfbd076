"""A hole is filled, and nothing else is touched."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.stand_ins import (
    CPU,
    SCHEDULES,
    SIDE,
    GaussianDenoiser,
    PixelVAE,
    White,
    drawn,
    folder_for,
    read,
    save_photo,
    singles,
    skip_vae,
    white_pipeline,
)
from PIL import Image

from latentfaces.autoencoder import VAE
from latentfaces.data.images import to_float
from latentfaces.diffusion import (
    AutoGuidance,
    DDPMSampler,
    DPMpp2MSampler,
    EulerSampler,
    HeunSampler,
    RectifiedFlow,
    Sampler,
    VPCosine,
)
from latentfaces.diffusion.schedule import NoiseSchedule
from latentfaces.errors import UserError
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks import Inpaint
from latentfaces.tasks.inpaint import composed, grown, hidden, noised_again

HOLE = np.zeros((SIDE, SIDE), bool)
HOLE[5:12, 3:10] = True


@pytest.fixture
def task(photo: str, tmp_path: Path) -> Inpaint:
    Image.fromarray(HOLE).save(tmp_path / "hole.png")
    mask = str(tmp_path / "hole.png")
    return Inpaint(
        sampler=HeunSampler(6),
        image=photo,
        mask=mask,
        num_images=3,
        num_photos=4,
        seed=0,
        resample=1,
        skips=None,
        feather=None,
        batch_size=64,
    )


def filled(task: Inpaint, pipeline: FacePipeline, folder: Path) -> np.ndarray:
    task(pipeline, folder_for(folder))
    return singles(folder)


SAMPLERS: list[Sampler] = [EulerSampler(5), HeunSampler(5), DDPMSampler(5), DPMpp2MSampler(5)]


@pytest.mark.parametrize("resample", [1, 3])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_pixel_outside_the_hole_is_the_photos(
    sampler: Sampler, resample: int, task: Inpaint, pipeline: FacePipeline, tmp_path: Path
) -> None:
    made = filled(replace(task, sampler=sampler, resample=resample), pipeline, tmp_path / "out")
    original = read(Path(str(task.image)))
    assert np.array_equal(made[:, :, ~HOLE], np.stack([original[:, ~HOLE]] * 3))
    assert np.abs(made[:, :, HOLE] - original[:, HOLE]).mean() > 1
    assert not np.array_equal(made[0], made[1])


@pytest.mark.parametrize("resample", [1, 2])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_is_kept_stays_in_the_latents_of_any_schedule(
    schedule: NoiseSchedule, resample: int, task: Inpaint, faces: np.ndarray
) -> None:
    pipeline = white_pipeline(schedule=schedule)
    x0 = pipeline.encode(to_float(torch.from_numpy(faces[:2])))
    hole = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    hole[..., 2:6, 2:6] = True
    task = replace(task, resample=resample, sampler=HeunSampler(40))
    latents = task.filled(pipeline, x0, hole, [(0, 0), (0, 1)])
    kept, new = ~hole.expand_as(x0), hole.expand_as(x0)
    assert torch.equal(latents[kept], x0[kept])
    assert latents[new].std() == pytest.approx(0.5, rel=0.15)  # as the data are


@pytest.mark.parametrize("feather", [0, 2])
def test_what_was_in_the_hole_is_not_seen(feather: int, task: Inpaint, pipeline: FacePipeline, tmp_path: Path) -> None:
    # The latents of this VAE see no further than their own pixels.
    wider = HOLE.reshape(8, 2, 8, 2).any((1, 3)).repeat(2, 0).repeat(2, 1)
    pixels = read(Path(str(task.image))).astype(np.uint8)
    Image.fromarray(wider).save(str(task.mask))
    first = filled(replace(task, feather=feather), pipeline, tmp_path / "first")
    pixels[:, wider] = 255 - pixels[:, wider]
    other = replace(task, feather=feather, image=save_photo(pixels, tmp_path / "other.png"))
    assert np.array_equal(first, filled(other, pipeline, tmp_path / "second"))


@pytest.mark.parametrize("skips", [False, True])
def test_nothing_in_the_hole_reaches_the_result_through_the_encoder(
    skips: bool, task: Inpaint, photo: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    vae = skip_vae() if skips else VAE(2, 8, (1, 2), 1, attention=True).eval()
    pipeline = FacePipeline(vae, White(1.0), SIDE, CPU)
    pixels = read(Path(photo)).astype(np.uint8)
    results = []
    for value in (0, 255):
        pixels[:, HOLE] = value
        task = replace(task, image=save_photo(pixels, tmp_path / f"{value}.png"))
        results.append(filled(task, pipeline, tmp_path / f"out{value}"))
    assert np.array_equal(*results)


def test_the_hole_has_the_mean_color_around_it() -> None:
    photo = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    photo[..., 8:] = 200
    hole = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    hole[..., 4:12, 2:6] = True
    visible = hidden(photo, hole)
    assert torch.equal(visible[~hole.expand_as(photo)], photo[~hole.expand_as(photo)])
    assert visible[..., 5:11, 2:4].max() < 60
    everything = torch.ones_like(hole)
    assert (hidden(photo, everything) == 127).all()
    larger = torch.zeros_like(hole)
    larger[..., 3:13, 1:7] = True
    assert torch.equal(grown(hole), larger)


@pytest.mark.parametrize("resample", [1, 2])
def test_an_interval_without_a_sampling_time_is_an_error(resample: int, task: Inpaint, tmp_path: Path) -> None:
    pipeline = white_pipeline()
    pipeline.guidance, pipeline.find_guide = AutoGuidance(2.0, start=0.95, end=0.9), lambda: White(0.5)
    with pytest.raises(UserError, match=r"guidance.start=0.95, guidance.end=0.9 contain none"):
        replace(task, resample=resample)(pipeline, folder_for(tmp_path / "out"))


@pytest.mark.parametrize("sampler", [HeunSampler(4), DDPMSampler(4)])
@pytest.mark.parametrize("resample", [1, 3])
def test_a_filling_depends_on_seed_and_number_alone(
    sampler: Sampler, resample: int, task: Inpaint, pipeline: FacePipeline, tmp_path: Path
) -> None:
    task = replace(task, sampler=sampler, resample=resample)
    together = filled(task, pipeline, tmp_path / "together")
    one_by_one = filled(replace(task, batch_size=1), pipeline, tmp_path / "one_by_one")
    assert np.abs(together - one_by_one).max() <= 1
    other = filled(replace(task, seed=1), pipeline, tmp_path / "other")
    assert np.abs(together - other).max() > 1


def flat_pipeline() -> FacePipeline:
    """Pictures of one grey level each: what is seen says all of what is not."""
    values = 12 * 8 * 8
    axes = torch.linalg.qr(torch.cat([torch.ones(values, 1), torch.eye(values)[:, 1:]], 1)).Q
    variances = torch.full((values,), 1e-6)
    variances[0] = values * 0.25
    return FacePipeline(PixelVAE(), GaussianDenoiser(torch.zeros(12, 8, 8), axes, variances), SIDE, CPU)


def test_resampling_fits_the_filling_to_what_is_known(task: Inpaint, tmp_path: Path) -> None:
    grey = save_photo(np.full((3, SIDE, SIDE), 180, np.uint8), tmp_path / "grey.png")
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:, 6:] = True
    Image.fromarray(mask).save(str(task.mask))
    task = replace(task, image=grey, sampler=DDPMSampler(12), num_images=16, feather=0)
    error = [
        np.abs(filled(replace(task, resample=r), flat_pipeline(), tmp_path / str(r))[:, :, mask] - 180.0).mean()
        for r in (1, 6)
    ]
    assert error[1] < 0.6 * error[0]
    assert error[1] < 12


@pytest.mark.parametrize("schedule", [RectifiedFlow(), VPCosine()])
@pytest.mark.parametrize(("s", "t"), [(0.2, 0.5), (0.5, 0.9), (0.7, 1.0)])
def test_noise_added_again_gives_what_would_have_been_there(schedule: NoiseSchedule, s: float, t: float) -> None:
    generator = torch.Generator().manual_seed(0)
    noise, more = (torch.randn(200_000, 1, 1, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    x_s = schedule.add_noise(torch.full_like(noise, 2.0), noise, torch.full((200_000,), s, dtype=torch.float64))
    x_t = noised_again(schedule, x_s, s, t, more)
    at_t = torch.tensor(t, dtype=torch.float64)
    assert x_t.mean() == pytest.approx(2 * float(schedule.alpha(at_t)), abs=0.01)
    assert x_t.std() == pytest.approx(float(schedule.sigma(at_t)), rel=0.01)


def test_the_photo_fades_into_the_filling_within_the_hole() -> None:
    photo, face = torch.zeros(1, 3, 1, 5, dtype=torch.uint8), torch.full((1, 3, 1, 5), 200, dtype=torch.uint8)
    hole = torch.tensor([False, True, True, True, True]).view(1, 1, 1, 5)
    weight = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]).view(1, 1, 1, 5)
    assert composed(photo, face, hole, weight)[0, 0, 0].tolist() == [0, 50, 100, 150, 200]


def test_the_grid_shows_photo_hole_and_fillings(task: Inpaint, pipeline: FacePipeline, tmp_path: Path) -> None:
    (tmp_path / "album").mkdir()
    for number, pixels in enumerate(drawn(2, first=70)):
        save_photo(pixels, tmp_path / "album" / f"{number}.png")
    grid = read(replace(task, image=str(tmp_path / "album"))(pipeline, folder_for(tmp_path / "out")))
    assert grid.shape == (3, 2 * 18 + 2, 5 * 18 + 2)
    photo, holed = grid[:, 2:18, 2:18], grid[:, 2:18, 20:36]
    assert np.array_equal(photo[:, ~HOLE], holed[:, ~HOLE])
    assert (holed[:, HOLE] == 127).all()


def test_skips_hand_on_the_detail_of_what_is_kept_alone(
    task: Inpaint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    vae = skip_vae()
    pipeline = FacePipeline(vae, White(1.0), SIDE, CPU)
    seen: list[list[torch.Tensor] | None] = []
    decode = vae.decode

    def spy(latents: torch.Tensor, skips: list[torch.Tensor] | None = None, *how: bool) -> torch.Tensor:
        seen.append(skips)
        return decode(latents, skips, *how)

    monkeypatch.setattr(vae, "decode", spy)
    for skips in (None, 0.5, 0.0):
        filled(replace(task, skips=skips, num_images=1), pipeline, tmp_path / str(skips))
    whole, half, none = seen
    assert none is None
    assert whole is not None
    assert half is not None
    assert torch.equal(whole[0], 2 * half[0])
    assert not whole[0][..., torch.from_numpy(HOLE)].any()
    assert whole[0][..., torch.from_numpy(~HOLE)].any()


def test_what_makes_no_sense_is_refused_by_key(task: Inpaint, pipeline: FacePipeline, tmp_path: Path) -> None:
    for change, clue in (
        ({"image": None}, "image="),
        ({"mask": None}, "task.mask="),
    ):
        with pytest.raises(UserError, match=clue):
            replace(task, **change)
    with pytest.raises(UserError, match=r"task.skips=1.0.*no skip connections"):
        replace(task, skips=1.0)(pipeline, folder_for(tmp_path / "out"))
