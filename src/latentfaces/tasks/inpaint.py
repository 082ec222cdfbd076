"""RePaint: fill a masked part of a photo (Lugmayr et al. 2022, algorithm 1)."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from latentfaces.bounds import Fraction, Natural, Positive
from latentfaces.data.images import to_uint8
from latentfaces.diffusion import NoiseSchedule, Predictor
from latentfaces.diffusion.samplers import AfterStep, Trajectory
from latentfaces.diffusion.schedule import at
from latentfaces.errors import UserError
from latentfaces.marks import EDITED
from latentfaces.pipeline import FacePipeline, Name
from latentfaces.tasks.base import PhotoTask, SamplingTask
from latentfaces.tasks.encoding import check_skips, encode
from latentfaces.tasks.masks import feathered, read_mask, shrunk
from latentfaces.tasks.output import PictureFolder, beside

GRAY = 127


@dataclass(kw_only=True)
class Inpainting(SamplingTask):
    """Task that fills holes of photos.

    Pixels outside the hole are exactly the photo's. Pixels inside have no effect: they are replaced by the mean color
    around them, and latents next to the hole are sampled too.

    Args:
        resample: repetitions of each step. More fit the filling better to its surroundings and take more time.
        skips: strength, in [0, 1], of the features outside the hole where the VAE has skip connections; 1 if None.
        feather: pixels inside the hole over which the color around it fades into the filling; R / 32 if None.
    """

    resample: Positive
    skips: Fraction | None
    feather: Natural | None

    def faces(
        self,
        pipeline: FacePipeline,
        photos: Tensor,
        hole: Tensor,
        which: list[int],
        names: list[Name],
        condition: Tensor | None = None,
    ) -> Tensor:
        """Fill holes of photos.

        Args:
            pipeline: the run.
            photos: (n, 3, R, R) uint8.
            hole: (n, 1, R, R) bool.
            which: the photo of each result.
            names: seed and number of the noise of each result.
            condition: condition (b, size), by default that of the requested labels.

        Returns:
            The results (b, 3, R, R) uint8.
        """
        strength = float(pipeline.vae.skip_connections) if self.skips is None else self.skips
        check_skips(pipeline, strength)
        visible = hidden(photos, hole)
        x0, features = encode(pipeline, visible, which)
        own = hole[which]
        kept = [strength * ~shrunk(own, *f.shape[-2:]).to(f.device) * f for f in features] if strength else None
        latents = self.filled(pipeline, x0, grown(shrunk(own, *x0.shape[-2:])).to(x0.device), names, condition)
        filled = to_uint8(pipeline.decode(latents, kept)).cpu()
        weight = feathered(own, pipeline.resolution // 32 if self.feather is None else self.feather)
        return composed(visible[which], filled, own, weight)

    def filled(
        self, pipeline: FacePipeline, x0: Tensor, hole: Tensor, names: list[Name], condition: Tensor | None = None
    ) -> Tensor:
        """Return latents (b, c, h, w) that equal x0 outside the hole (b, 1, h, w), each with the noise of its name."""
        predictor = pipeline.predictor(condition)
        draw, schedule, first = pipeline.draws(names), predictor.schedule, predictor.first_time
        noise = draw()
        # The kept part follows one straight trajectory, unless sampling is random anyway: then each step draws it.
        renewed = self.resample > 1 or self.sampler.is_random

        def noised(t: float, noise: Tensor) -> Tensor:
            return schedule.add_noise(x0, noise, x0.new_full((len(x0),), t))

        def keep(x: Tensor, t: float) -> Tensor:  # algorithm 1, lines 4, 5 and 8
            known = noised(t, draw() if renewed else noise) if t > 0 else x0
            return torch.where(hole, x, known)

        x = torch.where(hole, at(schedule.sigma, first) * noise, noised(first, noise))
        with pipeline.autocast():
            if self.resample == 1:
                return self.sampler.refine(predictor, x, first, draw, keep)
            return self.resampled(predictor, x, draw, keep)

    @torch.no_grad()
    def resampled(self, predictor: Predictor, x: Tensor, draw: Callable[[], Tensor], keep: AfterStep) -> Tensor:
        """Take each step except the last `resample` times, adding noise again in between (algorithm 1, lines 3 to 11).

        Each step is independent: a multistep sampler takes all of them as its first.
        """
        for t, t_next in itertools.pairwise(self.sampler.checked_times(predictor, x.shape)):
            for repeat in range(self.resample if t_next > 0 else 1):
                if repeat > 0:
                    x = noised_again(predictor.schedule, x, t_next, t, draw())
                x = self.sampler.solve(predictor, x, Trajectory([t, t_next], draw, keep))
        return x


@dataclass(kw_only=True)
class Inpaint(PhotoTask, Inpainting):
    """A row for each photo: the photo, the photo with its hole, then `num_images` fillings.

    Args:
        mask: image of the photo's shape, of any size: white is filled.
        num_photos: maximum number of photos.
    """

    mask: str | None
    num_photos: Positive

    def __post_init__(self) -> None:
        if self.image is None:
            raise UserError("task=inpaint needs a photo. Give image=PHOTO.png.")
        if self.mask is None:
            raise UserError("task=inpaint needs a mask. Give task.mask=MASK.png, an image that is white where to fill.")

    def __call__(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write the fillings. Return the path of the grid."""
        pictures.source = EDITED
        assert self.mask is not None
        photos = self.own_photos(pipeline, pictures, self.num_photos)
        hole, mask = read_mask(self.mask, photos, pipeline.resolution)
        shown = []
        for which, names in self.variants(len(hole)):
            faces = self.faces(pipeline, photos.images, hole, which, names)
            photos.save(faces, which, pictures, hole[which], mask)
            shown.append(faces)
        holes = torch.where(hole, GRAY, photos.images)
        return pictures.grid(*beside(photos.images, holes, torch.cat(shown)))


