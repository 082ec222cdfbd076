"""A stand-in for the Hugging Face hub: HTTP on this machine."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def commit_of(revision: str) -> str:
    """Return the commit that a revision names, which is a name of itself, too."""
    return revision if len(revision) == 40 else hashlib.sha1(revision.encode()).hexdigest()


@contextmanager
def hub(revisions: dict[str, Path]) -> Iterator[str]:
    """Serve a folder for each revision, under any ID, and yield the address."""
    folders = {commit_of(revision): folder for revision, folder in revisions.items()}

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def answer(self) -> tuple[int, dict[str, str], bytes]:
            path = self.path.partition("?")[0]
            if path.startswith("/api/models/"):
                commit = commit_of(path.partition("/revision/")[2] or "main")
                names = [str(p.relative_to(folders[commit])) for p in folders[commit].rglob("*.*")]
                files = [{"rfilename": name} for name in names]
                return 200, {}, json.dumps({"id": "faces/vae", "sha": commit, "siblings": files}).encode()
            revision, _, name = path.partition("/resolve/")[2].partition("/")
            commit = commit_of(revision)
            headers = {"X-Repo-Commit": commit}
            file = folders.get(commit, Path("/nowhere")) / name
            if commit not in folders or not file.is_file():
                return 404, headers | {"X-Error-Code": "EntryNotFound"}, b""
            content = file.read_bytes()
            return 200, headers | {"ETag": hashlib.sha1(content).hexdigest()}, content

        def do_HEAD(self) -> None:
            status, headers, content = self.answer()
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(self.answer()[2])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
