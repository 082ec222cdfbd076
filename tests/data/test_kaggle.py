"""FFHQ from a fake of Kaggle's client: downloads, interruptions and errors."""

import signal
import threading
import tomllib
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.kaggle_stand_in import Kaggle, send_truncated, send_whole

from latentfaces.data.kaggle import DATASET, download_ffhq
from latentfaces.errors import UserError
from latentfaces.signals import Stopped

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Return where FFHQ is to lie, in a folder that is not there yet."""
    return tmp_path / "data" / "ffhq.zip"


def test_whole_file_gets_its_name_and_nothing_else_stays(kaggle: Kaggle, target: Path) -> None:
    assert download_ffhq(target) == target
    assert kaggle.calls == [DATASET]
    assert zipfile.ZipFile(target).namelist() == ["00000.png"]
    assert list(target.parent.glob("[!.]*")) == [target]


def test_file_that_is_there_is_not_fetched_again(kaggle: Kaggle, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"fetched by hand")
    assert download_ffhq(target) == target
    assert kaggle.calls == []
    assert target.read_bytes() == b"fetched by hand"


def test_network_that_fails_while_the_credentials_are_tried_is_a_sentence(kaggle: Kaggle, target: Path) -> None:
    def fail() -> None:
        raise ConnectionError("network is unreachable")

    kaggle.authenticate = fail  # the client asks Kaggle whom a token belongs to
    with pytest.raises(UserError, match=r"data\.root"):
        download_ffhq(target)


def test_extra_that_is_named_brings_the_client() -> None:
    extras = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    assert any(requirement.startswith("kaggle") for requirement in extras.get("data", []))


def test_interrupted_download_stays_for_the_next_try(kaggle: Kaggle, target: Path) -> None:
    def interrupt(path: Path) -> None:
        send_truncated(path)
        raise KeyboardInterrupt

    kaggle.send = interrupt
    with pytest.raises(KeyboardInterrupt):
        download_ffhq(target)
    assert not target.exists()
    assert len(list((target.parent / "ffhq.zip.partial").iterdir())) == 1


def test_what_an_interrupted_download_has_written_needs_no_room_again(
    kaggle: Kaggle, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def free(path: object) -> SimpleNamespace:
        return SimpleNamespace(free=25e9 - 6)

    monkeypatch.setattr("shutil.disk_usage", free)
    with pytest.raises(UserError, match=r"FFHQ needs 25\.0 GB"):
        download_ffhq(target)
    folder = target.with_name("ffhq.zip.partial")
    folder.mkdir(parents=True)
    (folder / "begun").write_bytes(b"6 bytes")
    assert download_ffhq(target) == target


def test_signal_is_not_taken_for_missing_credentials(kaggle: Kaggle, target: Path) -> None:
    def stop(path: Path) -> None:
        raise Stopped(signal.SIGTERM)

    kaggle.send = stop
    with pytest.raises(Stopped):
        download_ffhq(target)


def test_two_trainings_at_the_same_time_fetch_it_once(kaggle: Kaggle, target: Path) -> None:
    def send(path: Path) -> None:
        other = threading.Thread(target=download_ffhq, args=(target,))
        other.start()
        others.append(other)
        other.join(0.2)  # it waits
        send_whole(path)

    others: list[threading.Thread] = []
    kaggle.send = send
    download_ffhq(target)
    others[0].join(20)
    assert kaggle.calls == [DATASET]
    assert zipfile.ZipFile(target).namelist() == ["00000.png"]
