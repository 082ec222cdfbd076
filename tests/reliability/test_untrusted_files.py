"""Every reader rejects every kind of unusable or hostile file with a one-line error, and runs no code from it."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentfaces.autoencoder import PerceptualDistance
from latentfaces.autoencoder.pretrained import read_weights
from latentfaces.data import Photos, open_pack
from latentfaces.data.arrays import open_array
from latentfaces.errors import UserError
from latentfaces.evaluation.features import saved_network
from latentfaces.posthoc_ema import Snapshot
from latentfaces.run import open_run
from latentfaces.tasks.photos import read_photos
from latentfaces.training import AtomicCheckpointIO
from latentfaces.training.checkpoint import damage


class Hostile:
    """Object that makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def torch_pickle(marker: Path, path: Path) -> None:
    torch.save({"weight": Hostile(marker)}, path)


def numpy_pickle(marker: Path, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([Hostile(marker)], dtype=object), **{"allow_pickle": True})


KINDS: dict[str, Callable[[Path, Path], object]] = {
    "empty": lambda marker, path: path.write_bytes(b""),
    "random bytes": lambda marker, path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
    "an error page": lambda marker, path: path.write_text("<!DOCTYPE html><html><body>404</body></html>\n"),
    "a bare pickle": lambda marker, path: path.write_bytes(pickle.dumps(Hostile(marker))),
    "a pickle of torch": torch_pickle,
    "a pickle of numpy": numpy_pickle,
    "a truncated .zip": lambda marker, path: path.write_bytes(b"PK\x03\x04" + bytes(500)),
    "a header of 2^60 bytes": lambda marker, path: path.write_bytes((2**60).to_bytes(8, "little") + b"{}"),
    "nested brackets": lambda marker, path: path.write_text("[" * 1200),
    "a tag of YAML that calls": lambda marker, path: path.write_text(f"!!python/object/apply:os.mkdir ['{marker}']\n"),
}


def images_in(path: Path) -> object:
    photos = Photos(path)
    return photos.read(0, 16)


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "the array of a pack": ("images.npy", open_array),
    "the manifest of a pack": ("manifest.json", lambda path: open_pack(path.parent)),
    "a .zip of photos": ("photos.zip", images_in),
    "an image of a folder": ("photo.png", lambda path: images_in(path.parent)),
    "a photo to edit": ("photo.png", lambda path: read_photos(str(path), 16, 1, seed=0)),
    "the config of a run": ("config.yaml", lambda path: open_run(path.parent)),
    "a snapshot": ("step_0000001.pth", Snapshot.read),
    "weights of a pretrained VAE": ("vae.pth", read_weights),
    "safetensors of a pretrained VAE": ("vae.safetensors", read_weights),
    "weights of the perceptual loss": ("vgg.pth", lambda path: PerceptualDistance("vgg", weights=str(path))),
    "a network for features": ("network.pt", saved_network),
}


@pytest.mark.parametrize(("name", "read"), READERS.values(), ids=READERS.keys())
@pytest.mark.parametrize("write", KINDS.values(), ids=KINDS.keys())
def test_a_reader_rejects_a_file_in_one_line(
    write: Callable[[Path, Path], object], name: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    folder, marker = tmp_path / "folder", tmp_path / "marker"
    folder.mkdir()
    write(marker, folder / name)
    with pytest.raises(UserError) as error:
        read(folder / name)
    assert name in str(error.value) or folder.name in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not marker.exists()


@pytest.mark.parametrize("write", KINDS.values(), ids=KINDS.keys())
def test_a_damaged_checkpoint_is_found_before_it_is_loaded(
    write: Callable[[Path, Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "last.ckpt"
    write(tmp_path / "marker", path)
    if write is torch_pickle:  # intact as a file
        with pytest.raises(UserError, match="could run code"):
            AtomicCheckpointIO().load_checkpoint(path)
    else:
        assert damage(path)
    assert not (tmp_path / "marker").exists()
