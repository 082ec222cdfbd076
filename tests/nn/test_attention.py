"""Attention against loops in float64."""

import math
from importlib import import_module

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from latentfaces.nn import SelfAttention, SelfAttention2d, attention, rotation_2d


def naive_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention, one query at a time, in float64."""
    query, key, value = query.double(), key.double(), value.double()
    out = torch.empty(*query.shape[:-1], value.shape[-1], dtype=torch.float64)
    for sample in range(query.shape[0]):
        for head in range(query.shape[1]):
            for place in range(query.shape[2]):
                logits = [float(query[sample, head, place] @ k) / math.sqrt(len(k)) for k in key[sample, head]]
                weights = [math.exp(logit - max(logits)) for logit in logits]
                rows = zip(weights, value[sample, head], strict=True)
                out[sample, head, place] = sum(w * row for w, row in rows) / sum(weights)
    return out


def randomise(module: nn.Module) -> None:
    """Give every parameter a value that matters."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.03)]
)
def test_attention_equals_a_naive_softmax(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 3, 7, 8).to(dtype)
    result = attention(query, key, value)
    assert result.dtype == dtype
    assert torch.allclose(result.double(), naive_attention(query, key, value), atol=tolerance)


def test_attention_of_many_tokens_holds_few_scores_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 3, 50, 8, requires_grad=True).bfloat16()
    whole = attention(query, key, value)
    module = import_module("latentfaces.nn.attention")  # whose name in the package is the function's
    monkeypatch.setattr(module, "SCORES_AT_ONCE", 7 * 2 * 3 * 50)  # seven queries of the fifty
    held: list[int] = []
    softmax = torch.Tensor.softmax

    def note(scores: Tensor, *arguments: int) -> Tensor:
        held.append(scores.shape[-2])
        return softmax(scores, *arguments)

    monkeypatch.setattr(torch.Tensor, "softmax", note)
    assert torch.equal(attention(query, key, value), whole)
    assert held == [7] * 7 + [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_logits_do_not_overflow(dtype: torch.dtype) -> None:
    query = torch.full((1, 1, 2, 4), 100.0, dtype=dtype)
    value = torch.tensor([[[[1.0], [3.0]]]], dtype=dtype)
    assert torch.equal(attention(query, query, value), torch.full((1, 1, 2, 1), 2.0, dtype=dtype))


@pytest.mark.parametrize("qk_norm", [False, True])
def test_self_attention_equals_a_naive_computation_head_by_head(qk_norm: bool) -> None:
    torch.manual_seed(0)
    heads, head_width, height, width = 2, 8, 2, 3
    layer = SelfAttention(heads * head_width, heads, qk_norm)
    randomise(layer)
    tokens = torch.randn(2, height * width, heads * head_width)

    weights = {name: value.double() for name, value in layer.state_dict().items()}
    angle = rotation_2d(height, width, head_width).double()
    parts = tokens.double() @ weights["qkv.weight"].T + weights["qkv.bias"]

    def head_part(which: int, head: int) -> Tensor:
        first = (which * heads + head) * head_width
        return parts[..., first : first + head_width]

    def normed_and_turned(x: Tensor, norm: str) -> Tensor:
        if qk_norm:
            x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights[f"{norm}.weight"]
        half = head_width // 2
        turned = torch.complex(x[..., :half], x[..., half:]) * torch.complex(*angle[..., :half])
        return torch.cat([turned.real, turned.imag], dim=-1)

    outputs = []
    for head in range(heads):
        query = normed_and_turned(head_part(0, head), "query_norm")
        key = normed_and_turned(head_part(1, head), "key_norm")
        outputs.append(naive_attention(query[:, None], key[:, None], head_part(2, head)[:, None])[:, 0])
    expected = torch.cat(outputs, dim=-1) @ weights["out.weight"].T + weights["out.bias"]

    assert torch.allclose(layer(tokens, angle.float()).double(), expected, atol=1e-4)


def test_qk_norm_makes_the_size_of_the_tokens_irrelevant_to_the_weights() -> None:
    torch.manual_seed(0)
    layer = SelfAttention(8, 1)
    nn.init.zeros_(layer.qkv.bias)
    nn.init.zeros_(layer.out.bias)
    tokens, rotation = torch.randn(1, 4, 8), rotation_2d(2, 2, 8)
    assert torch.allclose(layer(100 * tokens, rotation), 100 * layer(tokens, rotation), rtol=1e-3, atol=1e-3)


def test_map_attention_equals_a_naive_computation_from_its_weights() -> None:
    torch.manual_seed(0)
    heads, channels = 2, 8
    layer = SelfAttention2d(channels, heads)
    randomise(layer)
    x = torch.randn(2, channels, 3, 2)

    weights = {name: value.double() for name, value in layer.state_dict().items()}
    groups = x.double().view(2, layer.norm.num_groups, -1)
    normed = (groups - groups.mean(-1, keepdim=True)) / (groups.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    tokens = (normed.view(2, channels, 6) * weights["norm.weight"][:, None] + weights["norm.bias"][:, None]).mT
    parts = tokens @ weights["qkv.weight"][:, :, 0, 0].T + weights["qkv.bias"]
    query, key, value = parts.view(2, 6, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
    mixed = naive_attention(query, key, value).transpose(1, 2).reshape(2, 6, channels)
    out = mixed @ weights["out.weight"][:, :, 0, 0].T + weights["out.bias"]
    expected = x.double() + out.mT.view(2, channels, 3, 2)

    assert torch.allclose(layer(x).double(), expected, atol=1e-4)


def test_map_attention_starts_as_the_identity() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(SelfAttention2d(8, num_heads=2)(x), x)


def test_heads_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"width=10 .* num_heads=4"):
        SelfAttention(10, 4)
    with pytest.raises(ValueError, match=r"channels=12 .* num_heads=5"):
        SelfAttention2d(12, 5)


def test_attention_over_maps_is_fused_rather_than_keeping_all_scores() -> None:
    layer, x = SelfAttention2d(32, num_heads=2), torch.randn(2, 32, 4, 4)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # an error where the fused kernel cannot take it
        assert layer(x).shape == x.shape
