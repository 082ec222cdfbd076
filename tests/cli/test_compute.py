"""Memory and threads of a command."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from latentfaces.cli.compute import limit_threads

ROOT = Path(__file__).parents[2]
PROGRAM = """
import resource, sys
from unittest.mock import MagicMock
for name in ("torch", "latentfaces.data", "latentfaces.data.packing", "latentfaces.nn"):
    sys.modules[name] = MagicMock()  # importing them takes seconds
from latentfaces.cli.compute import keep_freed_memory
keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    large = b"x" * 2**26
    del large
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment: str) -> int:
    """New pages that the third of three equal large allocations takes."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUN"))}
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=inherited | environment, capture_output=True, check=True
    )
    return int(told.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_large_memory_is_used_again_unless_the_person_has_set_how_malloc_works() -> None:
    assert faults() < 10
    assert faults(MALLOC_ARENA_MAX="4") > 10


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """Files of the kernel for a machine of 4 cores that is idle but for this process."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4))
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "loadavg").write_text("0.10 0.10 0.10 1/300 4242\n")
    yield tmp_path / "cpu.max", tmp_path / "loadavg"
    torch.set_num_threads(threads)


def test_threads_follow_the_quota_of_a_container(machine: tuple[Path, Path]) -> None:
    limit_threads(*machine)
    assert torch.get_num_threads() == 4
    machine[0].write_text("250000 100000\n")
    limit_threads(*machine)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("runnable", "threads"), [(1, None), (3, 2), (9, 1)])
def test_a_busy_machine_is_reported(
    runnable: int, threads: int | None, machine: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    machine[1].write_text(f"0.10 0.10 0.10 {runnable}/300 4242\n")
    limit_threads(*machine)
    notice = capsys.readouterr().err
    assert f"OMP_NUM_THREADS={threads} may be faster" in notice if threads else notice == ""
