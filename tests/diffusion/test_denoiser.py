"""A network as a denoiser: what it predicts of the clean latents."""

import torch
from torch import Tensor, nn

from latentfaces.diffusion import Denoiser, RectifiedFlow


class IdealNetwork(nn.Module):
    """The velocity of data N(0, 4), in closed form."""

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        t = t[:, None, None, None]
        return x_t * (t - (1 - t) * 4) / ((1 - t) ** 2 * 4 + t**2)


class HalfNetwork(nn.Module):
    """A network that computes in bfloat16."""

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t.bfloat16()


def test_ideal_denoiser_predicts_the_mean_of_the_data_that_could_have_been() -> None:
    denoiser = Denoiser(IdealNetwork(), RectifiedFlow())
    x_t, t = torch.randn(3, 1, 2, 2), torch.tensor([0.1, 0.5, 1.0])
    shares = ((1 - t) * 4 / ((1 - t) ** 2 * 4 + t**2))[:, None, None, None]
    assert torch.allclose(denoiser.predict_x0(x_t, t), shares * x_t, atol=1e-6)


def test_velocity_is_float32_whatever_the_network_computes_in() -> None:
    denoiser = Denoiser(HalfNetwork(), RectifiedFlow())
    assert denoiser(torch.zeros(1, 1, 2, 2), torch.zeros(1)).dtype == torch.float32
