"""The patch discriminator's view, its losses, and the weight of its gradient."""

import pytest
import torch
from torch import Tensor, nn

from latentfaces.autoencoder import PatchDiscriminator, adaptive_weight, discriminator_loss, generator_loss


def small_discriminator(num_layers: int = 3) -> PatchDiscriminator:
    """Return a discriminator of a few thousand weights, the same each time."""
    torch.manual_seed(0)
    return PatchDiscriminator(channels=4, num_layers=num_layers)


def test_hinge_loss_of_the_discriminator_is_the_one_computed_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.5])  # the first of each is beyond its margin
    assert discriminator_loss(real, fake).item() == 0.5 * ((0.0 + 0.5) / 2 + (0.0 + 1.5) / 2)


def test_discriminator_that_knows_nothing_has_a_loss_of_one() -> None:
    assert discriminator_loss(torch.zeros(2, 1, 3, 3), torch.zeros(2, 1, 3, 3)).item() == 1.0


def test_discriminator_learns_only_from_logits_within_the_margin() -> None:
    real = torch.tensor([2.0, 0.5], requires_grad=True)
    fake = torch.tensor([-2.0, 0.5], requires_grad=True)
    discriminator_loss(real, fake).backward()
    assert real.grad is not None
    assert fake.grad is not None
    assert real.grad.tolist() == [0.0, -0.25]
    assert fake.grad.tolist() == [0.0, 0.25]


def test_generator_loss_falls_as_its_pictures_pass_for_photos_without_end() -> None:
    fake = torch.tensor([[3.0, -1.0], [4.0, 2.0]], requires_grad=True)
    loss = generator_loss(fake)
    loss.backward()
    assert loss.item() == -2.0
    assert fake.grad is not None
    assert fake.grad.tolist() == [[-0.25, -0.25], [-0.25, -0.25]]


def test_adaptive_weight_is_the_ratio_of_lengths() -> None:
    weight = adaptive_weight(torch.tensor([[3.0], [4.0]]), torch.tensor([[0.6], [0.8]]), maximum=10.0)
    assert weight.item() == pytest.approx(5 / 1.0001)


def test_adaptive_weight_stops_at_its_maximum() -> None:
    assert adaptive_weight(torch.tensor([3.0, 4.0]), torch.tensor([0.6, 0.8]), maximum=2.0).item() == 2.0


@pytest.mark.parametrize(("others", "expected"), [(0.0, 0.0), (1e-5, 0.1), (5.0, 1e4)])
def test_adversary_without_a_gradient_divides_nothing_by_zero(others: float, expected: float) -> None:
    weight = adaptive_weight(torch.tensor([others]), torch.zeros(1), maximum=1e4)
    assert weight.item() == pytest.approx(expected)


def test_adaptive_weight_of_bfloat16_gradients_is_reckoned_in_float32() -> None:
    # Half a million squares of 1e-4: in bfloat16 neither the sum nor the 1e-4 under the ratio would survive.
    others, ours = torch.full((2**19,), 0.5).bfloat16(), torch.full((4,), 0.5).bfloat16()
    weight = adaptive_weight(others, ours, maximum=1e4)
    assert weight.dtype == torch.float32
    assert weight.item() == pytest.approx(0.5 * 2**9.5 / 1.0001, rel=1e-5)


@pytest.mark.parametrize(("num_layers", "pixels"), [(1, 16), (2, 34), (3, 70)])
def test_each_logit_looks_at_a_square_patch_of_the_known_size(num_layers: int, pixels: int) -> None:
    discriminator = small_discriminator(num_layers)
    for number, layer in enumerate(discriminator.layers):
        if isinstance(layer, nn.GroupNorm):
            discriminator.layers[number] = nn.Identity()  # its mean and variance are of the full image
    torch.manual_seed(0)
    image = (0.01 * torch.randn(1, 3, 96, 96)).requires_grad_()
    logits = discriminator(image)
    middle = logits.shape[-1] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, middle, middle], image)
    seen = gradient[0].abs().sum(0) > 0
    rows, columns = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
    assert len(rows) == len(columns) == pixels
    assert rows[-1] - rows[0] + 1 == columns[-1] - columns[0] + 1 == pixels
    assert seen.sum() == pixels**2


@pytest.mark.parametrize(("num_layers", "side"), [(1, 30), (3, 6)])
def test_logits_are_one_for_each_place_of_the_patch(num_layers: int, side: int) -> None:
    # 64 is halved num_layers times, and each of two convolutions with 4x4 kernels takes one off.
    assert small_discriminator(num_layers)(torch.zeros(2, 3, 64, 64)).shape == (2, 1, side, side)


def test_channels_double_with_each_layer_up_to_eight_times() -> None:
    torch.manual_seed(0)
    layers = PatchDiscriminator(channels=4, num_layers=5).layers
    assert [layer.out_channels for layer in layers if isinstance(layer, nn.Conv2d)] == [4, 8, 16, 32, 32, 32, 1]


def test_logits_of_a_photo_do_not_depend_on_the_rest_of_the_batch() -> None:
    discriminator = small_discriminator().train()
    photos = torch.randn(4, 3, 64, 64) * torch.tensor([1.0, 0.1, 5.0, 1.0]).view(4, 1, 1, 1)
    alone: list[Tensor] = [discriminator(photo[None])[0] for photo in photos]
    assert alone[0].std() > 1e-3
    assert torch.allclose(discriminator(photos), torch.stack(alone), atol=1e-5)


def test_logits_are_float32_under_bfloat16() -> None:
    discriminator = small_discriminator()
    with torch.autocast("cpu", torch.bfloat16):
        assert discriminator.layers(torch.zeros(1, 3, 32, 32)).dtype == torch.bfloat16
        assert discriminator(torch.zeros(1, 3, 32, 32)).dtype == torch.float32
