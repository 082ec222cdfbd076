"""Data whose best denoiser has a closed form, for every schedule and target; what files of this folder share."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from latentfaces.diffusion import EDM, Denoiser, NoiseSchedule, RectifiedFlow, Target, VPCosine, VPLinear
from latentfaces.diffusion.schedule import per_sample

PosteriorMean = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x_t (b, c, h, w), alpha, sigma (b, 1, 1, 1)) -> mean of all x0 that could have led to x_t."""

SCHEDULES: dict[str, NoiseSchedule] = {
    "rectified_flow": RectifiedFlow(),
    "vp_cosine": VPCosine(),
    "vp_linear": VPLinear(),
    "vp_linear_zero_snr": VPLinear(zero_terminal_snr=True),
    "edm": EDM(),
}
VARIANCE_PRESERVING = [name for name in SCHEDULES if name.startswith("vp")]
TARGETS: tuple[Target, ...] = ("v", "eps", "x0")


class IdealDenoiser(Denoiser):
    """The denoiser of least error, given the posterior mean; it keeps the times it was asked."""

    def __init__(self, mean: PosteriorMean, schedule: NoiseSchedule, target: Target = "v") -> None:
        super().__init__(nn.Identity(), schedule, target)
        self.mean = mean
        self.asked: list[float] = []

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        self.asked.append(float(t[0]))
        alpha, sigma = per_sample(self.schedule.alpha(t)), per_sample(self.schedule.sigma(t))
        x0 = self.mean(x_t, alpha, sigma)
        return self.target_of(x0, (x_t - alpha * x0) / sigma, t)

    def predict_x0(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the prediction as x0 (b, c, h, w)."""
        a, b = self.x0_coefficients(t)
        return per_sample(a) * x_t + per_sample(b) * self(x_t, t)


def gaussian(std: float) -> PosteriorMean:
    """Return the ideal denoiser of data N(0, std^2)."""
    return lambda x_t, alpha, sigma: alpha * std**2 / (alpha**2 * std**2 + sigma**2) * x_t


def point(x0: Tensor) -> PosteriorMean:
    """Return the ideal denoiser of data that are always x0."""
    return lambda x_t, alpha, sigma: x0.expand_as(x_t)


class Mixture:
    """Mixture of three Gaussians in two dimensions: `means` (3, 2), `stds` (3,) and weights `shares` (3,)."""

    means = torch.tensor([[1.5, -0.5], [-0.7, 1.0], [-0.8, -1.2]], dtype=torch.float64)
    stds = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    shares = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)

    def sample(self, number: int, generator: torch.Generator) -> Tensor:
        """Draw x0 (number, 2, 1, 1)."""
        chosen = torch.multinomial(self.shares, number, replacement=True, generator=generator)
        noise = torch.randn(number, 2, dtype=torch.float64, generator=generator)
        return (self.means[chosen] + self.stds[chosen, None] * noise)[..., None, None]

    def __call__(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Give the posterior mean: each Gaussian's own, by how likely x_t is in it."""
        x, alpha, sigma = x_t.flatten(1)[:, None], alpha.flatten(1)[..., None], sigma.flatten(1)[..., None]
        means, stds = self.means, self.stds[:, None]
        variance = alpha**2 * stds**2 + sigma**2
        parts = torch.distributions.Normal(alpha * means, variance.sqrt()).log_prob(x).sum(-1) + self.shares.log()
        x0 = means + alpha * stds**2 / variance * (x - alpha * means)
        return (parts.softmax(-1)[..., None] * x0).sum(1)[..., None, None]


def double(*values: float) -> Tensor:
    """(b,) in float64."""
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """N(0, 1) in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
