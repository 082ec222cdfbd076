"""Data module: order of batches, ranks, latents, rejected data and resumed trainings."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from latentfaces.data import FFHQDataModule
from latentfaces.data.datasets import ImageBatch, LatentBatch
from latentfaces.data.prefetch import Prefetched
from latentfaces.errors import UserError
from latentfaces.training.callbacks import BestCheckpoint, ExactResume, LastCheckpoint

MakeData = Callable[..., FFHQDataModule]


@pytest.fixture
def make_data(tmp_path: Path) -> MakeData:
    """Return `make_data(seed=0, ...)`, which creates 40 synthetic faces: 36 for training, 4 held out."""

    def make(**options: Any) -> FFHQDataModule:
        options = {"batch_size": 6, "horizontal_flip": False} | options
        data = FFHQDataModule.from_drawn_faces(40, folder=tmp_path / "data", resolution=16, **options)
        data.prepare_data()
        data.setup()
        return data

    return make


def pictures(data: FFHQDataModule, batches: Iterable[Any]) -> list[int]:
    """Return the indices in the pack of the images in the batches, in order."""
    by_bytes = {image.tobytes(): index for index, image in enumerate(data.pack().images)}
    return [by_bytes[image.numpy().tobytes()] for batch in batches for image in batch.images]


def floats(data: FFHQDataModule) -> Tensor:
    """Return the inputs of an epoch's training steps."""
    return torch.cat([data.on_after_batch_transfer(batch, 0).clone() for batch in data.train_dataloader()])


