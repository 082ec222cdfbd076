"""Schema of a label: what is known of an image."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["binary", "category", "number"]


@dataclass(frozen=True)
class Label:
    """Name, kind and range of a label. The statistics are over the training images.

    Values are floats: 0 or 1 of a binary, the index of a category's choice, a number as it is; NaN where unknown.
    """

    name: str
    kind: Kind
    choices: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(self.choices))  # a config has lists
