"""Does a photo look like those that a model was trained on?

The VAE is asked to reconstruct, and the denoiser to take some noise away, from the photo and from held-out photos of
their own pack. What they do not know they restore badly. That costs three evaluations of the denoiser for each of 64
held-out photos and for the photo: about as much as to make six faces with heun at 18 steps.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from latentfaces.data.images import to_float
from latentfaces.data.pack import open_pack
from latentfaces.diffusion import Denoiser
from latentfaces.errors import UserError, and_others, warn
from latentfaces.pipeline import FacePipeline

RATIOS = (0.3, 1.0, 2.0)
"""sigma / alpha: fine detail, features, the whole face."""
NUM_COMPARED, FEWEST = 64, 16
"""Held-out photos to compare with, and how many there must be to know what is usual."""
MARGIN = 2.0
LEAST_MARGIN = math.log(1.25)
SMALLEST = 1e-6
"""Errors below count as this much: a VAE that loses nothing must not be thought surprised by rounding."""


def warn_of_unfamiliar(
    pipeline: FacePipeline, names: Sequence[str], images: Tensor, pack: str | None, batch_size: int
) -> None:
    """Say on stderr which photos (n, 3, R, R) uint8 look unlike the pack's, where pack and denoiser are there."""
    known = held_out_sample(pack)
    if pipeline.denoiser is None or known is None or known.shape[1:] != images.shape[1:]:
        return
    usual = restoration_errors(pipeline, pipeline.denoiser, known, batch_size)
    own = restoration_errors(pipeline, pipeline.denoiser, images, batch_size)
    strange = unfamiliar(own, usual).nonzero().flatten().tolist()
    if strange:
        warn(
            f"{and_others(names, strange)} does not look like the photos this model was trained on, and the result "
            "will be poor: give an upright face that fills the picture as theirs do"
        )


def held_out_sample(pack: str | None) -> Tensor | None:
    """Up to 64 held-out photos (n, 3, R, R) uint8, evenly over all; None where the pack is gone or has few."""
    if pack is None:
        return None
    try:
        opened = open_pack(Path(pack))
        indices = opened.val_indices
        if len(indices) < FEWEST:
            return None
        return torch.from_numpy(opened.images[indices[:: max(1, len(indices) // NUM_COMPARED)][:NUM_COMPARED]])
    except (UserError, OSError):  # a run may well outlive its photos
        return None


@torch.no_grad()
def restoration_errors(pipeline: FacePipeline, denoiser: Denoiser, images: Tensor, batch_size: int) -> Tensor:
    """Mean squared errors (n, 4) for photos (n, 3, R, R) uint8: of x0 at the three `RATIOS`, and of the VAE's pixels.

    The noise is the same for all photos.
    """
    generator = torch.Generator().manual_seed(0)
    noises = [torch.randn(pipeline.latent_shape, generator=generator).to(pipeline.device) for _ in RATIOS]
    times = denoiser.schedule.time_at(torch.tensor(RATIOS, dtype=torch.float64)).tolist()
    rows = []
    for batch in images.split(batch_size):
        floats = to_float(batch).to(pipeline.device)
        x0 = pipeline.encode(floats)
        pairs = []
        for noise, time in zip(noises, times, strict=True):
            t = x0.new_full((len(x0),), time)
            with pipeline.autocast():
                pairs.append((denoiser.predict_x0(denoiser.schedule.add_noise(x0, noise, t), t), x0))
        pairs.append((pipeline.decode(x0), floats))
        errors = [(restored - true).float().square().mean((1, 2, 3)) for restored, true in pairs]
        rows.append(torch.stack(errors, dim=1).cpu())
    return torch.cat(rows)


def unfamiliar(own: Tensor, usual: Tensor) -> Tensor:
    """Which photos (n,) are unlike the usual ones, by their errors (n, 4) and (m, 4).

    A photo is unlike the others where the denoiser's errors (the logarithms of the three, each relative to the usual
    median, averaged) or the VAE's lie twice as far above their median as those of 19 in 20 usual photos do, and at
    least by a quarter: quantiles, since a few of the held-out photos may be odd themselves.
    """
    typical = usual.median(0).values.clamp(min=SMALLEST)
    theirs, its = scores(usual, typical), scores(own, typical)
    middle = theirs.median(0).values
    margin = MARGIN * (theirs.quantile(0.95, dim=0) - middle)
    return (its > middle + margin.clamp(min=LEAST_MARGIN)).any(1)


def scores(errors: Tensor, typical: Tensor) -> Tensor:
    """Logarithm of the denoiser's errors and of the VAE's, (n, 2), relative to the typical ones (4,)."""
    relative = (errors.clamp(min=SMALLEST) / typical).log()
    return torch.stack([relative[:, :3].mean(1), relative[:, 3]], dim=1)
