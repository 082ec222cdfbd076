"""The U-Net: its start, its sizes, and that times and skips matter."""

import pytest
import torch
from torch import nn

from latentfaces.diffusion import UNet
from latentfaces.diffusion.unet import Stage


def tiny_unet(
    multipliers: tuple[int, ...] = (1, 2), attention_levels: tuple[int, ...] = (1,), label_channels: int = 0
) -> UNet:
    """Return a U-Net of a few thousand random weights, none of them zero."""
    unet = new_unet(multipliers, attention_levels, label_channels)
    for parameter in unet.parameters():
        nn.init.normal_(parameter, std=0.15)
    return unet.eval()


def new_unet(
    multipliers: tuple[int, ...] = (1, 2), attention_levels: tuple[int, ...] = (1,), label_channels: int = 0
) -> UNet:
    """Return a U-Net as it is before training."""
    torch.manual_seed(0)
    return UNet(
        3,
        width=8,
        multipliers=multipliers,
        num_blocks=1,
        attention_levels=attention_levels,
        head_width=4,
        label_channels=label_channels,
    )


def test_first_prediction_is_exactly_zero() -> None:
    x_t = torch.randn(2, 3, 8, 8)
    assert torch.equal(new_unet()(x_t, torch.rand(2)), torch.zeros_like(x_t))


@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 2, 2)])
@pytest.mark.parametrize("size", [(8, 8), (4, 12)])
def test_prediction_has_the_shape_of_the_latents(multipliers: tuple[int, ...], size: tuple[int, int]) -> None:
    x_t = torch.randn(2, 3, *size)
    prediction = tiny_unet(multipliers)(x_t, torch.rand(2))
    assert prediction.shape == x_t.shape
    assert prediction.std() > 0


def test_time_of_each_sample_changes_that_sample_alone() -> None:
    unet, x_t = tiny_unet(), torch.randn(2, 3, 4, 4)
    before, after = unet(x_t, torch.tensor([0.2, 0.2])), unet(x_t, torch.tensor([0.2, 0.9]))
    assert torch.allclose(before[0], after[0], atol=1e-5)
    assert not torch.allclose(before[1], after[1], atol=1e-2)


def test_label_of_zero_is_no_label() -> None:
    unet, x_t, t = tiny_unet(label_channels=3), torch.randn(2, 3, 4, 4), torch.rand(2)
    assert torch.equal(unet(x_t, t, torch.zeros(2, 3)), unet(x_t, t))


def test_label_of_each_sample_changes_that_sample_alone() -> None:
    unet, x_t, t = tiny_unet(label_channels=3), torch.randn(2, 3, 4, 4), torch.rand(2)
    before, after = unet(x_t, t), unet(x_t, t, torch.tensor([[0.0, 0.0, 0.0], [2.0, -2.0, 3.0]]))
    assert torch.allclose(before[0], after[0], atol=1e-5)
    assert not torch.allclose(before[1], after[1], atol=1e-2)


def test_label_that_the_network_does_not_know_is_refused() -> None:
    with pytest.raises(AssertionError, match="label_channels"):
        tiny_unet()(torch.randn(2, 3, 4, 4), torch.rand(2), torch.zeros(2, 3))


@pytest.mark.parametrize("label_channels", [0, 3])
def test_gradients_reach_every_parameter(label_channels: int) -> None:
    unet, label = tiny_unet(label_channels=label_channels), torch.rand(2, 3) if label_channels else None
    unet(torch.randn(2, 3, 8, 8), torch.rand(2), label).square().mean().backward()
    assert [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_last_convolution_sees_normalized_features_through_silu() -> None:
    unet, seen = tiny_unet(), []
    unet.out.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    nn.init.ones_(unet.norm.weight)
    for bias, expected in ((40.0, 40.0), (-40.0, 0.0)):  # silu(40) is 40, and silu(-40) is 0
        nn.init.constant_(unet.norm.bias, bias)
        unet(torch.randn(2, 3, 8, 8), torch.rand(2))
        assert seen[-1].mean().item() == pytest.approx(expected, abs=1e-4)


def test_dropout_is_in_every_block() -> None:
    unet = UNet(3, width=8, multipliers=(1, 2), num_blocks=1, dropout=0.25)
    assert [layer.p for layer in unet.modules() if isinstance(layer, nn.Dropout)] == [0.25] * (2 + 2 + 4)


def test_attention_is_where_it_was_asked_for_and_in_the_middle() -> None:
    def num_attentions(levels: tuple[int, ...]) -> int:
        return sum(name.endswith("attention.qkv.weight") for name, _ in new_unet((1, 2), levels).named_parameters())

    # One stage down and two up per level that attends.
    assert [num_attentions(levels) for levels in ((), (0,), (1,), (0, 1))] == [1, 4, 4, 7]


def test_heads_are_as_wide_as_asked_for_or_the_next_width_that_divides_the_level() -> None:
    unet = UNet(3, width=8, multipliers=(1, 3, 4, 7), num_blocks=1, attention_levels=(0, 1, 2, 3), head_width=16)
    heads = [layer.attention.num_heads for layer in unet.down if isinstance(layer, Stage)]
    assert heads == [1, 1, 2, 2]  # of 8, 24, 32 and 56 channels


@pytest.mark.parametrize("size", [(6, 8), (8, 10), (7, 7)])
def test_size_that_does_not_halve_at_every_level_raises(size: tuple[int, int]) -> None:
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        tiny_unet((1, 2, 2))(torch.zeros(1, 3, *size), torch.zeros(1))
