"""Sets of faces: counts, labels, audit, and the same bytes after a kill."""

import csv
import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.stand_ins import drawn, folder_for, read
from PIL import Image

from latentfaces.data.labels import read_labels
from latentfaces.data.pack import Pack
from latentfaces.data.sources import Photos
from latentfaces.diffusion import Conditioning, HeunSampler
from latentfaces.errors import UserError
from latentfaces.labels import Label
from latentfaces.marks import GENERATED
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks import Dataset, PictureFolder
from latentfaces.tasks.dataset import Audit
from latentfaces.tasks.identify import read_recipe, read_source

LABELS = [Label("Smiling", "binary"), Label("Hair", "category", ("dark", "red, long"))]
SMILES = {"Smiling": [0, 1]}


@pytest.fixture
def task(pack: Pack, tmp_path: Path) -> Dataset:
    """A set of a run whose images are under the licence of FFHQ."""
    run = tmp_path / "faces"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump({"stage": "ldm", "pack": str(pack.folder)}))
    manifest = {**pack.manifest, "source": {"name": "FFHQ", "licence": "CC BY-NC-SA 4.0"}}
    (pack.folder / "manifest.json").write_text(json.dumps(manifest))
    sampling: dict[str, Any] = {"sampler": HeunSampler(2), "num_images": 5, "seed": 3, "batch_size": 4}
    return Dataset(**sampling, folder=str(run), pack=str(pack.folder), labels=None, shards=None)


@pytest.fixture
def labelled(pipeline: FacePipeline, monkeypatch: pytest.MonkeyPatch) -> FacePipeline:
    """The pipeline with labels, which have no effect on its images."""
    conditioning = Conditioning(LABELS)
    monkeypatch.setattr(pipeline, "conditioning", conditioning)
    monkeypatch.setattr(pipeline, "label_rows", torch.tensor([[n % 2, n % 3 > 1] for n in range(120)]).float())
    monkeypatch.setattr(pipeline, "asked", conditioning.parse({}))
    return pipeline


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_cell_has_its_number_of_faces_and_the_labels_are_those_of_the_images(
    task: Dataset, labelled: FacePipeline, tmp_path: Path
) -> None:
    card = replace(task, labels=SMILES)(labelled, folder_for(tmp_path / "set"))
    rows = rows_of(tmp_path / "set")
    assert [row["Smiling"] for row in rows] == ["0"] * 5 + ["1"] * 5
    assert {row["Hair"] for row in rows} == {"dark", "red, long"}
    paths = sorted((tmp_path / "set" / "images").iterdir())
    assert [path.name for path in paths] == [row["name"] for row in rows]
    for path, row in zip(paths, rows, strict=True):
        recipe = read_recipe(path)
        assert recipe is not None
        assert recipe["labels_of_image"] == {"Smiling": float(row["Smiling"]), "Hair": row["Hair"]}
        assert recipe["labels"] == {"Smiling": int(row["Smiling"])}
        assert (recipe["index"], recipe["settings"]["seed"]) == (int(path.stem), 3)
        assert read_source(path) == GENERATED
    source = Photos(tmp_path / "set" / "images")
    pack = Pack(tmp_path, {"names": source.names, "num_images": 10, "split": {"val": []}})
    table = read_labels(str(tmp_path / "set" / "labels.csv"), source, pack)
    assert table.values[:, [label.name for label in table.labels].index("Smiling")].tolist() == [0] * 5 + [1] * 5
    text = card.read_text()
    assert text.startswith("---\nlicense: cc-by-nc-sa-4.0\n")
    assert "| 5 each of | Smiling=0; Smiling=1 |" in text
    assert "excludes commercial use. That applies to these images too." in text


def test_faces_are_those_of_generate(task: Dataset, pipeline: FacePipeline, tmp_path: Path) -> None:
    task(pipeline, folder_for(tmp_path / "set"))
    expected = pipeline.generate(20, 3, task.sampler).numpy().astype(int)
    for row in rows_of(tmp_path / "set"):
        assert np.abs(read(tmp_path / "set/images" / row["name"]) - expected[int(row["name"][:6])]).max() <= 1


