"""Who reaches the page, how it ends, and commands that are stopped."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import httpx
import pytest
import torch
from app.conftest import free_port
from helpers.commands import refused
from torch import Tensor

from latentfaces.app import Commands, Server, build_page, override
from latentfaces.cli.launch_app import CHOICES, execute
from latentfaces.diffusion.samplers import Trajectory
from latentfaces.errors import UserError
from latentfaces.export.folder import export
from latentfaces.model_folder import find_model
from latentfaces.run import open_run


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_this_machine_needs_no_token(host: str) -> None:
    Server(host, 7860, share=False, token=None)


@pytest.mark.parametrize(("host", "share"), [("0.0.0.0", False), ("::", False), ("mine", False), ("127.0.0.1", True)])
def test_others_need_a_token(host: str, share: bool) -> None:
    key = "task.share=true" if share else f"task.host={host}"
    with pytest.raises(UserError, match=f"{key} opens the page to others. Add task.token="):
        Server(host, 7860, share=share, token=None)
    Server(host, 7860, share=share, token="secret")


def test_a_page_with_a_token_asks_for_it() -> None:
    with gr.Blocks(analytics_enabled=False) as page:
        gr.Markdown("secret page")
    Server("127.0.0.1", free_port(), share=False, token="right").start(page)
    try:
        with httpx.Client(base_url=page.local_url) as browser:
            assert browser.get("config").status_code == 401
            assert browser.post("login", data={"username": "me", "password": "wrong"}).status_code == 400
            assert browser.post("login", data={"username": "me", "password": "right"}).status_code == 200
            assert "secret page" in browser.get("config").text
    finally:
        page.close(verbose=False)


@pytest.mark.parametrize(("host", "status"), [("localhost:7860", 200), ("[::1]:7860", 200), ("evil.example", 400)])
def test_a_website_cannot_reach_the_page_by_a_name_of_its_own(server: str, host: str, status: int) -> None:
    assert httpx.get(server, headers={"Host": host}).status_code == status


def test_a_port_in_use_is_one_line() -> None:
    with gr.Blocks(analytics_enabled=False) as page, socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"127\.0\.0\.1:{port} cannot be used"):
            Server("127.0.0.1", port, share=False, token=None).start(page)


def test_an_address_of_another_machine_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with gr.Blocks(analytics_enabled=False) as page, pytest.raises(UserError, match=r"192.0.2.1:\d+ cannot be used"):
        Server("192.0.2.1", free_port(), share=False, token="secret").start(page)
    assert capfd.readouterr() == ("", "")


def test_the_page_loads_nothing_from_other_machines(server: str) -> None:
    shown = httpx.get(server).text
    assert "googleapis" not in shown
    assert '"analytics_enabled": false' in shown or '"analytics_enabled":false' in shown
    assert "https://fonts" not in httpx.get(f"{server}theme.css").text


def test_ctrl_c_ends_the_server(capfd: pytest.CaptureFixture[str]) -> None:
    port = free_port()

    def press_when_open() -> None:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press_when_open)
    thread.start()
    with gr.Blocks(analytics_enabled=False) as page:
        pass
    Server("127.0.0.1", port, share=False, token=None)(lambda: page)
    thread.join()
    assert "Stopped." in capfd.readouterr().out
    assert socket.socket().connect_ex(("127.0.0.1", port))


def test_a_missing_extra_and_idle_overrides_are_one_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = refused("sample.py", "run=labeled", "task=app", "seed=3")
    assert said.strip() == "error: seed=... has no effect with task=app. Choose it on the page."
    assert "task.token" in refused("sample.py", "run=labeled", "task=app", "task.host=0.0.0.0")
    assert "is of stage 1" in refused("sample.py", "run=outputs/vae/faces", "task=app")
    monkeypatch.setattr("latentfaces.cli.launch_app.find_spec", lambda name: None)
    said = refused("sample.py", "run=labeled", "task=app")
    assert said.strip() == "error: task=app needs an extra. Run `pip install 'latentfaces[app]'`."
    assert sys.modules["gradio"] is gr


def test_a_model_folder_has_a_page(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentfaces.export.folder.write_onnx", lambda *_: None)
    export(open_run(place / "outputs/ldm/labeled"), tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    run, commands = find_model("model"), Commands(["python", "sample.py", "run=model"], tmp_path / "made", execute)
    page = build_page(run, commands, CHOICES)
    execute(["run=model", "num_images=1", "sampler.num_steps=2", "output=made/1"], print)
    assert Path("made/1/00000.png").exists()
    labels = [component["props"].get("label") for component in page.config["components"]]
    assert "Photo" in labels
    assert "Runs" not in labels


def test_a_bad_command_of_the_page_is_one_line(place: Path) -> None:
    with pytest.raises(UserError, match=r"^Unknown key seeed\. Did you mean seed\?$"):
        execute(["run=labeled", "seeed=1"], print)
    with pytest.raises(UserError, match=r"^labels\.smile=7 is not a value of this label"):
        execute(["run=labeled", "labels.smile=7"], print)


class CountingSampler:
    """Sampler whose steps only count."""

    def __init__(self) -> None:
        self.steps = 0

    def solve(self, denoiser: Any, x: Tensor, trajectory: Trajectory) -> Tensor:
        for t in trajectory.times[1:]:
            self.steps += 1
            x = trajectory.after_step(x, t)
        return x


@pytest.mark.parametrize(
    ("times", "fractions"),
    [([1, 0.5, 0], [("Sampling", 0.5), ("Sampling", 1)]), ([0.1, 0.5, 1], [("Inverting", 0.5), ("Inverting", 1)])],
)
def test_each_step_shows_its_progress(tmp_path: Path, times: list[float], fractions: list[Any]) -> None:
    task, seen = SimpleNamespace(sampler=CountingSampler()), list[Any]()

    def execute(overrides: Any, prepare: Any) -> str:
        prepare(task)
        task.sampler.solve(None, torch.zeros(1), Trajectory(times))
        return "done"

    request: Any = SimpleNamespace(session_hash="a")
    result = Commands(["x"], tmp_path, execute)([], request, lambda fraction, desc: seen.append((desc, fraction)))  # type: ignore[arg-type]
    assert (result.text, seen) == ("done", fractions)


def test_a_stop_ends_the_commands_of_its_own_tab_alone(tmp_path: Path) -> None:
    samplers = {"a": CountingSampler(), "b": CountingSampler()}
    requests: dict[str, Any] = {name: SimpleNamespace(session_hash=name) for name in samplers}

    def execute(overrides: Any, prepare: Any) -> str:
        sampler = samplers[overrides[0].removeprefix("session=")]
        prepare(SimpleNamespace(sampler=sampler))
        sampler.solve(None, torch.zeros(1), Trajectory([1, 0.9, 0.5, 0]))
        return ""

    commands = Commands([], tmp_path, execute)

    def stop_a(fraction: float, desc: str) -> None:
        commands.stop(requests["a"])

    with pytest.raises(gr.Error, match="Stopped"):
        commands(["session=a"], requests["a"], stop_a)  # type: ignore[arg-type]
    commands(["session=b"], requests["b"], stop_a)  # type: ignore[arg-type]
    assert (samplers["a"].steps, samplers["b"].steps) == (2, 3)


def test_results_of_an_earlier_page_with_the_same_output_are_kept(tmp_path: Path) -> None:
    (tmp_path / "0001").mkdir()
    outputs: list[str] = []

    def write(overrides: Sequence[str], prepare: object) -> str:
        outputs.append(overrides[-1])
        Path(overrides[-1].removeprefix("output=").strip('"')).mkdir(parents=True)
        return ""

    commands = Commands([], tmp_path, write)
    request: Any = SimpleNamespace(session_hash="a")
    for _ in range(2):
        commands([], request, gr.Progress())
    assert outputs == [f"output={tmp_path}/0002", f"output={tmp_path}/0003"]
    commands.folder = tmp_path / "of me (1)"
    commands([], request, gr.Progress())
    assert outputs[-1] == f'output="{tmp_path}/of me (1)/0001"'


def test_a_run_in_the_current_folder_has_a_page(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place / "outputs" / "ldm")
    commands = Commands([], place / "made", execute)
    page = build_page(open_run("labeled"), commands, CHOICES)
    (runs,) = (c["props"] for c in page.config["components"] if c["props"].get("label") == "Run")
    assert ["ldm/labeled", "ldm/labeled"] in [[*choice] for choice in runs["choices"]]


@pytest.mark.parametrize(
    ("value", "shown"),
    [("a/b.png", "a/b.png"), ("dark brown", '"dark brown"'), ('a"b\\', '"a\\"b\\\\"'), (-3, "-3")],
)
def test_values_are_quoted_for_hydra(value: object, shown: str) -> None:
    assert override("labels.hair", value) == f"labels.hair={shown}"


def test_values_cannot_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(gr.Error, match="has an interpolation"):
        override("labels.hair", "${oc.env:SECRET}")
