"""Freed memory is reused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import resource
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
