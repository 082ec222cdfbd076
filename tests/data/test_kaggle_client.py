"""Kaggle's real client against a local server, which may lose the connection."""

import base64
import io
import json
import shutil
import sys
import threading
import time
import types
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from latentfaces.data.kaggle import DATASET, download_ffhq
from latentfaces.errors import UserError

pytestmark = pytest.mark.skipif(find_spec("kaggle") is None, reason="needs pip install -e '.[data]'")


CUT_AT = 2_500_000
TOKEN = "KGAT_0123456789abcdef"
BASIC = "Basic " + base64.b64encode(b"user:" + b"0" * 32).decode()
KEPT = 2 * 2**20  # the client writes megabyte by megabyte


def archive(seed: int) -> bytes:
    """A .zip of 4 MB."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("00000.png", np.random.default_rng(seed).bytes(4_000_000))
    return buffer.getvalue()


class Server(ThreadingHTTPServer):
    """Answers as Kaggle does: a redirection to a file that can be fetched in part.

    Args:
        whole: bytes of the file.
    """

    daemon_threads = True

    def __init__(self, whole: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.whole, self.etag = whole, '"first"'
        self.cut_at: int | None = None
        """Bytes sent before the connection is lost; it stays lost."""
        self.lost = False
        self.asked: list[str] = []
        self.shown: list[str | None] = []
        """The credentials of each request for the file."""
        self.knows = True
        """Whether the credentials are accepted."""
        self.ranges: list[str | None] = []


class Handler(BaseHTTPRequestHandler):
    """One request. Its path is a complete address, since the client uses this server as a proxy."""

    server: Server

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/IntrospectToken"):
            answer = {"active": request["token"] == TOKEN and self.server.knows, "username": "user"}
            self.answer(200, json.dumps(answer).encode())
            return
        self.server.shown.append(self.headers["Authorization"])
        if not self.server.knows:
            self.answer(401, json.dumps({"code": 401, "message": "Unauthenticated"}).encode())
            return
        self.server.asked.append(f"{self.path.rpartition('/')[2]} {request['ownerSlug']}/{request['datasetSlug']}")
        self.send_response(302)
        self.send_header("Location", "http://localhost/storage/archive.zip?signature=1")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.server.lost:
            self.close_connection = True
            return
        wanted, whole = self.headers.get("Range"), self.server.whole
        self.server.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if wanted and self.headers.get("If-Range") != self.server.etag:
            wanted, start = None, 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(whole) - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", self.server.etag)
        self.send_header("Content-Type", "application/zip")
        self.end_headers()
        stop = len(whole) if self.server.cut_at is None else self.server.cut_at
        self.wfile.write(whole[start:stop])
        if self.server.cut_at is not None:
            self.server.lost = self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def kaggle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """The server, and a client that comes to it: as its own local environment, and by a proxy."""
    server = Server(archive(0))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in [name for name in sys.modules if name.startswith("kaggle")]:
        monkeypatch.delitem(sys.modules, name)  # it reads the environment when it is imported
    for name in ("KAGGLE_API_TOKEN", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    environment = {
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
        "HOME": str(tmp_path / "home"),
        "KAGGLE_CONFIG_DIR": str(tmp_path / "home" / ".kaggle"),
        "KAGGLE_USERNAME": "user",
        "KAGGLE_KEY": "0" * 32,
        "http_proxy": f"http://127.0.0.1:{server.server_port}",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between its tries
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=100e9))
    yield server
    server.shutdown()
    server.server_close()
    for name in [name for name in sys.modules if name.startswith("kaggle")]:
        del sys.modules[name]


def test_the_client_fetches_the_file(kaggle: Server, tmp_path: Path) -> None:
    target = tmp_path / "data" / "ffhq.zip"
    assert download_ffhq(target) == target
    assert target.read_bytes() == kaggle.whole
    assert kaggle.asked == [f"DownloadDataset {DATASET}"]
    assert list(target.parent.glob("[!.]*")) == [target]


def test_an_interrupted_download_resumes(kaggle: Server, tmp_path: Path) -> None:
    target = tmp_path / "data" / "ffhq.zip"
    kaggle.cut_at = CUT_AT
    with pytest.raises(UserError, match=r"Kaggle does not send .*\. Try again"):
        download_ffhq(target)
    assert not target.exists()
    kaggle.cut_at, kaggle.lost = None, False
    download_ffhq(target)
    assert target.read_bytes() == kaggle.whole
    assert kaggle.ranges == [None, None, f"bytes={KEPT}-"]  # the second asks for the size before the client resumes
    assert list(target.parent.glob("[!.]*")) == [target]


def test_a_file_that_has_changed_meanwhile_is_fetched_again(kaggle: Server, tmp_path: Path) -> None:
    target = tmp_path / "data" / "ffhq.zip"
    kaggle.cut_at = CUT_AT
    with pytest.raises(UserError):
        download_ffhq(target)
    kaggle.cut_at, kaggle.lost = None, False
    kaggle.whole, kaggle.etag = archive(1), '"second"'
    download_ffhq(target)
    assert target.read_bytes() == kaggle.whole
    assert kaggle.ranges == [None, None]


def show(kind: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have credentials of one kind, and no others."""
    if kind != "KAGGLE_USERNAME and KAGGLE_KEY":
        monkeypatch.delenv("KAGGLE_USERNAME")
        monkeypatch.delenv("KAGGLE_KEY")
    (home / ".kaggle").mkdir(parents=True)
    if kind == "KAGGLE_API_TOKEN":
        monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    elif kind == "KAGGLE_API_TOKEN, a path":
        (home / "token").write_text(TOKEN)
        monkeypatch.setenv("KAGGLE_API_TOKEN", str(home / "token"))
    elif kind == "access_token":
        (home / ".kaggle" / "access_token").write_text(f"{TOKEN}\n")
    elif kind == "kaggle.json":
        (home / ".kaggle" / "kaggle.json").write_text(json.dumps({"username": "user", "key": "0" * 32}))


KINDS = {
    "KAGGLE_API_TOKEN": f"Bearer {TOKEN}",
    "KAGGLE_API_TOKEN, a path": f"Bearer {TOKEN}",
    "access_token": f"Bearer {TOKEN}",
    "KAGGLE_USERNAME and KAGGLE_KEY": BASIC,
    "kaggle.json": BASIC,
}


@pytest.mark.parametrize("kind", KINDS)
def test_credentials_of_every_kind_reach_kaggle(
    kaggle: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    show(kind, tmp_path / "home", monkeypatch)
    target = download_ffhq(tmp_path / "data" / "ffhq.zip")
    assert kaggle.shown == [KINDS[kind]]
    assert target.read_bytes() == kaggle.whole
    assert TOKEN not in "".join(capsys.readouterr())


@pytest.mark.parametrize("kind", [*KINDS, "none"])
def test_credentials_that_kaggle_does_not_accept_are_told(
    kaggle: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    kaggle.knows = False
    show(kind, tmp_path / "home", monkeypatch)
    with pytest.raises(UserError, match=r"credentials.*KAGGLE_API_TOKEN.*by hand"):
        download_ffhq(tmp_path / "data" / "ffhq.zip")
    assert not (tmp_path / "data" / "ffhq.zip").exists()
