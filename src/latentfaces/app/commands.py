"""Commands of the page, run one at a time."""

import itertools
import re
import shlex
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gradio as gr
from torch import Tensor

from latentfaces.data.images import decode_photo, digest
from latentfaces.data.sources import HEIF, SUFFIXES
from latentfaces.diffusion import Sampler
from latentfaces.diffusion.samplers import Trajectory
from latentfaces.errors import UserError

PHOTOS = "photos"
"""Folder of the uploaded photos, in that of the page."""
PLAIN = re.compile(r"[\w./+-]+")
Execute = Callable[[Sequence[str], Callable[[Any], None]], str]
"""Runs a command, by its overrides and a function that gets its task. Returns what it printed."""


@dataclass(frozen=True)
class Result:
    """Files of a command.

    Args:
        command: command that made the files.
        overrides: its overrides, without those that all commands of the page share.
        folder: folder of the files.
        text: what the command printed.
    """

    command: str
    overrides: list[str]
    folder: Path
    text: str

    def files(self, *patterns: str) -> list[str]:
        """Return the paths of the files that match the patterns, in their order."""
        return [str(path) for pattern in patterns for path in sorted(self.folder.glob(pattern))]


@dataclass
class Commands:
    """Runs the commands of all browser tabs, one at a time.

    Args:
        program: words that each command begins with.
        folder: folder of all results and of the uploaded photos.
        execute: function that runs a command.
    """

    program: list[str]
    folder: Path
    execute: Execute
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopped: set[str] = field(default_factory=set)
    """Sessions whose command is to stop."""

    def __call__(self, overrides: list[str], request: gr.Request, progress: gr.Progress) -> Result:
        """Run a command.

        Raises:
            gr.Error: a mistake of the user, or a stop, as one line.
        """
        command = [*self.program, *overrides]
        session = request.session_hash or ""

        def on_step(what: str, fraction: float) -> None:
            if session in self.stopped:
                raise UserError("Stopped.")
            progress(fraction, desc=what)

        with self.lock:
            self.stopped.discard(session)
            folders = (self.folder / f"{number:04d}" for number in itertools.count(1))
            folder = next(folder for folder in folders if not folder.exists())
            arguments = [part for part in command if "=" in part]
            try:
                text = self.execute([*arguments, override("output", folder)], lambda task: watch(task, on_step))
            except UserError as error:
                raise one_line(error) from error
        gr.set_static_paths([folder])
        return Result(shlex.join(command), overrides, folder, text)

    def stop(self, request: gr.Request) -> None:
        """Stop the command of a browser tab at its next step."""
        self.stopped.add(request.session_hash or "")

    def keep(self, upload: str | None, name: str = "photo") -> Path:
        """Copy an upload to the folder, named after its content. Return its path.

        Raises:
            gr.Error: it is missing, damaged, no image, or too large.
        """
        if upload is None:
            raise one_line(f"There is no {name}. Choose one first.")
        try:
            data = Path(upload).read_bytes()
            decode_photo(data)
        except Exception as error:  # damaged images raise errors of many kinds
            raise one_line(f"The {name} cannot be read ({error}). Choose another image.") from error
        suffix = Path(upload).suffix.lower()
        if suffix not in (*SUFFIXES, *HEIF):  # a browser would run the scripts in an image called .html
            suffix = ".png"
        path = self.folder / PHOTOS / f"{name}_{digest(data)[:12]}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path


def one_line(message: object) -> gr.Error:
    """Return an error that the page shows as one line."""
    return gr.Error(" ".join(str(message).split()), duration=None, print_exception=False, title="")


def override(key: str, value: object) -> str:
    """Return `key=value`, quoted where Hydra needs it.

    Raises:
        gr.Error: the value has an interpolation, which could read the environment of this machine.
    """
    text = str(value)
    if "${" in text:
        raise one_line(f"{key}={text} has an interpolation. Give the value itself.")
    if PLAIN.fullmatch(text):
        return f"{key}={text}"
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'{key}="{escaped}"'


def watch(task: Any, on_step: Callable[[str, float], None]) -> None:
    """Call `on_step` with a word and the fraction of the trajectory after each step of the task's sampler."""
    sampler: Sampler | None = getattr(task, "sampler", None)
    if sampler is None:
        return
    solve = sampler.solve

    def watched(denoiser: Any, x: Tensor, trajectory: Trajectory) -> Tensor:
        inverting = trajectory.times[-1] > trajectory.times[0]

        def after_step(x: Tensor, t: float) -> Tensor:
            on_step("Inverting" if inverting else "Sampling", t if inverting else 1 - t)
            return trajectory.after_step(x, t)

        return solve(denoiser, x, replace(trajectory, change=after_step))

    sampler.solve = watched  # type: ignore[method-assign]
