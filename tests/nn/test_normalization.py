"""RMSNorm: value and explicit gradient, compared with the formula in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from latentfaces.nn import RMSNorm, zero_init

EPSILON = 1e-6  # of the definition


def formula(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPSILON).sqrt()


def test_value_and_gradient_are_the_formulas() -> None:
    x = (3 * torch.randn(2, 5, 8, dtype=torch.float64)).requires_grad_()
    norm, towards = RMSNorm(8), torch.randn(2, 5, 8, dtype=torch.float64)
    assert torch.allclose(norm(x), formula(x), rtol=1e-12, atol=0)
    (expected,) = torch.autograd.grad(formula(x), x, towards)
    (gradient,) = torch.autograd.grad(norm(x), x, towards)
    assert torch.allclose(gradient, expected, rtol=1e-10, atol=1e-12)


def test_weight_multiplies_each_channel_and_gets_its_gradient() -> None:
    x, norm = torch.randn(3, 4, dtype=torch.float64), RMSNorm(4, weighted=True).double()
    assert norm.weight is not None
    torch.nn.init.normal_(norm.weight)
    norm(x).sum().backward()
    assert torch.allclose(norm(x), formula(x) * norm.weight)
    assert norm.weight.grad is not None
    assert torch.allclose(norm.weight.grad, formula(x).sum(0))


def test_zero_stays_zero_with_a_finite_gradient() -> None:
    x = torch.zeros(1, 4, requires_grad=True)
    RMSNorm(4)(x).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, torch.full((1, 4), EPSILON**-0.5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_type_is_that_of_the_input_also_with_a_float32_weight(dtype: torch.dtype) -> None:
    x = torch.randn(3, 4)
    normed = RMSNorm(4, weighted=True)(x.to(dtype))
    assert normed.dtype == dtype
    assert torch.allclose(normed.float(), formula(x), rtol=2e-2)


def test_strided_heads_are_normed_each_by_itself() -> None:
    heads = torch.randn(2, 3, 4, 8, dtype=torch.float64).transpose(1, 2)
    assert torch.allclose(RMSNorm(8)(heads), formula(heads.contiguous()))


def test_autocast_of_a_gpu_makes_no_copy_in_float32() -> None:
    """On tensors without memory, which need no GPU."""
    enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        with FakeTensorMode(), torch.device("cuda"):
            x = torch.empty(2, 3, 8, dtype=torch.bfloat16)
            assert F.rms_norm(x, (8,)).dtype == torch.float32
            assert RMSNorm(8)(x).dtype == RMSNorm(8, weighted=True)(x).dtype == torch.bfloat16
            assert torch.is_autocast_enabled("cuda")
    finally:
        torch.set_autocast_enabled("cuda", enabled)
        torch.set_autocast_dtype("cuda", dtype)


def test_layers_of_zeros_return_zeros() -> None:
    assert not zero_init(nn.Linear(3, 4))(torch.ones(2, 3)).any()
    assert not zero_init(nn.Conv2d(3, 4, 1))(torch.ones(2, 3, 5, 5)).any()
