"""Choices that depend on the device change the speed, never the result."""

import pytest
import torch
from torch import nn

from latentfaces.nn import DeviceChoices, SelfAttention2d, attention_kernel, choose_kernel, has_convolutions


@pytest.mark.parametrize(
    ("device", "dtype", "kernel"),
    [
        ("cpu", torch.bfloat16, "plain"),
        ("cpu", torch.float32, "sdpa"),
        ("cuda", torch.bfloat16, "sdpa"),
        ("mps", torch.float32, "sdpa"),
    ],
)
def test_the_kernel_is_the_fastest_measured(device: str, dtype: torch.dtype, kernel: str) -> None:
    assert attention_kernel(torch.device(device), dtype) == kernel


def test_only_gpus_put_channels_last() -> None:
    cuda = torch.device("cuda")
    choices = [DeviceChoices.fastest(torch.device(name)) for name in ("cpu", "mps")]
    assert not any(choice.channels_last or choice.compile for choice in choices)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
        assert DeviceChoices.fastest(cuda) == DeviceChoices("32-true", None, None, True, False)


def test_the_kernel_chosen_is_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network, x = nn.Sequential(SelfAttention2d(8, 2), nn.Conv2d(8, 8, 1)), torch.randn(2, 8, 4, 4)
    nn.init.normal_(network[0].out.weight)
    called: list[int] = []
    fused = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", lambda *a: called.append(1) or fused(*a))
    outputs = []
    for kernel, calls in (("sdpa", 1), ("plain", 1), (None, 2)):  # None: sdpa, in float32
        assert choose_kernel(network, kernel)  # type: ignore[arg-type]
        outputs.append(network(x))
        assert len(called) == calls
    assert torch.allclose(outputs[0], outputs[1], atol=1e-6)
    assert not choose_kernel(nn.Conv2d(1, 1, 1), "plain")
    assert has_convolutions(network)
    assert not has_convolutions(nn.Linear(1, 1))
