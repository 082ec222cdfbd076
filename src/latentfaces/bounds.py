"""Bounds of arguments, which the checks of configs read.

Samplers and guidance also check their own, because a model folder is opened without these checks.
"""

from typing import Annotated, Any

try:
    from annotated_types import Ge, Gt, Interval, Len, MultipleOf
except ModuleNotFoundError:  # a model folder loads with four packages, and without a config

    def no_bound(*args: Any, **kwargs: Any) -> None:
        """Return nothing to check."""

    Ge = Gt = Interval = Len = MultipleOf = no_bound  # type: ignore[assignment, misc]

__all__ = [
    "Fraction",
    "Ge",
    "Gt",
    "Interval",
    "Len",
    "MultipleOf",
    "Natural",
    "NonNegativeFloat",
    "Positive",
    "PositiveFloat",
    "Probability",
]

Natural = Annotated[int, Ge(0)]
Positive = Annotated[int, Ge(1)]
NonNegativeFloat = Annotated[float, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
Probability = Annotated[float, Interval(ge=0, lt=1)]
"""Probability of dropout, below 1."""