def encode(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return block means, and one as the std."""
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
    assert 9 < differs.sum() < 27  # 18 of 36, to 3 standard errors
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
    resumed.load_state_dict({"epoch": 1, "taken": 24})
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
    resumed.load_state_dict({"epoch": 1, "taken": 24})
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


@pytest.mark.parametrize("flip", [False, True])
def test_latents_come_in_the_order_of_the_pictures(make_data: MakeData, flip: bool) -> None:
    data = make_data(horizontal_flip=flip)
    images = floats(data)
    data.use_latents("key", encode)
    data.prepare_data()
    data.setup()
    moments = floats(data)
    assert torch.allclose(moments[:, 0], encode(images)[0], atol=1e-3)
    assert (moments[:, 1] == 1).all()
    assert data.train_dataset.moments.shape[1] == 1 + flip  # type: ignore[attr-defined]


def labelled(data: FFHQDataModule, *names: str) -> FFHQDataModule:
    """Return the data module with batches of latents and labels."""
    data.use_labels(names or None)
    data.use_latents("key", encode)
    data.prepare_data()
    data.setup()
    return data


def test_batches_of_latents_have_the_labels_of_their_images(make_data: MakeData) -> None:
    data = labelled(make_data(labels="auto", horizontal_flip=True), "age", "smile")
    assert data.label_table is not None
    batches = list(data.train_dataloader())
    moments, labels = data.on_after_batch_transfer(batches[1], 0)
    assert (moments.shape, labels.shape, labels.dtype) == ((6, 2, 3, 2, 2), (6, 2), torch.float32)
    expected = torch.from_numpy(data.label_table.values[batches[1].rows])
    assert torch.equal(labels.nan_to_num(-9), expected.nan_to_num(-9))
    # Which images are mirrored changes neither their order nor their labels.
    plain = list(labelled(make_data(labels="auto", horizontal_flip=False), "age", "smile").train_dataloader())
    assert torch.equal(plain[1].labels.nan_to_num(-9), batches[1].labels.nan_to_num(-9))
    held_out = torch.cat([batch.labels for batch in data.test_dataloader()])
    assert torch.equal(held_out[:, 0], torch.from_numpy(data.label_table.values[data.pack().val_indices, 0]))


def test_resumed_run_has_the_labels_of_the_next_batch(make_data: MakeData) -> None:
    straight, resumed = (labelled(make_data(labels="auto"), "age") for _ in range(2))
    resumed.load_state_dict({"epoch": 0, "taken": 24})
    expected = [batch.labels for batch in straight.train_dataloader()][4:]
    assert torch.equal(torch.cat([batch.labels for batch in resumed.train_dataloader()]), torch.cat(expected))


def test_labels_are_summarized_and_need_no_packing(make_data: MakeData, capsys: pytest.CaptureFixture[str]) -> None:
    packed = make_data().pack()
    data = make_data(labels="auto", label_types={"age": "number"})
    capsys.readouterr()
    table = data.use_labels(["glasses"])
    assert [label.name for label in table.labels] == ["glasses"]
    assert "Labels: 40 of 40 images have a row in auto\n  glasses  binary" in capsys.readouterr().out
    assert data.pack().manifest == packed.manifest
    with pytest.raises(UserError, match=r"Add data\.labels=FILE"):
        make_data().use_labels(["glasses"])


@pytest.mark.parametrize("flip", [True, False])
def test_labels_of_left_and_right_do_not_fit_mirror_images(
    flip: bool, make_data: MakeData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names, path = make_data().source.names, tmp_path / "labels.csv"
    path.write_text(
        "name,head_yaw,bright\n" + "".join(f"{name},{number},{number}\n" for number, name in enumerate(names))
    )
    make_data(labels=str(path), horizontal_flip=flip).use_labels()
    assert ("Mirror images make head_yaw wrong. Use data.horizontal_flip=false" in capsys.readouterr().err) == flip


def test_images_without_use_of_labels_have_none(make_data: MakeData) -> None:
    data = make_data(labels="auto")
    assert all(isinstance(data.on_after_batch_transfer(batch, 0), Tensor) for batch in data.train_dataloader())
    data.use_latents("key", encode)
    data.prepare_data()
    data.setup()
    assert all(isinstance(data.on_after_batch_transfer(batch, 0), Tensor) for batch in data.train_dataloader())


def test_filter_reaches_the_pack(photos: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"folder": tmp_path / "data", "resolution": 5, "batch_size": 2}
    packs = [
        FFHQDataModule.from_photos(photos, **options | {"folder": tmp_path / name}, filter=name).pack().images[:]
        for name in ("box", "lanczos")
    ]
    assert not np.array_equal(*packs)
    with pytest.raises(UserError, match=r"data\.filter=box, not auto"):
        FFHQDataModule.from_photos(photos, **options | {"folder": tmp_path / "box"}).pack()


def test_batch_larger_than_the_pictures_is_refused(tmp_path: Path) -> None:
    data = FFHQDataModule.from_drawn_faces(40, folder=tmp_path / "data", resolution=16, batch_size=37)
    with pytest.raises(UserError, match=r"36 training and 4 held-out images.*data\.batch_size"):
        data.pack()


def test_fewer_validation_images_than_devices_are_rejected(
    make_data: MakeData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FFHQDataModule, "num_ranks", 2)
    with pytest.raises(UserError, match=r"data\.num_val_images=1 is fewer than the 2 devices"):
        make_data(num_val_images=1)


def test_fewer_images_than_an_accumulated_step_are_rejected(make_data: MakeData, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"36 training .* an optimizer step takes 48"):
        fit(make_data(), tmp_path, accumulate_grad_batches=8)


def test_photos_that_are_not_there_are_refused_by_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root= does not exist"):  # not the current folder
        FFHQDataModule.from_photos("", folder=tmp_path, resolution=8, batch_size=2)
    with pytest.raises(UserError, match=r"data\.root=.*nowhere does not exist"):
        FFHQDataModule.from_photos(tmp_path / "nowhere", folder=tmp_path, resolution=8, batch_size=2)


# Trainings that are resumed


class Recorder(LightningModule):
    """Records the images of each batch, and the step and batch of each validation."""

    def __init__(self, data: FFHQDataModule) -> None:
        super().__init__()
        self.scale, self.data = nn.Parameter(torch.ones(3)), data
        self.taken: list[int] = []
        self.validated: list[tuple[int, int]] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)

    def training_step(self, images: Tensor, batch_idx: int) -> Tensor:
        self.taken += self.data.rows.tolist()
        return ((images.mean((0, 2, 3)) - self.scale) ** 4).sum()

    def validation_step(self, images: Tensor, batch_idx: int) -> None:
        if batch_idx == 0 and not self.trainer.sanity_checking:
            self.validated.append((self.global_step, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready))
        self.log("val/loss", self.scale.sum())


def fit(
    data: FFHQDataModule, folder: Path, checkpoint: Path | None = None, max_steps: int = 16, **options: Any
) -> Recorder:
    """Train with a validation after each second step; `folder` gets a checkpoint of each, and of the last step."""
    settings: dict[str, Any] = {"accumulate_grad_batches": 1} | options
    module = Recorder(data)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=-1,
        check_val_every_n_epoch=None, max_steps=max_steps,
        val_check_interval=2 * settings.get("accumulate_grad_batches", 1),
        callbacks=[ExactResume(), LastCheckpoint(folder, max_steps), BestCheckpoint(folder, save_top_k=-1)],
        **settings,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return module


@pytest.mark.parametrize("settings", [{"accumulate_grad_batches": 2}, {"limit_train_batches": 4}])
def test_validations_and_checkpoints_come_after_full_steps_and_resume_exactly(
    make_data: MakeData, tmp_path: Path, settings: dict[str, int]
) -> None:
    options = {"batch_size": 5, "horizontal_flip": True}  # 7 batches an epoch, of which 6 make full steps of two
    straight = fit(make_data(**options), tmp_path / "straight", **settings)
    assert [step for step, _ in straight.validated] == list(range(2, 17, 2))
    assert all(batches % 2 == 0 for _, batches in straight.validated)
    checkpoints = sorted((tmp_path / "straight").glob("best_*.ckpt"))
    assert len(checkpoints) == 8
    for checkpoint in checkpoints[:-1]:
        resumed = fit(make_data(**options), tmp_path / checkpoint.stem, checkpoint, **settings)
        assert resumed.taken == straight.taken[-len(resumed.taken) :]
        assert resumed.validated == straight.validated[-len(resumed.validated) :]
        assert torch.equal(resumed.scale, straight.scale)


@pytest.mark.parametrize("layouts", [[(1, 2), (2, 7)], [(2, 1), (1, 2), (1, 9)], [(2, 3), (1, 8)], [(1, 6), (2, 9)]])
def test_resume_on_another_number_of_devices_neither_skips_nor_repeats_images(
    make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layouts: list[tuple[int, int]]
) -> None:
    """Each layout is a number of devices and the step at which the run ends."""
    checkpoint, taken = None, list[int]()
    for number, (num_ranks, max_steps) in enumerate(layouts):
        monkeypatch.setattr(FFHQDataModule, "num_ranks", num_ranks)
        ranks = []
        for rank in range(num_ranks):  # one after the other
            monkeypatch.setattr(FFHQDataModule, "rank", rank)
            ranks.append(fit(make_data(), tmp_path / f"{number}-{rank}", checkpoint, max_steps).taken)
        batches = [np.reshape(rank, (-1, 6)) for rank in ranks]
        taken += np.concatenate(batches, axis=1).flatten().tolist()
        checkpoint = tmp_path / f"{number}-0" / "last.ckpt"
    monkeypatch.undo()
    straight = make_data().train_dataloader()
    expected = [image for _ in range(3) for batch in straight for image in batch.rows]
    assert taken == expected[: len(taken)]
    assert len(taken) > 36


def test_use_of_the_pack_alone_is_printed(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"folder": tmp_path / "data", "resolution": 8, "batch_size": 2}
    first = FFHQDataModule.from_photos(photos, **options).pack()
    photos.rename(tmp_path / "elsewhere")
    alone = FFHQDataModule.from_photos(photos, **options)
    assert f"{photos} does not exist: using the pack {first.folder} alone" in capsys.readouterr().out
    assert alone.pack().sha256 == first.sha256
    first.folder.rename(tmp_path / "data" / "renamed-8")
    renamed = FFHQDataModule.from_photos(tmp_path / "renamed", **options)
    assert renamed.pack().folder.name == "renamed-8"
