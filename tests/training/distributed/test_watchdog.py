"""A rank that fails ends the others, and its error is the one that is reported."""

import subprocess
import threading

import pytest

from latentfaces.training.distributed import watchdog
from latentfaces.training.distributed.watchdog import RankError, RankWatch


@pytest.fixture
def failed() -> "subprocess.Popen[bytes]":
    """A process that has ended with status 1."""
    process = subprocess.Popen(["false"])
    process.wait()
    return process


def test_an_error_of_the_backend_is_told_as_the_failure_of_the_other_rank(failed: "subprocess.Popen[bytes]") -> None:
    with pytest.raises(RankError, match="local rank 1 ended with status 1"), RankWatch([failed]):
        raise RuntimeError("connection closed by peer")


def test_an_error_of_its_own_is_raised_while_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "GRACE", 0.1)
    with subprocess.Popen(["sleep", "60"]) as child:
        for error in (ValueError, RuntimeError):
            with pytest.raises(error, match="boom"), RankWatch([child]):
                raise error("boom")
        child.kill()


def test_a_process_that_waits_for_a_lost_rank_ends(
    failed: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(watchdog, "GRACE", 0.1)
    monkeypatch.setattr(watchdog, "LOOK_EVERY", 0.05)
    monkeypatch.setattr("os._exit", lambda status: ended.set())
    with RankWatch([failed]):
        assert ended.wait(20)
    assert "error: local rank 1 ended with status 1" in capsys.readouterr().err
