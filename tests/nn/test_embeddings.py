"""Times and places as vectors: known angles, relative positions, lengths kept."""

import math

import pytest
import torch
from torch import Tensor, nn

from latentfaces.nn import TimeEmbedding, position_table_2d, rotate, rotation_2d

HEIGHT, WIDTH, CHANNELS = 4, 5, 16


def scores_between_all_places() -> Tensor:
    """Return the products of one query and one key put at all pairs of places, (row, column, row, column)."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, CHANNELS, generator=generator)
    rotation = rotation_2d(HEIGHT, WIDTH, CHANNELS)
    everywhere = (HEIGHT * WIDTH, CHANNELS)
    scores = rotate(query.expand(everywhere), rotation) @ rotate(key.expand(everywhere), rotation).T
    return scores.view(HEIGHT, WIDTH, HEIGHT, WIDTH)


def test_products_depend_on_the_distance_alone_in_rows_and_in_columns() -> None:
    scores = scores_between_all_places()
    assert torch.allclose(scores[:-1, :, :-1], scores[1:, :, 1:], atol=1e-5)
    assert torch.allclose(scores[:, :-1, :, :-1], scores[:, 1:, :, 1:], atol=1e-5)


def test_products_tell_every_distance_from_every_other() -> None:
    from_the_middle = scores_between_all_places()[2, 2].flatten()
    gaps = (from_the_middle[:, None] - from_the_middle).abs() + torch.eye(HEIGHT * WIDTH)
    assert gaps.min() > 1e-4


def test_first_place_is_not_turned() -> None:
    x = torch.randn(1, CHANNELS)
    assert torch.equal(rotate(x, rotation_2d(HEIGHT, WIDTH, CHANNELS)[:, :1]), x)


def test_turning_keeps_lengths() -> None:
    x = torch.randn(3, 2, HEIGHT * WIDTH, CHANNELS)
    turned = rotate(x, rotation_2d(HEIGHT, WIDTH, CHANNELS))
    assert not torch.allclose(turned, x)
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-5)


def test_angles_are_place_times_frequency_first_of_the_row_then_of_the_column() -> None:
    rotation = rotation_2d(HEIGHT, WIDTH, CHANNELS)
    row, column = 3, 2
    frequencies = [100 ** (-i / 4) for i in range(4)]
    angles = [row * f for f in frequencies] + [column * f for f in frequencies]
    cosines, sines = rotation[:, row * WIDTH + column, : CHANNELS // 2]
    assert cosines.tolist() == pytest.approx([math.cos(a) for a in angles], abs=1e-6)
    assert sines.tolist() == pytest.approx([math.sin(a) for a in angles], abs=1e-6)


def test_pair_is_turned_as_a_complex_number() -> None:
    x = torch.randn(HEIGHT * WIDTH, CHANNELS)
    rotation = rotation_2d(HEIGHT, WIDTH, CHANNELS)
    half = CHANNELS // 2
    turned = torch.complex(x[:, :half], x[:, half:]) * torch.complex(*rotation[..., :half])
    assert torch.allclose(rotate(x, rotation), torch.cat([turned.real, turned.imag], dim=-1), atol=1e-6)


@pytest.mark.parametrize("channels", [2, 6, 18])
def test_channels_that_do_not_split_in_four_are_refused(channels: int) -> None:
    with pytest.raises(ValueError, match=f"not {channels}"):
        rotation_2d(2, 2, channels)


def test_position_table_holds_sines_and_cosines_of_row_and_column() -> None:
    table = position_table_2d(HEIGHT, WIDTH, CHANNELS)
    assert table.shape == (HEIGHT * WIDTH, CHANNELS)
    row, column = 3, 2
    frequencies = [10_000 ** (-i / 4) for i in range(4)]
    expected = [f(p * w) for p in (row, column) for f in (math.sin, math.cos) for w in frequencies]
    assert table[row * WIDTH + column].tolist() == pytest.approx(expected, abs=1e-6)


def test_position_table_rejects_channels_that_do_not_split_in_four() -> None:
    with pytest.raises(ValueError, match="not 6"):
        position_table_2d(2, 2, 6)


def features(t: list[float], num_frequencies: int) -> Tensor:
    """Return the Fourier features alone."""
    embedding = TimeEmbedding(8, num_frequencies)
    embedding.layers = nn.Sequential()
    return embedding(torch.tensor(t))


def test_features_are_cosines_and_sines_of_a_thousand_t() -> None:
    got = features([0.0, 0.001, 0.3], num_frequencies=2)
    # With two frequencies the periods are 1 and 10,000^(1/2) = 100 in units of t * 1000.
    expected = [[math.cos(s), math.cos(s / 100), math.sin(s), math.sin(s / 100)] for s in (0.0, 1.0, 300.0)]
    assert torch.allclose(got, torch.tensor(expected), atol=1e-4)


def test_features_tell_near_times_apart() -> None:
    near = features([0.5, 0.501], num_frequencies=128)
    assert (near[0] - near[1]).norm() > 0.5


def test_embedding_has_the_asked_width_and_treats_samples_alone() -> None:
    torch.manual_seed(0)
    embedding = TimeEmbedding(24, num_frequencies=8)
    t = torch.tensor([0.1, 0.7, 1.0])
    together = embedding(t)
    assert together.shape == (3, 24)
    assert torch.allclose(together[1:2], embedding(t[1:2]), atol=1e-6)


def test_embedding_of_a_new_input_starts_at_zero() -> None:
    embedding = TimeEmbedding(24, zero=True)
    assert not embedding(torch.rand(3)).any()
    assert not any("frequencies" in name for name in embedding.state_dict())
