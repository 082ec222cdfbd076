"""Files and states of a run, and their comparison."""

import csv
from pathlib import Path
from typing import Any

import torch

OF_A_FILE = ("best_k_models", "current_score")
"""Entries of checkpoints with paths of files, and those that Lightning writes but does not read."""


def checkpoint(run: str | Path, name: str = "last") -> dict[str, Any]:
    """A checkpoint of a run, named by its folder or as `vae/faces`."""
    folder = run if isinstance(run, Path) else Path("outputs") / run
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def ema_of(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of the average in a checkpoint."""
    return next(value for key, value in state["callbacks"].items() if key.startswith("EMA"))


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    """Equal to the last bit, all the way down."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{index}]")
    else:
        assert a == b, where


def assert_same_end(one: str | Path, other: str | Path) -> None:
    """Both runs came to the same weights, optimisers, schedules, average, patience, best loss and place in the data."""
    states = [checkpoint(run) for run in (one, other)]
    for state in states:
        for callback in state["callbacks"].values():
            for name in [name for name, value in callback.items() if isinstance(value, str) or name in OF_A_FILE]:
                del callback[name]
        del state["loops"]  # how often training was begun is counted there
        del state["callbacks"]["TimeLimit"]  # how long it took
    assert_equal(*states)
    assert validations(one) == validations(other)


def validations(run: str | Path) -> list[tuple[str, str]]:
    """Step and loss of each validation, as logged."""
    return [(row["step"], row["val/loss"]) for row in rows_of(run) if row["val/loss"]]


def rows_of(run: str | Path) -> list[dict[str, str]]:
    """Return the logged values of a run."""
    folder = run if isinstance(run, Path) else Path("outputs") / run
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))
