"""A fake of Kaggle's client, controlled by the test."""

import shutil
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MODULE = "kaggle.api.kaggle_api_extended"
MODULES = ("kaggle", "kaggle.api", MODULE)


def send_whole(path: Path) -> None:
    """Write a complete .zip."""
    with zipfile.ZipFile(path / "flickrfaceshq-dataset-ffhq.zip", "w") as archive:
        archive.writestr("00000.png", b"a face")


def send_truncated(path: Path) -> None:
    """Write the first half of a .zip."""
    send_whole(path)
    file = path / "flickrfaceshq-dataset-ffhq.zip"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def send_half(path: Path) -> None:
    """Lose the network midway."""
    send_truncated(path)
    raise ConnectionError("network is unreachable")


def not_known() -> None:
    """Print a page of advice and leave, as the client does without credentials."""
    print("Authentication required to call the Kaggle API.\n" * 20)
    raise SystemExit(1)


class Kaggle:
    """Stand-in for the client, which records its calls."""

    def __init__(self) -> None:
        self.authenticate: Callable[[], None] = lambda: None
        self.send: Callable[[Path], None] = send_whole
        self.calls: list[str] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Replace the client, on a machine with a large disk."""
        state = self

        class KaggleApi:
            def authenticate(self) -> None:
                state.authenticate()

            def dataset_download_files(self, dataset: str, path: str, **_: Any) -> None:
                state.calls.append(dataset)
                state.send(Path(path))

        for name in MODULES:
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        monkeypatch.setattr(sys.modules[MODULE], "KaggleApi", KaggleApi, raising=False)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=100e9))
