"""Schema of a label, shared by the data and the diffusion model."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["binary", "category", "number"]


@dataclass(frozen=True)
class Label:
    """One label of the images. Its value is a float: 0 or 1, the index of the choice, or the number; NaN if unknown.

    Args:
        name: name of the label.
        kind: "binary", "category" or "number".
        choices: names of the categories, in order.
        mean, std: of a number over the training images.
        low, high: range of a number in the training images.
    """

    name: str
    kind: Kind
    choices: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    low: float = 0.0
    high: float = 1.0

    @property
    def contrast(self) -> tuple[float, float]:
        """Two values to compare: 0 and 1, first and last choice, or a std below and above the mean."""
        if self.kind == "category":
            return 0.0, len(self.choices) - 1.0
        if self.kind == "binary":
            return 0.0, 1.0
        return max(self.low, self.mean - self.std), min(self.high, self.mean + self.std)
