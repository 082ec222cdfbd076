"""Statistics of tensors by hand."""

import math

import pytest
import torch
from torch import nn

from latentfaces.evaluation import TensorValues, track_tensor_values
from latentfaces.evaluation.tensor_values import activations


def row(tensor: torch.Tensor) -> dict[str, float]:
    (values,) = track_tensor_values({"x": tensor}).rows
    return {key: float(value) for key, value in values.items() if key != "tensor"}


def test_a_tensor_by_hand() -> None:
    values = row(torch.tensor([[-1.0, 0.0], [0.0, 3.0]]))
    assert values["mean"] == 0.5
    assert values["std"] == pytest.approx(1.5)
    assert (values["min"], values["max"], values["zero"]) == (-1.0, 3.0, 0.5)
    assert (values["nan"], values["saturated"]) == (0.0, 0.0)


def test_values_that_are_not_finite_are_counted_and_left_out() -> None:
    values = row(torch.tensor([1.0, 3.0, math.nan, math.inf]))
    assert (values["mean"], values["std"], values["min"], values["max"]) == (2.0, 1.0, 1.0, 3.0)
    assert values["nan"] == 0.5


def test_nothing_but_nan_is_told_without_a_crash() -> None:
    values = row(torch.full((3,), math.nan))
    assert (values["nan"], values["mean"], values["min"], values["max"]) == (1.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("tensor", "share"),
    [
        (torch.tensor([-1.0, -1.0, -1.0, 0.2, 1.0, 1.0, 0.1, 0.0]), 3 / 8),  # one at each end must be there
        (torch.linspace(-1, 1, 50), 0.0),
        (torch.full((10,), 2.0), 0.0),  # a constant is no clamp
    ],
)
def test_saturated_is_the_share_at_the_ends_beside_those_that_must_be(tensor: torch.Tensor, share: float) -> None:
    assert row(tensor)["saturated"] == pytest.approx(share)


def test_tanh_driven_to_its_ends_shows() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert row(torch.tanh(values))["saturated"] == 0
    assert row(torch.tanh(100 * values).bfloat16())["saturated"] > 0.9


def test_of_a_module_weights_and_gradients_are_tracked() -> None:
    layer = nn.Linear(2, 1)
    before = {str(r["tensor"]) for r in track_tensor_values(layer).rows}
    layer(torch.ones(1, 2)).sum().backward()
    rows = {str(r["tensor"]): r for r in track_tensor_values(layer).rows}
    assert before == {"weight", "bias"}
    assert set(rows) == {"weight", "weight.grad", "bias", "bias.grad"}
    assert rows["weight.grad"]["mean"] == 1.0


def test_history_is_printed_and_plotted() -> None:
    history = TensorValues()
    for step in (0, 10):
        track_tensor_values({"a": torch.tensor([1.0, step]), "b": torch.zeros(2)}, step, history)
    assert history.table().splitlines()[1].split()[:2] == ["a", "5.5"]
    (means,) = dict(history.panels())["weights, mean"].axes
    assert means.get_title(loc="left") == "weights, mean"
    assert [list(line.get_ydata()) for line in means.lines] == [[0.5, 5.5], [0.0, 0.0]]


def test_activations_are_seen_within_the_context_only() -> None:
    network = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), nn.Linear(3, 1))
    with activations(network, depth=1) as seen:
        network(torch.ones(4, 2))
    assert {name: tuple(tensor.shape) for name, tensor in seen.items()} == {"0": (4, 3), "1": (4, 1)}
    seen.clear()
    network(torch.ones(4, 2))
    assert seen == {}


def test_weights_gradients_and_activations_have_panels_of_their_own_and_shares_only_where_there_are_some() -> None:
    tensors = {"a.weight": torch.ones(4), "a.weight.grad": torch.tensor([0.0, 1.0]), "a.output": torch.full((4,), 2.0)}
    titles = [title for title, _ in track_tensor_values(tensors).panels()]
    spread = ["mean", "std", "min and max"]
    expected = [f"{kind}, {what}" for kind in ("weights", "gradients", "activations") for what in spread]
    assert titles == [*expected[:6], "gradients, fraction of zeros", *expected[6:]]
