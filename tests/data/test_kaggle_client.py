"""Kaggle's real client against a server that stands in for Kaggle, and that loses the connection midway."""

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
        whole: the file.
    """

    daemon_threads = True

    def __init__(self, whole: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.whole, self.etag = whole, '"first"'
        self.cut_at: int | None = None
        """Bytes sent before the connection is lost; it stays lost."""
        self.lost = False
        self.asked: list[str] = []
        self.ranges: list[str | None] = []


class Handler(BaseHTTPRequestHandler):
    """One request, whose path is a whole address, as the client takes this server for a proxy."""

    server: Server

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(f"{self.path.rpartition('/')[2]} {request['ownerSlug']}/{request['datasetSlug']}")
        self.send_response(302)
        self.send_header("Location", "http://localhost/storage/archive.zip?signature=1")
        self.send_header("Content-Length", "0")
        self.end_headers()

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
        "KAGGLE_CONFIG_DIR": str(tmp_path / "config"),
        "KAGGLE_USERNAME": "somebody",
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
    assert list(target.parent.iterdir()) == [target]


def test_a_cut_download_goes_on_where_it_was(kaggle: Server, tmp_path: Path) -> None:
    target = tmp_path / "data" / "ffhq.zip"
    kaggle.cut_at = CUT_AT
    with pytest.raises(UserError, match=r"Kaggle does not send .*: try again"):
        download_ffhq(target)
    assert not target.exists()
    kaggle.cut_at, kaggle.lost = None, False
    download_ffhq(target)
    assert target.read_bytes() == kaggle.whole
    assert kaggle.ranges == [None, None, f"bytes={KEPT}-"]  # the second asks what there is before it goes on
    assert list(target.parent.iterdir()) == [target]


def test_a_file_that_has_changed_meanwhile_is_fetched_anew(kaggle: Server, tmp_path: Path) -> None:
    target = tmp_path / "data" / "ffhq.zip"
    kaggle.cut_at = CUT_AT
    with pytest.raises(UserError):
        download_ffhq(target)
    kaggle.cut_at, kaggle.lost = None, False
    kaggle.whole, kaggle.etag = archive(1), '"second"'
    download_ffhq(target)
    assert target.read_bytes() == kaggle.whole
    assert kaggle.ranges == [None, None]
