"""A network made a denoiser: what it predicts, in the terms that losses and samplers ask for."""

from torch import Tensor, nn

from latentfaces.diffusion.schedule import NoiseSchedule


class Denoiser(nn.Module):
    """A backbone (`DiT`, `UNet`: network(x_t, t) -> v) together with the schedule that gives v its meaning.

    Args:
        network: (x_t (b, c, h, w), t (b,)) -> (b, c, h, w).
        schedule: how the x_t were made.
    """

    def __init__(self, network: nn.Module, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Predicted velocity v = dx_t / dt, (b, c, h, w) in float32."""
        return self.network(x_t, t).float()

    def predict_x0(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Predicted clean latents, (b, c, h, w): the mean of all x0 that could have led to x_t."""
        return self.schedule.x0_from_velocity(x_t, self(x_t, t), t)
