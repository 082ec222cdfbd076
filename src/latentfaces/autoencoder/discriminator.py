"""The adversary of stage 1: tells photos from reconstructions, patch by patch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentfaces.nn import group_norm


class PatchDiscriminator(nn.Module):
    """Images (b, 3, H, W) -> logits (b, 1, h, w), one for each overlapping patch (Isola et al. 2017, section 3.2.2).

    Group norm in place of batch norm: a photo's logit then does not depend on what else is in the batch or on how
    many processes share it.

    Args:
        channels: channels after the first convolution, doubled with each layer up to eight times.
        num_layers: convolutions that halve the size; 3 look at 70 x 70 pixels.
    """

    def __init__(self, channels: int = 64, num_layers: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        now = channels
        for layer in range(1, num_layers + 1):
            out = channels * min(2**layer, 8)
            stride = 2 if layer < num_layers else 1
            layers += [nn.Conv2d(now, out, 4, stride, padding=1), group_norm(out), nn.LeakyReLU(0.2)]
            now = out
        self.layers = nn.Sequential(*layers, nn.Conv2d(now, 1, 4, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).float()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator's logits (Lim & Ye 2017, eq. 3), halved so that 1 is knowing nothing."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_loss(fake: Tensor) -> Tensor:
    """What the decoder minimises: minus the discriminator's logits of its pictures (Lim & Ye 2017, eq. 4)."""
    return -fake.mean()


def adaptive_weight(others: Tensor, adversarial: Tensor, maximum: float) -> Tensor:
    """Weight that makes the adversarial gradient as long as the others' (Esser et al. 2021, eq. 7), in [0, maximum].

    Args:
        others: gradient of all other reconstruction terms at the decoder's last layer.
        adversarial: gradient of the generator loss there.
        maximum: a bound, for when the adversary has no gradient to give.
    """
    return (torch.linalg.vector_norm(others.float()) / (torch.linalg.vector_norm(adversarial.float()) + 1e-4)).clamp(
        0.0, maximum
    )
