"""Batches end to end: order from the seed, ranks that share, latents in place of pictures."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latentfaces.data import FFHQDataModule
from latentfaces.data.datasets import ImageBatch, LatentBatch
from latentfaces.data.prefetch import Prefetched
from latentfaces.errors import UserError

MakeData = Callable[..., FFHQDataModule]


@pytest.fixture
def make_data(tmp_path: Path) -> MakeData:
    """`make_data(seed=0, ...)` gives 40 drawn faces: 36 to train on, 4 held out."""

    def make(**options: Any) -> FFHQDataModule:
        options = {"batch_size": 6, "horizontal_flip": False} | options
        data = FFHQDataModule.from_drawn_faces(40, folder=tmp_path / "data", resolution=16, **options)
        data.prepare_data()
        data.setup()
        return data

    return make


def pictures(data: FFHQDataModule, batches: Iterable[Any]) -> list[int]:
    """Return which pictures of the pack are in the batches, in order."""
    by_bytes = {image.tobytes(): index for index, image in enumerate(data.pack().images)}
    return [by_bytes[image.numpy().tobytes()] for batch in batches for image in batch.images]


def floats(data: FFHQDataModule) -> Tensor:
    """Return an epoch as the training step gets it."""
    return torch.cat([data.on_after_batch_transfer(batch, 0).clone() for batch in data.train_dataloader()])


def encode(images: Tensor) -> tuple[Tensor, Tensor]:
    """Give block means, and one as the deviation."""
    mean = F.avg_pool2d(images, 8)
    return mean, torch.ones_like(mean)


def test_epoch_takes_each_training_picture_once(make_data: MakeData) -> None:
    data = make_data()
    batches = list(data.train_dataloader())
    images = [batch.images for batch in batches if isinstance(batch, ImageBatch)]
    assert [(tuple(image.shape), image.dtype) for image in images] == [((6, 3, 16, 16), torch.uint8)] * 6
    assert sorted(pictures(data, batches)) == data.pack().train_indices.tolist()


def test_epochs_differ_and_the_same_seed_gives_the_same_stream(make_data: MakeData) -> None:
    def stream(seed: int) -> list[list[int]]:
        data = make_data(seed=seed)
        loader = data.train_dataloader()
        return [pictures(data, list(loader)) for _ in range(2)]

    first, second = stream(0)
    assert first != second
    assert stream(0) == [first, second]
    assert first not in stream(1)


def test_mirroring_follows_the_seed_too(make_data: MakeData) -> None:
    def stream(**options: Any) -> Tensor:
        return floats(make_data(**options))

    assert torch.equal(stream(horizontal_flip=True), stream(horizontal_flip=True))
    differs = (stream(horizontal_flip=True) != stream(horizontal_flip=False)).flatten(1).any(1)
    assert 9 < differs.sum() < 27  # 18 of 36, to 3 deviations
    assert torch.equal(stream(horizontal_flip=True)[differs], stream(horizontal_flip=False)[differs].flip(-1))


def test_ranks_share_an_epoch_and_the_validation(make_data: MakeData, monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = [], []
    monkeypatch.setattr(FFHQDataModule, "num_ranks", 2)
    for rank in range(2):
        monkeypatch.setattr(FFHQDataModule, "rank", rank)
        data = make_data()
        train.append(pictures(data, list(data.train_dataloader())))
        val.append(pictures(data, list(data.val_dataloader())))
    assert set(train[0]).isdisjoint(train[1])
    assert sorted(train[0] + train[1]) == data.pack().train_indices.tolist()
    assert sorted(val[0] + val[1]) == data.pack().val_indices.tolist()


def test_state_goes_on_in_the_middle_of_an_epoch(make_data: MakeData) -> None:
    straight, resumed = make_data(), make_data()
    loader = straight.train_dataloader()
    epochs = [list(loader) for _ in range(2)]
    resumed.load_state_dict({"epoch": 1, "batch": 4})
    assert pictures(resumed, list(resumed.train_dataloader())) == pictures(straight, epochs[1][4:])


def test_making_batches_leaves_the_global_generator_alone(make_data: MakeData) -> None:
    data = make_data(horizontal_flip=True)
    before = torch.get_rng_state()
    assert len(list(data.train_dataloader())) == 6
    assert torch.equal(torch.get_rng_state(), before)


def test_ranks_and_epochs_all_differ(make_data: MakeData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FFHQDataModule, "num_ranks", 2)
    epochs: list[list[list[int]]] = []
    for rank in range(2):
        monkeypatch.setattr(FFHQDataModule, "rank", rank)
        data = make_data(batch_size=3)
        loader = data.train_dataloader()
        epochs.append([pictures(data, loader) for _ in range(2)])
    everything = data.pack().train_indices.tolist()
    for first, second in zip(*epochs, strict=True):
        assert sorted(first + second) == everything
    assert epochs[0][0] != epochs[0][1]
    assert sorted(epochs[0][0]) != sorted(epochs[0][1])  # ranks do not keep their half from epoch to epoch


def test_resume_finds_the_next_batch_whatever_has_been_made_ahead(make_data: MakeData) -> None:
    straight, resumed = make_data(), make_data()
    loader = straight.train_dataloader()
    epochs = [pictures(straight, loader) for _ in range(3)]
    resumed.load_state_dict({"epoch": 1, "batch": 4})
    loader = resumed.train_dataloader()
    assert [pictures(resumed, loader) for _ in range(2)] == [epochs[1][24:], epochs[2]]


def test_batches_are_made_one_ahead(make_data: MakeData) -> None:
    loader = make_data().train_dataloader()
    assert isinstance(loader, Prefetched)
    assert len(loader) == 6


def test_validation_is_spaced_and_the_test_takes_all(make_data: MakeData) -> None:
    data = make_data(val_every=4, num_val_images=4)
    assert data.pack().val_indices.tolist() == [0, 4, 8, 12, 16, 20, 24, 28, 32, 36]
    assert pictures(data, list(data.val_dataloader())) == [0, 12, 24, 36]
    assert pictures(data, list(data.test_dataloader())) == data.pack().val_indices.tolist()


def test_bytes_become_floats_on_the_device_and_latents_stay_what_they_are(make_data: MakeData) -> None:
    data = make_data()
    ends = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    for mirrored, expected in ((False, [-1, 1]), (True, [1, -1])):
        batch = ImageBatch(ends, torch.tensor([mirrored]), np.array([3]))
        assert data.on_after_batch_transfer(batch, 0).flatten().tolist() == pytest.approx(expected)
        assert data.photos(data.rows) == [data.pack().manifest["names"][3]]
    halves = data.on_after_batch_transfer(LatentBatch(torch.tensor([0.5, 3.0], dtype=torch.float16), np.array([1])), 0)
    assert (halves.dtype, halves.tolist()) == (torch.float32, [0.5, 3.0])


def test_latents_come_in_the_order_of_the_pictures(make_data: MakeData) -> None:
    data = make_data(horizontal_flip=True)
    images = floats(data)
    data.use_latents("key", encode)
    data.prepare_data()
    data.setup()
    moments = floats(data)
    assert torch.allclose(moments[:, 0], encode(images)[0], atol=1e-3)
    assert (moments[:, 1] == 1).all()


def test_filter_reaches_the_pack(photos: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"folder": tmp_path / "data", "resolution": 5, "batch_size": 2}
    packs = [
        FFHQDataModule.from_photos(photos, **options | {"folder": tmp_path / name}, filter=name).pack().images[:]
        for name in ("box", "lanczos")
    ]
    assert not np.array_equal(*packs)
    with pytest.raises(UserError, match=r"data\.filter=box, not auto"):
        FFHQDataModule.from_photos(photos, **options | {"folder": tmp_path / "box"}).pack()


@pytest.mark.parametrize("key", ["batch_size", "resolution", "val_every"])
def test_number_below_one_is_refused_by_its_key(tmp_path: Path, key: str) -> None:
    options: dict[str, Any] = {"folder": tmp_path, "resolution": 8, "batch_size": 2} | {key: 0}
    with pytest.raises(UserError, match=rf"data\.{key}=0 must be at least 1"):
        FFHQDataModule.from_drawn_faces(40, **options)


def test_batch_larger_than_the_pictures_is_refused(tmp_path: Path) -> None:
    data = FFHQDataModule.from_drawn_faces(40, folder=tmp_path / "data", resolution=16, batch_size=37)
    with pytest.raises(UserError, match=r"36 pictures to train on and 4 held out.*data\.batch_size"):
        data.pack()


def test_photos_that_are_not_there_are_refused_by_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root=.*nowhere does not exist"):
        FFHQDataModule.from_photos(tmp_path / "nowhere", folder=tmp_path, resolution=8, batch_size=2)
