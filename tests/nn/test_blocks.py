"""Convolutional blocks: how they start, what the embedding does to them, and their sizes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latentfaces.nn import Downsample, ResBlock, Upsample, choose_upsampling, group_norm
from latentfaces.nn.device import phased_upsampling


def identity_kernel(conv: nn.Conv2d) -> None:
    """Make a convolution pass its input on."""
    nn.init.dirac_(conv.weight)
    nn.init.zeros_(conv.bias)


def test_residual_block_starts_as_the_identity() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(ResBlock(8, 8)(x), x)


def test_residual_block_equals_the_formula_in_float64() -> None:
    torch.manual_seed(0)
    block = ResBlock(8, 12)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 8, 4, 4)
    w = {name: value.double() for name, value in block.state_dict().items()}

    def normed(h: torch.Tensor, name: str, groups: int) -> torch.Tensor:
        grouped = h.reshape(len(h), groups, -1)
        mean, variance = grouped.mean(-1, keepdim=True), grouped.var(-1, correction=0, keepdim=True)
        flat = ((grouped - mean) / (variance + 1e-5).sqrt()).view_as(h)
        return flat * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]

    def swish(h: torch.Tensor) -> torch.Tensor:
        return h / (1 + torch.exp(-h))

    hidden = F.conv2d(swish(normed(x.double(), "norm1", 2)), w["conv1.weight"], w["conv1.bias"], padding=1)
    hidden = F.conv2d(swish(normed(hidden, "norm2", 3)), w["conv2.weight"], w["conv2.bias"], padding=1)
    expected = F.conv2d(x.double(), w["skip.weight"], w["skip.bias"]) + hidden
    assert torch.allclose(block(x).double(), expected, atol=1e-4)


def test_embedding_scales_then_shifts_the_second_norm() -> None:
    torch.manual_seed(0)
    block = ResBlock(4, 4, embedding_width=3)
    assert block.scale_shift is not None
    identity_kernel(block.conv2)
    nn.init.zeros_(block.scale_shift.weight)
    shift = torch.tensor([0.5, -1.0, 2.0, 0.0])
    # A scale of 1 - 1 wipes the features out, so that the shift alone is left.
    block.scale_shift.bias.data = torch.cat([-torch.ones(4), shift])
    x = torch.randn(2, 4, 3, 3)
    expected = x + F.silu(shift)[:, None, None]
    assert torch.allclose(block(x, torch.randn(2, 3)), expected, atol=1e-6)


def test_embedding_without_effect_leaves_the_plain_block() -> None:
    torch.manual_seed(0)
    with_embedding, plain = ResBlock(4, 8, embedding_width=3), ResBlock(4, 8)
    assert with_embedding.scale_shift is not None
    nn.init.normal_(with_embedding.conv2.weight)
    nn.init.zeros_(with_embedding.scale_shift.weight)
    nn.init.zeros_(with_embedding.scale_shift.bias)
    plain.load_state_dict(with_embedding.state_dict(), strict=False)
    x = torch.randn(2, 4, 3, 3)
    assert torch.allclose(with_embedding(x, torch.randn(2, 3)), plain(x), atol=1e-6)


def test_embedding_passes_through_silu() -> None:
    torch.manual_seed(0)
    block = ResBlock(4, 4, embedding_width=3)
    nn.init.normal_(block.conv2.weight)
    x = torch.randn(1, 4, 3, 3)
    assert torch.allclose(block(x, torch.full((1, 3), -40.0)), block(x, torch.zeros(1, 3)))  # silu(-40) is 0


def test_each_sample_gets_its_own_embedding() -> None:
    torch.manual_seed(0)
    block = ResBlock(4, 4, embedding_width=3)
    nn.init.normal_(block.conv2.weight)
    x, embedding = torch.randn(2, 4, 3, 3), torch.randn(2, 3)
    changed = torch.stack([embedding[0], embedding[1] + 1])
    before, after = block(x, embedding), block(x, changed)
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1])


def test_dropout_acts_in_training_alone() -> None:
    torch.manual_seed(0)
    block = ResBlock(4, 4, dropout=0.5)
    nn.init.normal_(block.conv2.weight)
    x = torch.randn(2, 4, 6, 6)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_upsample_repeats_each_value_in_a_two_by_two_square() -> None:
    block = Upsample(2)
    identity_kernel(block.conv)
    x = torch.arange(12.0).view(1, 2, 2, 3)
    assert torch.equal(block(x), x.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2))


def test_downsample_keeps_every_second_place() -> None:
    block = Downsample(2)
    identity_kernel(block.conv)
    x = torch.arange(48.0).view(1, 2, 4, 6)
    assert torch.equal(block(x), x[..., ::2, ::2])


def test_downsample_by_the_mean_averages_two_by_two_squares() -> None:
    block = Downsample(1, "mean")
    identity_kernel(block.conv)
    x = torch.tensor([[0.0, 1.0, 10.0, 20.0], [2.0, 5.0, 30.0, 40.0]]).view(1, 1, 2, 4)
    assert block(x).flatten().tolist() == [2.0, 25.0]


def test_downsample_by_unshuffling_sees_every_pixel_of_a_square() -> None:
    block = Downsample(2, "unshuffle")
    with torch.no_grad():
        nn.init.zeros_(block.conv.weight)
        # Left and right of the upper row of channel 0 to channel 0, lower right of channel 1 to channel 1.
        block.conv.weight[0, :2, 0, 0] = torch.tensor([1.0, 100.0])
        block.conv.weight[1, 7, 0, 0] = 1.0
        nn.init.zeros_(block.conv.bias)
    x = torch.arange(32.0).view(1, 2, 4, 4)
    assert torch.equal(block(x)[0, 0], x[0, 0, ::2, ::2] + 100 * x[0, 0, ::2, 1::2])
    assert torch.equal(block(x)[0, 1], x[0, 1, 1::2, 1::2])


def test_bilinear_upsample_goes_from_one_value_to_the_next_by_quarters() -> None:
    block = Upsample(1, "bilinear")
    identity_kernel(block.conv)
    x = torch.tensor([[0.0, 4.0, 12.0]]).view(1, 1, 1, 3)
    row = [0.0, 1.0, 3.0, 6.0, 10.0, 12.0]  # the centres of new pixels lie a quarter of the way between the old ones
    assert block(x)[0, 0].tolist() == [row, row]


def test_upsample_by_shuffling_unfolds_channels_into_squares() -> None:
    block = Upsample(1, "shuffle")
    with torch.no_grad():
        nn.init.zeros_(block.conv.weight)
        block.conv.weight[:, 0, 1, 1] = torch.tensor([1.0, 2.0, 3.0, 4.0])
        nn.init.zeros_(block.conv.bias)
    x = torch.tensor([[1.0, 10.0]]).view(1, 1, 1, 2)
    assert block(x)[0, 0].tolist() == [[1.0, 2.0, 10.0, 20.0], [3.0, 4.0, 30.0, 40.0]]


def test_upsample_by_shuffling_starts_with_four_equal_pixels_per_square() -> None:
    torch.manual_seed(0)
    block = Upsample(3, "shuffle")
    out = block(torch.randn(2, 3, 4, 5))
    corners = out[..., ::2, ::2]
    assert torch.equal(out, corners.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2))
    assert corners.std((0, 2, 3)).min() > 0.1
    assert len({tuple(channel.flatten().tolist()) for channel in corners[0]}) == 3


@pytest.mark.parametrize(
    ("channels", "groups"), [(4, 1), (8, 2), (12, 3), (18, 3), (64, 16), (128, 32), (256, 32), (100, 25), (144, 24)]
)
def test_groups_divide_the_channels_and_hold_four_or_more(channels: int, groups: int) -> None:
    # 144 / 32 is no integer, and the next number of groups below 32 that divides 144 is 24.
    assert group_norm(channels).num_groups == groups


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (5, 4)])
def test_upsampling_in_phases_is_the_convolution_of_the_large_picture(height: int, width: int) -> None:
    torch.manual_seed(0)
    block = Upsample(6).double()
    x = torch.randn(2, 6, height, width, dtype=torch.float64, requires_grad=True)
    naive = block.conv(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
    phased = block.in_phases(x)
    assert torch.allclose(phased, naive, atol=1e-12)
    direction = torch.randn_like(naive)
    wanted = torch.autograd.grad((naive * direction).sum(), [x, *block.parameters()])
    got = torch.autograd.grad((phased * direction).sum(), [x, *block.parameters()])
    for ours, theirs in zip(got, wanted, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-11)
    block.phased = True
    assert torch.equal(block(x), phased)
    block.phased = False
    assert torch.equal(block(x), naive)


def test_upsampling_is_in_phases_on_a_cpu_where_that_is_faster() -> None:
    block = Upsample(2)
    for side, phased in ((7, False), (8, True)):
        x = torch.randn(1, 2, side, side)
        assert torch.equal(block(x), block.in_phases(x)) == phased or not phased
        assert phased_upsampling(x) == phased
    assert not phased_upsampling(torch.empty(1, 2, 64, 64, device="meta"))
    assert choose_upsampling(nn.Sequential(block), True)
    assert not choose_upsampling(nn.Sequential(Upsample(2, "shuffle")), True)
