"""Folders of outputs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.stand_ins import fitted_pipeline, folder_for, write_pack
from torch import Tensor

from latentfaces.data.pack import Pack
from latentfaces.diffusion import EulerSampler
from latentfaces.errors import UserError
from latentfaces.tasks import Tune, tune
from latentfaces.tasks.output import new_folder, npz_writer


def test_two_commands_of_one_second_get_two_folders(tmp_path: Path) -> None:
    wanted = tmp_path / "samples" / "generate_2026-11-29_10-00-00"
    folders = [new_folder(wanted) for _ in range(3)]
    assert [folder.name for folder in folders] == [wanted.name, f"{wanted.name}_2", f"{wanted.name}_3"]
    assert all(folder.is_dir() for folder in folders)


def test_two_commands_do_not_write_into_one_folder_at_a_time(tmp_path: Path) -> None:
    with (
        folder_for(tmp_path / "out"),
        pytest.raises(UserError, match=r"out is in use by another command. Choose another folder."),
    ):
        folder_for(tmp_path / "out")
    with folder_for(tmp_path / "out"):
        pass
    with pytest.raises(KeyboardInterrupt), folder_for(tmp_path / "outputs" / "failed"):
        raise KeyboardInterrupt
    assert not (tmp_path / "outputs" / "failed").exists()


def test_an_array_that_fails_leaves_no_part(tmp_path: Path) -> None:
    def write() -> None:
        with npz_writer(tmp_path / "images.npz", (2, 4, 4, 3)) as append:
            append(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == []


def tuning(pack: Pack) -> Tune:
    sampling: dict[str, Any] = {"sampler": EulerSampler(2), "num_images": 32, "seed": 0, "batch_size": 32}
    search: dict[str, Any] = {"weights": [1.5], "emas": [], "samplers": {}, "features": "encoder"}
    return Tune(**sampling, **search, feature_weights=None, folder="", pack=str(pack.folder))


def test_tuning_does_not_see_the_images_that_evaluation_reports_on(
    faces: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = write_pack(tmp_path / "data" / "half-16", faces, val_every=5)
    assert sorted([*pack.tuning_indices, *pack.test_indices]) == pack.val_indices.tolist()
    seen: list[Tensor] = []

    def distance(extract: object, real: Tensor) -> None:
        seen.append(real)
        raise UserError("stop here")

    monkeypatch.setattr(tune, "open_run", lambda folder: None)
    monkeypatch.setattr(tune, "features_by_name", lambda *_: None)
    monkeypatch.setattr(tune, "FeatureDistance", distance)
    task = tuning(pack)
    with pytest.raises(UserError, match="stop here"):
        task(fitted_pipeline(faces), folder_for(tmp_path / "out"))
    reported = {pack.images[index].tobytes() for index in pack.test_indices}
    assert len(seen[0]) == 30
    assert not reported & {image.numpy().tobytes() for image in seen[0]}
