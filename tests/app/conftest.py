"""A page of a tiny run."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from gradio_client import Client
from helpers.commands import labeled_in_copy, run_command

from latentfaces.app import Commands, Server, build_page
from latentfaces.cli.launch_app import CHOICES, execute
from latentfaces.run import open_run

RUN = "run=outputs/ldm/labeled"


def free_port() -> int:
    """A port that no server uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture(scope="session")
def place(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workplace with a run that has labels and directions."""
    place = labeled_in_copy(trained, tmp_path_factory)
    few = ["sampler.num_steps=2", "num_images=6", "task.num_components=2", "output=directions"]
    with contextlib.chdir(place):
        run_command("sample.py", RUN, "task=directions", *few)
    return place


@pytest.fixture(scope="session")
def server(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the page."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("cache")))
        with contextlib.chdir(place):
            run = open_run("outputs/ldm/labeled")
            page = build_page(run, Commands(["python", "sample.py", RUN], folder, execute), CHOICES)
            Server("127.0.0.1", free_port(), share=False, token=None).start(page)
        yield page.local_url
        page.close(verbose=False)


@pytest.fixture(scope="session")
def client(server: str) -> Client:
    """A client of the page, as one browser tab."""
    return Client(server, verbose=False)


@pytest.fixture(autouse=True)
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of the page run in the workplace."""
    monkeypatch.chdir(place)
