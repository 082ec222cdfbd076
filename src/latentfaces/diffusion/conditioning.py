"""Labels of images as the condition of the network."""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latentfaces.errors import UserError
from latentfaces.labels import Label

FREE = "free"
"""Requested value of a label that is to stay unknown."""
FEWEST, NEAREST = 20, 0.05
"""Fewest rows that are drawn from, and the fraction of rows that match a number."""
LABEL_STREAM = 1
"""Part of the seed of labels, which makes them independent of the noise of the same sample."""


class Conditioning:
    """Map labels (b, L), NaN where unknown, to the condition (b, size) of the network.

    A label has one entry for its value, or one per choice of a category, and an entry that is 1 if the value is known.
    All entries of an unknown label are 0, so that a condition of zeros means that nothing is known.

    Args:
        labels: the labels, or their fields as mappings.
        dropout: probability that training drops a label, each by itself.
        joint_dropout: probability that training drops all labels of an image.
    """

    def __init__(
        self, labels: Sequence[Mapping[str, Any] | Label], dropout: float = 0.1, joint_dropout: float = 0.1
    ) -> None:
        self.labels = [label if isinstance(label, Label) else Label(**label) for label in labels]
        self.dropout, self.joint_dropout = dropout, joint_dropout
        self.names = [label.name for label in self.labels]
        self.entries = [
            (label.name, entry) for label in self.labels for entry in (*(label.choices or [label.kind]), None)
        ]
        """Label and meaning of each entry of the condition: a choice, the kind of the value, or None for "known"."""
        self.size = len(self.entries)

    def __call__(self, values: Tensor) -> Tensor:
        """Return the condition (b, size) for labels (b, L), float; a value that is not finite is unknown."""
        entries = []
        for label, column in zip(self.labels, values.unbind(1), strict=True):
            known, value = column.isfinite()[:, None], column.nan_to_num(0, 0, 0)
            if label.kind == "category":
                entry = F.one_hot(value.long(), len(label.choices)).to(values.dtype)
            else:
                entry = ((value - label.mean) / label.std if label.kind == "number" else value)[:, None]
            entries += [entry * known, known.to(values.dtype)]
        return torch.cat(entries, dim=1)

    def drop(self, values: Tensor) -> Tensor:
        """Return labels (b, L) with random values replaced by NaN, for training."""
        alone = torch.rand(values.shape, device=values.device) < self.dropout
        all_of_image = torch.rand(len(values), 1, device=values.device) < self.joint_dropout
        return values.masked_fill(alone | all_of_image, math.nan)

    def parse(self, asked: Mapping[str, object]) -> Tensor:
        """Return the labels (L,) of a request {name: value}: NaN where not requested, inf where "free".

        Raises:
            UserError: there is no such label or value; with the choices.
        """
        values = torch.full((len(self.labels),), math.nan)
        for name, value in asked.items():
            if name not in self.names:
                near = difflib.get_close_matches(name, self.names, 1, cutoff=0.5)
                guess = f" Did you mean {near[0]}?" if near else ""
                raise UserError(f"Unknown label labels.{name}.{guess} Labels of this run: {', '.join(self.names)}.")
            index = self.names.index(name)
            values[index] = math.inf if value == FREE else parse_value(self.labels[index], value)
        return values

    def draw(self, asked: Tensor, rows: Tensor, names: Sequence[tuple[int, int]]) -> Tensor:
        """Return labels (n, L): the requested ones, and those of one training row that matches them.

        Args:
            asked: requested labels (L,), as from `parse`.
            rows: labels (N, L) of the training images; without any, labels that are not requested are unknown.
            names: seed and number of each image, which alone choose its row.
        """
        rows = self.matching(asked, rows) if len(rows) else asked.new_full((1, len(asked)), math.nan)
        chosen = [int(np.random.default_rng((*name, LABEL_STREAM)).integers(len(rows))) for name in names]
        return torch.where(asked.isnan(), rows[chosen], asked)

    def matching(self, asked: Tensor, rows: Tensor) -> Tensor:
        """Return the rows (m, L) that match the requested labels; all rows where fewer than `FEWEST` do."""
        match = torch.ones(len(rows), dtype=torch.bool)
        for label, value, column in zip(self.labels, asked, rows.unbind(1), strict=True):
            if not value.isfinite():
                continue
            away = (column - value).abs()
            match &= away <= (away.nanquantile(NEAREST) if label.kind == "number" else 0)
        return rows[match] if match.sum() >= FEWEST else rows

    def describe(self, values: Tensor) -> dict[str, float | str]:
        """Return the known values of labels (L,) by name, as a user types them."""
        return {
            label.name: label.choices[int(value)] if label.kind == "category" else float(f"{value:.6g}")
            for label, value in zip(self.labels, values.tolist(), strict=True)
            if math.isfinite(value)
        }


def parse_value(label: Label, value: object) -> float:
    """Return a value of the label as a number.

    Raises:
        UserError: it is no value of this label.
    """
    if label.kind == "category":
        same = [choice for choice in label.choices if choice == str(value)]
        if same := same or [choice for choice in label.choices if is_read_as(choice, value)]:
            return float(label.choices.index(same[0]))
        choices = ", ".join(label.choices)
    elif label.kind == "binary":
        if value in (0, 1):
            return float(value)
        choices = "0, 1"
    else:
        if isinstance(value, int | float) and label.low <= value <= label.high:
            return float(value)
        choices = f"{label.low:g} to {label.high:g}"
    raise UserError(f"labels.{label.name}={value} is not a value of this label. Choices: {choices}, {FREE}.")


def is_read_as(text: str, value: object) -> bool:
    """Return whether Hydra may have read a text as this value: 20_29 as 2029, 1.50 as 1.5, true as True."""
    if isinstance(value, bool):
        return text.casefold() == str(value).casefold()
    try:
        return float(text) == value
    except ValueError:
        return False
