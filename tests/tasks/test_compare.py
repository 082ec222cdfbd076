"""Grids of labels: combinations, and tiles with titles."""

import pytest
import torch

from latentfaces.errors import UserError
from latentfaces.tasks.compare import combinations, title, titled


def test_every_combination_of_the_values() -> None:
    assert combinations("rows", None) == [{}]
    both = combinations("rows", {"smile": [0, 1], "hair": ["red", "free"]})
    assert [title(labels) for labels in both] == [
        "smile=0\nhair=red", "smile=0\nhair=free", "smile=1\nhair=red", "smile=1\nhair=free",
    ]  # fmt: skip
    for values in (1, "red", []):
        with pytest.raises(
            UserError, match=r"task\.columns has no list for hair\. Write 'task\.columns={hair: \[0, 1\]}'"
        ):
            combinations("columns", {"hair": values})


def test_tiles_are_in_order_and_titles_at_their_sides() -> None:
    tiles = torch.arange(40, 240, 40, dtype=torch.uint8)[:4, None, None, None].expand(4, 3, 60, 60).contiguous()
    picture = titled(tiles, ["smile=0", "smile=1"], ["red", "blond"])
    seen = [int(picture[0, y, x]) for y in (-96, -30) for x in (-96, -30)]
    assert seen == [40, 80, 120, 160]
    left, top = picture[:, -132:, :-132], picture[:, :-132, -132:]
    assert (left == 0).any()
    assert (top == 0).any()
    assert (picture[:, :-132, :-132] == 255).all()  # the corner


def test_there_is_no_margin_without_titles() -> None:
    assert titled(torch.zeros(1, 3, 60, 60, dtype=torch.uint8), [""], [""]).shape == (3, 72, 72)
