"""Patch discriminator and adversarial losses of stage 1."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentfaces.bounds import Natural, Positive
from latentfaces.nn import group_norm


class PatchDiscriminator(nn.Module):
    """PatchGAN discriminator: maps images (b, 3, H, W) to logits (b, 1, h, w), one per overlapping patch.

    See Isola et al. 2017, section 3.2.2. Group norm replaces batch norm, so that the logits of an image depend neither
    on the rest of the batch nor on the number of processes.

    Args:
        channels: channels after the first convolution; they double with each layer, up to 8 times.
        num_layers: layers with stride 2; the receptive field of 3 is 70 x 70 pixels.
    """

    def __init__(self, channels: Positive = 64, num_layers: Natural = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        in_channels = channels
        for layer in range(1, num_layers + 1):
            out = channels * min(2**layer, 8)
            stride = 2 if layer < num_layers else 1
            layers += [nn.Conv2d(in_channels, out, 4, stride, padding=1), group_norm(out), nn.LeakyReLU(0.2)]
            in_channels = out
        self.layers = nn.Sequential(*layers, nn.Conv2d(in_channels, 1, 4, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).float()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the hinge loss of the logits (Lim & Ye 2017, eq. 3), halved so that chance level is 1."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_loss(fake: Tensor) -> Tensor:
    """Return the generator's hinge loss, the negative mean logit of its images (Lim & Ye 2017, eq. 4)."""
    return -fake.mean()


def adaptive_weight(others: Tensor, adversarial: Tensor, maximum: float) -> Tensor:
    """Return the weight that equalizes the gradient norms, in [0, maximum] (Esser et al. 2021, eq. 7).

    Args:
        others: gradient of all other reconstruction terms at the decoder's last layer.
        adversarial: gradient of the generator loss at the same layer.
        maximum: upper bound, for vanishing adversarial gradients.
    """
    norms = [torch.linalg.vector_norm(gradient.float()) for gradient in (others, adversarial)]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0.0, maximum)
