"""Labels of the images of a pack: schema and values."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from latentfaces.data.label_files import CLASS, Row, image_key, label_rows
from latentfaces.data.pack import Pack
from latentfaces.data.sources import Photos, Source, natural_key
from latentfaces.errors import UserError, one_line
from latentfaces.labels import Kind, Label

MAX_CHOICES, MAX_SHOWN = 64, 8
"""Choices of a category, and those that the summary shows."""
PAIRS = (("0", "1"), ("-1", "1"), ("false", "true"), ("no", "yes"))
"""Texts of a binary: 0, then 1."""
TRUTH = {text: float(value) for pair in PAIRS for value, text in enumerate(pair)}
MAX_NUMBER = 1e38
WRITABLE = re.compile(r"(?!\d+$)[A-Za-z0-9_][\w .+%/-]*", re.ASCII)
"""Names of labels that Hydra can read in an override, as written by `as_text`."""


@dataclass(frozen=True)
class LabelTable:
    """Labels of the images of a pack.

    Args:
        labels: schema, from the training images alone.
        values: (N, L) float32, a row per image in the pack's order; see `Label`. NaN where missing.
        summary: one line per label, for the user.
    """

    labels: list[Label]
    values: NDArray[np.float32]
    summary: str


def read_labels(
    wanted: str,
    source: Source,
    pack: Pack,
    chosen: Sequence[str] | None = None,
    kinds: Mapping[str, str] | None = None,
) -> LabelTable:
    """Read labels of images. Images without a row have missing values.

    Args:
        wanted: file or rule, see `label_rows`.
        source: the images.
        pack: the pack of the images. The training images decide kinds, choices and statistics.
        chosen: names of the labels; None for all that can be used.
        kinds: kinds that the user sets, by label.

    Raises:
        UserError: naming file and line, or the key.
    """
    names, train, kinds = pack.manifest["names"], pack.train_indices, kinds or {}
    cells = Cells(names, label_rows(wanted, source, names))
    if not cells.places:
        example = f"{cells.unmatched} is none of the images" if cells.unmatched else "it has no rows"
        raise UserError(
            f"data.labels={wanted} has no label of these images, such as {names[0]}: {example}. Choose another file."
        )
    check_names(wanted, cells, chosen, kinds)
    labels, columns, left_out = [], [], []
    for name in dict.fromkeys(chosen or cells.columns):
        texts = cells.columns[name]
        seen = {texts[index] for index in train} - {""}
        kind = kinds.get(name) or ("category" if name == CLASS else infer_kind(seen))
        num_choices = len(seen) if kind == "category" else 1
        if seen and num_choices <= MAX_CHOICES:
            label, column = parse_column(name, kind, texts, train, cells)
            labels.append(label)
            columns.append(column)
        elif chosen is None:
            left_out.append(f"{name} ({len(seen):,} different texts)")
        else:
            raise UserError(
                f"{name} of data.labels={wanted} has {len(seen):,} different texts in the training images. A category "
                f"has 1 to {MAX_CHOICES}. Choose other labels."
            )
    if not labels:
        raise UserError(f"data.labels={wanted} has no usable label, only {', '.join(left_out)}. Choose another file.")
    values = np.stack(columns, axis=1)
    head = f"Labels: {len(cells.places):,} of {len(names):,} images have a row in {wanted}"
    if cells.num_unmatched:
        head += f"; {cells.num_unmatched:,} row(s) have no image, such as {cells.unmatched}"
    if left_out:
        head += f"; left out: {', '.join(left_out)}"
    return LabelTable(labels, values, "\n".join([head, *summary_lines(labels, values, values[train])]))


class Cells:
    """Texts of the labels of images, in the order of the images.

    Args:
        names: names of the images.
        rows: rows of a file.

    Raises:
        UserError: two rows are of one image, or one is of several images.
    """

    def __init__(self, names: list[str], rows: Iterable[Row]) -> None:
        self.columns: dict[str, list[str]] = {}
        self.places: dict[int, str] = {}
        """Where the row of an image is."""
        self.num_unmatched, self.unmatched = 0, ""
        """Number of rows without an image, and the first."""
        indices = dict[str, int | None]()  # None of a name of several images
        keys = [image_key(name) for name in names]
        for number, path in enumerate(map(PurePosixPath, keys)):
            for key in {path.name, path.stem, str(path.with_suffix(""))}:
                indices[key] = None if key in indices else number
        indices |= {key: number for number, key in enumerate(keys)}
        for row in rows:
            key = name = image_key(row.image)
            if key not in indices and Photos.is_picture(name):  # aligned faces are PNG, their photos may not be
                key = str(PurePosixPath(name).with_suffix(""))
            if key not in indices:
                self.num_unmatched, self.unmatched = self.num_unmatched + 1, self.unmatched or one_line(name)[:200]
                continue
            if (index := indices[key]) is None:
                raise UserError(
                    f"{row.place}: several images are named {one_line(name)}. Give the path below the root."
                )
            if index in self.places:
                raise UserError(f"{row.place}: {names[index]} has a row already, {self.places[index]}. Remove one.")
            self.places[index] = row.place
            for column, text in row.cells.items():
                if column not in self.columns:
                    self.columns[column] = [""] * len(names)
                self.columns[column][index] = text


def check_names(wanted: str, cells: Cells, chosen: Sequence[str] | None, kinds: Mapping[str, str]) -> None:
    """Reject labels that the file does not have, and unknown kinds."""
    keys = {f"model.labels={name}": name for name in chosen or ()}
    keys |= {f"data.label_types.{name}={kind}": name for name, kind in kinds.items()}
    for key, name in keys.items():
        if name not in cells.columns:
            raise UserError(f"{key} is not in data.labels={wanted}. Labels: {', '.join(cells.columns)}.")
    for name in chosen or cells.columns:
        if not WRITABLE.fullmatch(name):
            raise UserError(
                f"The label {name} of data.labels={wanted} cannot be written as labels.NAME=VALUE. Use ASCII letters, "
                "digits and spaces, or choose other labels with model.labels."
            )
    for name, kind in kinds.items():
        if kind not in get_args(Kind):
            raise UserError(f"data.label_types.{name}={kind} is invalid. Kinds: {', '.join(get_args(Kind))}.")


def as_number(text: str) -> float:
    """Return the number that a text is; NaN if it is none, or not finite in float32."""
    try:
        number = float(text.replace("_", "no number"))  # Python reads 20_29, an age group, as 2029
    except ValueError:
        return math.nan
    return number if abs(number) < MAX_NUMBER else math.nan


def canonical(text: str) -> str:
    """Return how `PAIRS` write a text: 1.0 is 1, and True is true."""
    number = as_number(text)
    return text.casefold() if math.isnan(number) else f"{number:g}"


def infer_kind(seen: set[str]) -> Kind:
    """Return the kind of a label with these texts. It is a number if most of them are, so that typing errors show."""
    texts = {canonical(text) for text in seen}
    if any(texts <= set(pair) for pair in PAIRS):
        return "binary"
    numbers = sum(not math.isnan(as_number(text)) for text in seen)
    return "number" if 2 * numbers > len(seen) else "category"


def parse_column(
    name: str, kind: str, texts: list[str], train: NDArray[np.int64], cells: Cells
) -> tuple[Label, NDArray[np.float32]]:
    """Return a label of some kind, and its values (N,).

    A held-out image with a choice that no training image has counts as missing.
    """
    if kind == "category":
        choices = sorted({texts[index] for index in train} - {""}, key=lambda text: (natural_key(text), text))
        indices = {choice: float(index) for index, choice in enumerate(choices)}
        return Label(name, "category", tuple(choices)), np.array([indices.get(t, math.nan) for t in texts], np.float32)
    numbers = {
        text: as_number(text) if kind == "number" else TRUTH.get(canonical(text), math.nan) for text in set(texts)
    }
    values = np.array([numbers[text] for text in texts])
    wrong = next((index for index, text in enumerate(texts) if text and math.isnan(numbers[text])), None)
    if wrong is not None:
        expected = "a number" if kind == "number" else "0 or 1"
        raise UserError(
            f"{cells.places[wrong]}: {name} is {texts[wrong][:40]!r}, not {expected}. Correct it, leave the cell "
            f"empty, or set data.label_types.{name}=category"
        )
    if kind == "binary":
        return Label(name, "binary"), values.astype(np.float32)
    trained = values[train][~np.isnan(values[train])]
    low, high = float(trained.min()), float(trained.max())
    std = float(trained.std()) if low < high else 1.0  # rounding gives a constant a tiny std
    return Label(name, "number", (), float(trained.mean()), std, low, high), values.astype(np.float32)


def summary_lines(labels: list[Label], values: NDArray[np.float32], trained: NDArray[np.float32]) -> list[str]:
    """Return a line per label: its kind, its distribution in the training images, and how many images lack it."""
    width = max(len(label.name) for label in labels)
    lines = []
    for label, column, all_values in zip(labels, trained.T, values.T, strict=True):
        known = column[~np.isnan(column)]
        if label.kind == "number":
            text = f"{label.low:g} to {label.high:g}, mean {label.mean:.4g}, std {label.std:.4g}"
        elif label.kind == "binary":
            text = f"1 in {known.mean():.1%}"
        else:
            shown = [f"{choice[:20]} {(known == index).mean():.1%}" for index, choice in enumerate(label.choices)]
            text = ", ".join(shown[:MAX_SHOWN]) + f" and {len(shown) - MAX_SHOWN} more" * (len(shown) > MAX_SHOWN)
        missing = int(np.isnan(all_values).sum())
        lines.append(
            f"  {label.name:<{width}}  {label.kind:<8}  {text}" + (f"; {missing:,} missing" if missing else "")
        )
    return lines
