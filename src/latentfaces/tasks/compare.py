"""Grid of samples that differ in their labels alone."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import make_grid

from latentfaces.errors import UserError
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks.base import SamplingTask
from latentfaces.tasks.output import PictureFolder

GAP, MIN_FONT = 6, 12
"""Pixels between cells, and the smallest font size."""


@dataclass(kw_only=True)
class Compare(SamplingTask):
    """A cell of `num_images` samples for each value in `rows` and `columns`, with the same noise in every cell.

    Other labels are the same in every cell too: those that are requested, or else drawn as for new samples.

    Args:
        rows: values by label, as {"Smiling": [0, 1]}; of several labels every combination.
        columns: as `rows`.
    """

    rows: dict[str, Any] | None
    columns: dict[str, Any] | None

    def __call__(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write the samples of all cells. Return the path of the grid."""
        rows, columns = combinations("rows", self.rows), combinations("columns", self.columns)
        if pipeline.conditioning is None:
            raise UserError("task=compare needs a run that was trained with data.labels. Choose another run=...")
        if not self.rows and not self.columns:
            raise UserError("task=compare has nothing to compare. Give values of a label: 'task.rows={NAME: [0, 1]}'.")
        if twice := (self.rows or {}).keys() & (self.columns or {}).keys():
            raise UserError(f"{min(twice)} is in task.rows and in task.columns. Leave one out.")
        cells = [pipeline.conditioning.parse({**row, **column}) for row in rows for column in columns]
        names = [(self.seed, number) for number in range(self.num_images)]
        own = pipeline.labels_for(names)
        labels = torch.cat([torch.where(cell.isnan(), own, cell) for cell in cells])
        faces = pipeline.faces(len(cells) * names, self.sampler, self.batch_size, labels)
        pictures.add(faces, [pipeline.conditioning.describe(row) for row in labels])
        side = math.ceil(math.sqrt(self.num_images))
        tiles = torch.stack([make_grid(cell, side, padding=0) for cell in faces.split(self.num_images)])
        return pictures.write(titled(tiles, [*map(title, rows)], [*map(title, columns)]), "grid.png")


def combinations(key: str, values: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return every combination of the values of the labels; one without labels if there are none.

    Raises:
        UserError: the values of a label are no list.
    """
    values = values or {}
    for name, choices in values.items():
        if not isinstance(choices, Sequence) or isinstance(choices, str) or not choices:
            raise UserError(f"task.{key} has no list for {name}. Write 'task.{key}={{{name}: [0, 1]}}'.")
    return [dict(zip(values, choices, strict=True)) for choices in itertools.product(*values.values())]


def title(labels: Mapping[str, Any]) -> str:
    """Return labels as text."""
    return "\n".join(f"{name}={value}" for name, value in labels.items())


def titled(tiles: Tensor, rows: Sequence[str], columns: Sequence[str]) -> Tensor:
    """Arrange tiles (rows * columns, 3, H, W) uint8 with titles at the left and above; an image (3, H', W') uint8."""
    height, width = tiles.shape[-2:]
    font = ImageFont.load_default(max(MIN_FONT, height // 12))
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    boxes = [[draw.multiline_textbbox((0, 0), text, font) for text in texts] for texts in (rows, columns)]
    left = GAP + (math.ceil(max(box[2] for box in boxes[0])) + GAP if any(rows) else 0)
    top = GAP + (math.ceil(max(box[3] for box in boxes[1])) + GAP if any(columns) else 0)
    # A cell is at least as large as its titles.
    across = GAP + max(width, *(math.ceil(box[2]) for box in boxes[1]))
    down = GAP + max(height, *(math.ceil(box[3]) for box in boxes[0]))
    picture = Image.new("RGB", (left + len(columns) * across, top + len(rows) * down), "white")
    draw = ImageDraw.Draw(picture)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, len(columns))
        corner = left + column * across, top + row * down
        picture.paste(to_pil_image(tile), corner)
        if row == 0:
            draw.multiline_text((corner[0], GAP), columns[column], "black", font)
        if column == 0:
            draw.multiline_text((GAP, corner[1]), rows[row], "black", font)
    return pil_to_tensor(picture)
