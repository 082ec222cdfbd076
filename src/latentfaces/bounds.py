"""Bounds of arguments, which the checks of configs read."""

from typing import Any

try:
    from annotated_types import Ge, Gt, Interval, Len
except ModuleNotFoundError:  # a model folder loads with four packages, and without a config

    def no_bound(*args: Any, **kwargs: Any) -> None:
        """Return nothing to check."""

    Ge = Gt = Interval = Len = no_bound  # type: ignore[assignment, misc]

__all__ = ["Ge", "Gt", "Interval", "Len"]
