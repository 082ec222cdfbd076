"""The nearest photos are the nearest, whichever way round they are."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.stand_ins import PixelVAE, folder_for, read, singles

from latentfaces.data.images import to_float
from latentfaces.data.latents import LatentCache
from latentfaces.data.pack import Pack
from latentfaces.diffusion import HeunSampler
from latentfaces.evaluation import generation
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks import Neighbours
from latentfaces.tasks.neighbours import NormalizedLatents, cached_moments

RNG = np.random.default_rng(0)
MOMENTS = RNG.normal(size=(30, 2, 2, 12, 2, 2)).astype(np.float16)
QUERIES = torch.from_numpy(RNG.normal(size=(4, 12, 2, 2)).astype(np.float32))


def latents(indices: np.ndarray) -> NormalizedLatents:
    return NormalizedLatents(PixelVAE(mean=0.2, std=0.7), MOMENTS, indices)  # type: ignore[arg-type]


def naive(query: torch.Tensor, candidates: np.ndarray) -> list[tuple[float, int, bool]]:
    """All distances, the nearer view of each photo, in float64."""
    photos = (MOMENTS[:, :, 0].astype(np.float64) - 0.2) / 0.7
    distances = np.sqrt(((photos - query.double().numpy()) ** 2).mean((2, 3, 4)))
    return sorted((min(distances[i]), int(i), bool(distances[i, 1] < distances[i, 0])) for i in candidates)


@pytest.mark.parametrize("at_once", [1, 500, 10**9])
def test_nearest_agrees_with_a_loop_however_many_are_read_at_once(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "VALUES_AT_ONCE", at_once)
    candidates = np.delete(np.arange(30), [0, 7, 8, 9, 10, 29])
    found = latents(candidates).nearest(QUERIES.flatten(1), 5)
    for number, query in enumerate(QUERIES):
        distances, indices, mirrored = zip(*naive(query, candidates)[:5], strict=True)
        assert candidates[found.indices[number]].tolist() == list(indices)
        assert found.views[number].bool().tolist() == list(mirrored)
        assert found.distances[number].tolist() == pytest.approx(list(distances), rel=1e-5)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_photos_own_latent_has_itself_at_no_distance(mirrored: bool) -> None:
    own = latents(np.array([3, 11]))[:][:, int(mirrored)]
    found = latents(np.arange(30)).nearest(own, 2)
    assert found.indices[:, 0].tolist() == [3, 11]
    assert found.views[:, 0].tolist() == [mirrored] * 2
    assert found.distances[:, 0].tolist() == pytest.approx([0.0, 0.0], abs=1e-7)
    assert (found.distances[:, 1] > 0.5).all()


def test_there_are_no_more_neighbors_than_images() -> None:
    found = latents(np.arange(3)).nearest(QUERIES.flatten(1), 5)
    assert [sorted(row) for row in found.indices.tolist()] == [[0, 1, 2]] * 4
    assert found.distances.isfinite().all()


TASK = Neighbours(sampler=HeunSampler(4), pack="", num_images=3, seed=0, num_neighbours=2, batch_size=2)


def test_faces_and_their_neighbours_are_shown_and_told(
    pipeline: FacePipeline, pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = replace(TASK, pack=str(pack.folder))
    grid = read(task(pipeline, folder_for(tmp_path / "out")))
    told = json.loads((tmp_path / "out" / "neighbours.json").read_text())
    assert f"median_distance_of_held_out_images {told['held_out_median_distance']:.4g}" in capsys.readouterr().out
    assert 0 < told["held_out_limit"] < told["held_out_median_distance"] < 1.5
    below = [face["neighbours"][0]["distance"] < told["held_out_limit"] for face in told["faces"]]
    assert told["memorized_fraction"] == pytest.approx(sum(below) / 3)
    assert (tmp_path / "out" / "distances.png").stat().st_size > 2000
    assert grid.shape == (3, 3 * 18 + 2, 3 * 18 + 2)
    assert np.abs(singles(tmp_path / "out") - pipeline.generate(3, 0, task.sampler).numpy().astype(int)).max() <= 1
    for line, face in enumerate(told["faces"]):
        assert [n["distance"] for n in face["neighbours"]] == sorted(n["distance"] for n in face["neighbours"])
        for column, neighbour in enumerate(face["neighbours"], start=1):
            assert neighbour["index"] in pack.train_indices
            assert neighbour["name"] == f"{neighbour['index']}.png"
            photo = pack.images[neighbour["index"]]
            shown = grid[:, 2 + 18 * line : 18 + 18 * line, 2 + 18 * column : 18 + 18 * column]
            assert np.array_equal(shown, photo[..., ::-1] if neighbour["mirrored"] else photo)


def test_a_model_that_repeats_a_training_photo_is_found_out(
    pipeline: FacePipeline, pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt = torch.from_numpy(pack.images[[1, 2, 3]][..., ::-1].copy())
    monkeypatch.setattr(pipeline, "faces", lambda *_: learnt)
    replace(TASK, pack=str(pack.folder))(pipeline, folder_for(tmp_path / "out"))
    told = json.loads((tmp_path / "out" / "neighbours.json").read_text())
    for index, face in zip((1, 2, 3), told["faces"], strict=True):
        first = face["neighbours"][0]
        assert (first["index"], first["mirrored"]) == (index, True)
        assert first["distance"] < 0.01  # the cache is in float16


def test_the_cache_is_that_of_training_and_made_once(
    pipeline: FacePipeline, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = cached_moments(pipeline, pack, 64)
    expected = pipeline.vae.encode(to_float(torch.from_numpy(pack.images[:4].copy()))).mean
    assert np.allclose(moments[:4, 0, 0], expected, atol=1e-3)
    monkeypatch.setattr(LatentCache, "encode_batch", None)
    assert np.array_equal(cached_moments(pipeline, pack, 64), moments)