def noised_again(schedule: NoiseSchedule, x: Tensor, s: float, t: float, noise: Tensor) -> Tensor:
    """Draw x at the noisier time t from q(x_t | x_s) (Kingma et al. 2021, eq. 20 and 21)."""
    ratio = at(schedule.alpha, t) / at(schedule.alpha, s)
    variance = at(schedule.sigma, t) ** 2 - (ratio * at(schedule.sigma, s)) ** 2
    return ratio * x + max(variance, 0.0) ** 0.5 * noise


def hidden(photos: Tensor, hole: Tensor) -> Tensor:
    """Replace the hole of photos (n, 3, R, R) uint8 by the mean color around it, from small to large surroundings."""
    known = ~hole * photos.float()
    filled, size = torch.full_like(known, GRAY), 1
    while size <= photos.shape[-1]:
        weight = F.adaptive_avg_pool2d((~hole).float(), size)
        mean = F.adaptive_avg_pool2d(known, size) / weight.clamp(min=1e-6)
        coarse = F.interpolate(filled, size=(size, size), mode="bilinear", antialias=True)
        filled = torch.where(weight > 0, mean, coarse)
        size *= 2
    filled = F.interpolate(filled, size=photos.shape[-2:], mode="bilinear")
    return torch.where(hole, filled.round().to(torch.uint8), photos)


def grown(hole: Tensor) -> Tensor:
    """Grow holes (b, 1, h, w) bool by one cell on all sides: the encoder sees some of the hole from there."""
    return F.max_pool2d(hole.float(), 3, stride=1, padding=1) > 0


def composed(photos: Tensor, faces: Tensor, hole: Tensor, weight: Tensor) -> Tensor:
    """Blend faces inside the hole with photos (b, 3, R, R) uint8; `weight` (b, 1, R, R) is that of the faces."""
    mixed = photos.float().lerp(faces.float(), weight).round().to(torch.uint8)
    return torch.where(hole, mixed, photos)
