"""Commands in processes of their own, forked from one that has imported all they need: a start costs milliseconds."""

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from helpers.commands import ROOT, run_command


def run(log: Path, folder: Path, environment: Mapping[str, str], name: str, arguments: tuple[str, ...]) -> None:
    """Run a command in the forked process."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # of loading processes, as in a command that was typed
    run_command(name, *arguments)


def free_port() -> str:
    """Return a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@dataclass
class Running:
    """A command that has been started.

    Args:
        process: that runs it.
        log: the file that gets all it prints.
    """

    process: ForkServerProcess
    log: Path

    @property
    def said(self) -> str:
        """All it has printed so far."""
        return self.log.read_text() if self.log.exists() else ""

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait_for(self, happened: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until something has happened, which must be before the command ends."""
        limit = time.monotonic() + seconds
        while not happened():
            assert self.process.is_alive(), f"ended with {self.process.exitcode}:\n{self.said}"
            assert time.monotonic() < limit, f"not within {seconds} s:\n{self.said}"
            time.sleep(0.02)

    def wait(self, seconds: float = 120) -> int:
        """Its exit status; -9 after a SIGKILL."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"still running after {seconds} s:\n{self.said}")
        return self.process.exitcode


@dataclass
class Forker:
    """Starts commands in a folder.

    Args:
        folder: where they run; their output goes into files next to it.
    """

    folder: Path
    started: list[Running] = field(default_factory=list)

    @staticmethod
    def warm_up() -> None:
        """Start the process that all commands are forked from."""
        multiprocessing.set_forkserver_preload(["helpers.warm"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", "1")  # a process with more threads must not be forked
            patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path]))
            multiprocessing.forkserver.ensure_running()

    def start(self, *arguments: str, name: str = "train.py", **environment: str) -> Running:
        """Start a command.

        Args:
            arguments: of the command.
            name: of the command.
            environment: variables in addition to those of the tests.
        """
        log = self.folder.parent / f"{self.folder.name}-{len(self.started)}.log"
        kept = {"WANDB_MODE": "offline", **environment}
        process = multiprocessing.get_context("forkserver").Process(
            target=run, args=(log, self.folder, kept, name, arguments)
        )
        process.start()
        self.started.append(Running(process, log))
        return self.started[-1]

    def run(self, *arguments: str, name: str = "train.py", **environment: str) -> tuple[int, str]:
        """Run a command to its end: exit status, and what it printed."""
        running = self.start(*arguments, name=name, **environment)
        return running.wait(), running.said

    def start_ranks(self, *arguments: str, number: int = 2) -> list[Running]:
        """Start train.py on `number` processes, as `torchrun` does."""
        port = free_port()
        devices = [f"trainer.devices={number}", "trainer.accelerator=cpu", "strategy=ddp"]
        return [
            self.start(
                *arguments, *devices, LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(number),
                MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
            )
            for rank in range(number)
        ]  # fmt: skip

    def end(self) -> None:
        """Kill what still runs."""
        for running in self.started:
            if running.process.is_alive():
                running.process.kill()
                running.process.join()