class Given:
    """In the place of sampling: given images by number."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = torch.from_numpy(images)

    def __call__(self, names: list[tuple[int, int]], *_: Any) -> torch.Tensor:
        return self.images[[number for _, number in names]]


def test_copies_of_training_images_and_twins_are_left_out_and_counted(
    task: Dataset, pipeline: FacePipeline, pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit, images = Audit(pipeline, pack, 64), drawn(60, first=5000)
    new, _ = audit(audit.extract(torch.from_numpy(images)), torch.empty(0))
    unlike = images[new][:12]
    assert len(unlike) == 12
    images = np.stack([unlike[0], pack.images[1], pack.images[2][..., ::-1], unlike[0], *unlike[1:], unlike[1]])
    monkeypatch.setattr(pipeline, "faces", Given(images))
    for output, batch_size in (("one", 4), ("other", 64)):
        replace(task, batch_size=batch_size, num_images=12)(pipeline, folder_for(tmp_path / output))
        assert [row["name"] for row in rows_of(tmp_path / output)] == [
            "000000.png",
            *(f"{number:06d}.png" for number in range(4, 15)),
        ]
        state = json.loads((tmp_path / output / "set.json").read_text())
        assert state == {"faces": 12, "next": 15, "copies": 2, "twins": 1}
        assert "| copies of training images left out | 2 |" in (tmp_path / output / "README.md").read_text()
    monkeypatch.setattr(pipeline, "faces", Given(np.repeat(pack.images[1:2], 2000, axis=0)))
    with pytest.raises(UserError, match=r"Only 0 of 84 samples are new: the run repeats its training images"):
        task(pipeline, folder_for(tmp_path / "none"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("shards", [None, 3])
def test_a_killed_set_resumes_to_the_same_bytes(
    shards: int | None, task: Dataset, labelled: FacePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = replace(task, labels=SMILES, shards=shards)
    task(labelled, folder_for(tmp_path / "once" / "set"))
    write = PictureFolder.write
    for dies_after in (2, 5):
        left = iter(range(dies_after))

        def dying(self: PictureFolder, *args: Any, left: Iterator[int] = left, **more: Any) -> Path:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return write(self, *args, **more)

        with monkeypatch.context() as patch, folder_for(tmp_path / "killed" / "set") as pictures:
            patch.setattr(PictureFolder, "write", dying)
            with pytest.raises(KeyboardInterrupt):
                task(labelled, pictures)
    with monkeypatch.context() as patch, folder_for(tmp_path / "killed" / "set") as pictures:
        patch.setattr(Dataset, "card", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            task(labelled, pictures)
    with folder_for(tmp_path / "killed" / "set") as pictures:
        task(labelled, pictures)
    assert contents(tmp_path / "killed" / "set") == contents(tmp_path / "once" / "set")
    with (
        folder_for(tmp_path / "killed" / "set") as pictures,
        pytest.raises(UserError, match=r"set already contains a set"),
    ):
        task(labelled, pictures)


def test_shards_have_each_image_with_its_labels(task: Dataset, labelled: FacePipeline, tmp_path: Path) -> None:
    replace(task, labels=SMILES, shards=4)(labelled, folder_for(tmp_path / "set"))
    members = []
    for path in sorted((tmp_path / "set").glob("*.tar")):
        with tarfile.open(path) as archive:
            members.append(archive.getnames())
            for image, labels in zip(*[iter(archive.getmembers())] * 2, strict=True):
                assert Path(image.name).with_suffix(".json") == Path(labels.name)
                stored = json.load(archive.extractfile(labels))  # type: ignore[arg-type]
                with Image.open(archive.extractfile(image)) as picture:  # type: ignore[arg-type]
                    assert json.loads(picture.info["latentfaces"])["labels_of_image"] == stored
    assert [len(names) for names in members] == [8, 8, 4]
    assert [name for names in members for name in names[::2]] == [row["name"] for row in rows_of(tmp_path / "set")]
    files = {"README.md", "labels.csv", "set.json", *(f"00000{number}.tar" for number in range(3))}
    assert {path.name for path in (tmp_path / "set").iterdir()} == files


def test_options_that_do_not_fit_are_one_line(task: Dataset, pipeline: FacePipeline, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task.labels needs a run that was trained with data.labels"):
        replace(task, labels=SMILES)(pipeline, folder_for(tmp_path / "set"))
