"""Photos that a model does not know are told from those that it does."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.stand_ins import CPU, SIDE, drawn

from latentfaces.data.pack import Pack
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks.familiarity import held_out_sample, restoration_errors, unfamiliar, warn_of_unfamiliar


def checkerboard(size: int) -> np.ndarray:
    rows, columns = np.mgrid[0:SIDE, 0:SIDE] // size
    return np.broadcast_to(((rows + columns) % 2 * 255).astype(np.uint8), (3, SIDE, SIDE))


NOISE = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)
STRANGE = {"noise": NOISE, "pixels": checkerboard(1), "squares": checkerboard(4)}


@pytest.mark.parametrize("pixels", STRANGE.values(), ids=STRANGE.keys())
def test_what_is_no_face_is_named(
    pixels: np.ndarray, pipeline: FacePipeline, pack: Pack, capsys: pytest.CaptureFixture[str]
) -> None:
    images = torch.from_numpy(np.stack([pixels, *drawn(2, first=7000)]))
    warn_of_unfamiliar(pipeline, ["odd.png", "a.png", "b.png"], images, str(pack.folder), 2)
    said = capsys.readouterr().err
    assert "odd.png does not look like" in said
    assert "more" not in said


def test_faces_of_the_same_kind_are_not(pipeline: FacePipeline, pack: Pack, capsys: pytest.CaptureFixture[str]) -> None:
    for images in (pack.images[pack.val_indices], drawn(100, first=8000)):
        names = [str(number) for number in range(len(images))]
        warn_of_unfamiliar(pipeline, names, torch.from_numpy(images.copy()), str(pack.folder), 64)
    assert capsys.readouterr().err == ""


def test_nothing_is_said_where_there_is_nothing_to_compare_with(
    pipeline: FacePipeline, pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = torch.from_numpy(NOISE[None])
    warn_of_unfamiliar(pipeline, ["odd.png"], images, str(tmp_path / "gone"), 1)
    warn_of_unfamiliar(pipeline, ["odd.png"], images, None, 1)
    warn_of_unfamiliar(FacePipeline(pipeline.vae, None, SIDE, CPU), ["odd.png"], images, str(pack.folder), 1)
    (pack.folder / "images.npy").unlink()
    warn_of_unfamiliar(pipeline, ["odd.png"], images, str(pack.folder), 1)
    assert capsys.readouterr().err == ""


def test_held_out_photos_are_spread_over_all(pack: Pack) -> None:
    sample = held_out_sample(str(pack.folder))
    assert sample is not None
    assert len(sample) == 60  # all that there are
    assert np.array_equal(sample.numpy(), pack.images[pack.val_indices])


def test_errors_of_a_photo_do_not_depend_on_its_company(pipeline: FacePipeline) -> None:
    images = torch.from_numpy(drawn(5))
    together = restoration_errors(pipeline, pipeline.denoiser, images, 5)
    alone = restoration_errors(pipeline, pipeline.denoiser, images, 1)
    assert together.shape == (5, 4)
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-9)


def test_a_few_odd_held_out_photos_do_not_raise_the_limit() -> None:
    usual = torch.exp(0.1 * torch.randn(64, 4, generator=torch.Generator().manual_seed(0)))
    odd = usual.clone()
    odd[:2] *= 100
    own = torch.tensor([[1.0] * 4, [1.1] * 4, [2.0] * 4, [0.1] * 4])
    assert unfamiliar(own, usual).tolist() == [False, False, True, False]
    assert unfamiliar(own, odd).tolist() == [False, False, True, False]


def test_photos_that_are_all_alike_leave_a_margin() -> None:
    assert unfamiliar(torch.tensor([[1.2] * 4, [1.3] * 4]), torch.ones(64, 4)).tolist() == [False, True]


def test_a_photo_that_the_vae_alone_fails_at_is_unlike_the_others() -> None:
    usual = torch.exp(0.1 * torch.randn(64, 4, generator=torch.Generator().manual_seed(0)))
    own = torch.tensor([[1.0, 1.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    assert unfamiliar(own, usual).tolist() == [True, False]
