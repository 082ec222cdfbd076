"""How a task's pictures lie in its grid."""

from collections.abc import Sequence

import torch
from torch import Tensor

MAX_COLUMNS = 16


def bands(rows: Sequence[Tensor]) -> tuple[Tensor, int]:
    """Rows of as many images (n, 3, R, R) each, one below the other; broken where they are longer than 16.

    Returns:
        All images in the order of the grid, and its columns.
    """
    columns = min(MAX_COLUMNS, len(rows[0]))
    parts = zip(*(row.split(columns) for row in rows), strict=True)
    return torch.cat([part for band in parts for part in band]), columns


def beside(*columns: Tensor) -> tuple[Tensor, int]:
    """A line for each photo: columns (n, 3, R, R), and blocks (n * k, 3, R, R) with k pictures of each photo in turn.

    Returns:
        All images in the order of the grid, and its columns.
    """
    num_lines = len(columns[0])
    lines = torch.cat([part.unflatten(0, (num_lines, -1)) for part in columns], dim=1)
    return lines.flatten(0, 1), lines.shape[1]
