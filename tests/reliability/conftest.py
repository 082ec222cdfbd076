"""Commands that can be killed, each in a process of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from forked import Forker


@pytest.fixture(scope="session")
def warm() -> None:
    """The process with all imports done that commands are forked from."""
    Forker.warm_up()


@pytest.fixture
def fork(warm: None, workplace: Path) -> Iterator[Forker]:
    """`fork.run("model=vae", ...)`, exit status and output of train.py in the workplace; `fork.start` does not wait."""
    forker = Forker(workplace)
    yield forker
    forker.end()
