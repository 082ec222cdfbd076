"""FFHQ from a client that stands in for Kaggle's: what is fetched, what is kept, and what is said when it fails."""

import shutil
import sys
import tomllib
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latentfaces.data.kaggle import DATASET, download_ffhq
from latentfaces.errors import UserError

MODULE = "kaggle.api.kaggle_api_extended"
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def send_whole(path: Path) -> None:
    """Write a whole .zip."""
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


class Kaggle:
    """What the client does and what was asked of it."""

    def __init__(self) -> None:
        self.authenticate: Callable[[], None] = lambda: None
        self.send: Callable[[Path], None] = send_whole
        self.calls: list[str] = []


@pytest.fixture
def kaggle(monkeypatch: pytest.MonkeyPatch) -> Kaggle:
    """Put a client into the place of Kaggle's, on a machine with a large disk."""
    state = Kaggle()

    class KaggleApi:
        def authenticate(self) -> None:
            state.authenticate()

        def dataset_download_files(self, dataset: str, path: str, **_: Any) -> None:
            state.calls.append(dataset)
            state.send(Path(path))

    for name in ("kaggle", "kaggle.api", MODULE):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules[MODULE], "KaggleApi", KaggleApi, raising=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=100e9))
    return state


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Return where FFHQ is to lie, in a folder that is not there yet."""
    return tmp_path / "data" / "ffhq.zip"


def test_whole_file_gets_its_name_and_nothing_else_stays(kaggle: Kaggle, target: Path) -> None:
    assert download_ffhq(target) == target
    assert kaggle.calls == [DATASET]
    assert zipfile.ZipFile(target).namelist() == ["00000.png"]
    assert list(target.parent.iterdir()) == [target]


def test_file_that_is_there_is_not_fetched_again(kaggle: Kaggle, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"fetched by hand")
    assert download_ffhq(target) == target
    assert kaggle.calls == []
    assert target.read_bytes() == b"fetched by hand"


def test_missing_credentials_are_one_sentence_with_the_remedies(
    kaggle: Kaggle, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def advise() -> None:
        print("Authentication required to call the Kaggle API.\n" * 20)
        raise SystemExit(1)

    kaggle.authenticate = advise
    with pytest.raises(UserError, match=r"KAGGLE_API_TOKEN.*data\.root"):
        download_ffhq(target)
    assert "Authentication" not in capsys.readouterr().out
    assert kaggle.calls == []
    assert not target.exists()


def test_network_that_fails_while_the_credentials_are_tried_is_a_sentence(kaggle: Kaggle, target: Path) -> None:
    def fail() -> None:
        raise ConnectionError("network is unreachable")

    kaggle.authenticate = fail  # the client asks Kaggle whom a token belongs to
    with pytest.raises(UserError, match=r"data\.root"):
        download_ffhq(target)


def test_missing_client_is_a_sentence_that_names_the_extra(
    kaggle: Kaggle, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("kaggle", "kaggle.api", MODULE):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[data\]'.*data\.root"):
        download_ffhq(target)
    assert not target.exists()


def test_extra_that_is_named_brings_the_client() -> None:
    extras = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    assert any(requirement.startswith("kaggle") for requirement in extras.get("data", []))


def test_cut_download_stays_for_the_next_try(kaggle: Kaggle, target: Path) -> None:
    kaggle.send = send_half
    with pytest.raises(UserError, match=r"Kaggle does not send .* \(ConnectionError\): try again.*data\.root"):
        download_ffhq(target)
    assert not target.exists()
    found: list[int] = []

    def go_on(path: Path) -> None:
        found.extend(file.stat().st_size for file in path.iterdir())
        send_whole(path)

    kaggle.send = go_on
    download_ffhq(target)
    assert len(found) == 1
    assert 0 < found[0] < target.stat().st_size
    assert list(target.parent.iterdir()) == [target]


def test_interrupted_download_stays_for_the_next_try(kaggle: Kaggle, target: Path) -> None:
    def interrupt(path: Path) -> None:
        send_truncated(path)
        raise KeyboardInterrupt

    kaggle.send = interrupt
    with pytest.raises(KeyboardInterrupt):
        download_ffhq(target)
    assert not target.exists()
    assert len(list((target.parent / "ffhq.zip.partial").iterdir())) == 1


@pytest.mark.parametrize("send", [send_truncated, lambda path: None])
def test_file_that_is_no_whole_zip_is_refused_and_gets_no_name(
    kaggle: Kaggle, target: Path, send: Callable[[Path], None]
) -> None:
    kaggle.send = send
    with pytest.raises(UserError, match=r"ffhq\.zip\.partial holds no whole \.zip: delete it"):
        download_ffhq(target)
    assert not target.exists()


def test_disk_that_is_too_small_is_told_before_anything_is_asked(
    kaggle: Kaggle, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise AssertionError("asked")

    kaggle.authenticate = refuse
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=24e9))
    with pytest.raises(UserError, match=r"needs 25.0 GB in .*data, only 24.0 are free"):
        download_ffhq(target)
    assert kaggle.calls == []
    assert not target.parent.exists()
