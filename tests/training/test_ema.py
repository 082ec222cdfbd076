"""The average against its definition, and that nothing ever loses or swaps it."""

import pytest
import torch
from torch import nn

from latentfaces.training.callbacks import EMA
from latentfaces.training.callbacks.ema import power_of_width


def profile_average(values: list[float], gamma: float) -> float:
    """The weights of all past values by definition: proportional to the integral of t^gamma over their interval."""
    edges = torch.arange(len(values) + 1, dtype=torch.float64) ** (gamma + 1)
    weights = (edges[1:] - edges[:-1]) / edges[-1]
    return float((weights * torch.tensor(values, dtype=torch.float64)).sum())


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_exponents_are_those_of_the_paper(sigma_rel: float, gamma: float) -> None:
    assert power_of_width(sigma_rel) == pytest.approx(gamma, abs=0.01)


def test_average_is_the_power_profile_over_all_steps() -> None:
    ema = EMA(sigma_rel=0.1)
    values = [1.0, -2.0, 0.5, 4.0, 3.0, 2.5, -1.0]
    average = 123.0  # the start: forgotten in the first update
    for n, value in enumerate(values, start=1):
        average += (1 - ema.decay(n)) * (value - average)
        assert average == pytest.approx(profile_average(values[:n], ema.gamma), abs=0.05)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.3])
def test_impossible_widths_are_refused(sigma_rel: float) -> None:
    with pytest.raises(ValueError, match="sigma_rel"):
        EMA(sigma_rel)


class FakeModule(nn.Module):
    """Stands for a LightningModule: only its weights matter here."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.network = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.network.weight, value)


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> tuple[EMA, FakeModule]:
    """An average of 7 beside a weight of 3."""
    monkeypatch.setattr(EMA, "parameters", staticmethod(lambda module: [p.data for p in module.network.parameters()]))
    ema, module = EMA(), FakeModule(3.0)
    ema.average = [torch.full((1, 1), 7.0)]
    return ema, module


def test_averaged_weights_are_there_inside_and_gone_outside(pair: tuple[EMA, FakeModule]) -> None:
    ema, module = pair
    with ema.averaged(module):  # type: ignore[arg-type]
        assert module.network.weight.item() == 7
        with ema.averaged(module):  # type: ignore[arg-type]
            assert module.network.weight.item() == 7
    assert module.network.weight.item() == 3
    assert ema.average[0].item() == 7


def test_an_exception_in_validation_leaves_both_in_their_place(pair: tuple[EMA, FakeModule]) -> None:
    ema, module = pair
    ema.on_validation_start(None, module)  # type: ignore[arg-type]
    assert module.network.weight.item() == 7
    ema.on_exception(None, module, KeyboardInterrupt())  # type: ignore[arg-type]
    assert module.network.weight.item() == 3
    assert ema.state_dict()["average"][0].item() == 7
