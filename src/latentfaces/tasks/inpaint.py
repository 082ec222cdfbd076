"""A part of a photo painted anew (RePaint: Lugmayr et al. 2022, algorithm 1)."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from latentfaces.data.images import to_uint8
from latentfaces.diffusion import NoiseSchedule
from latentfaces.diffusion.samplers import Trajectory
from latentfaces.diffusion.schedule import per_sample
from latentfaces.errors import UserError
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks.base import PhotoTask
from latentfaces.tasks.masks import feathered, read_mask, shrunk
from latentfaces.tasks.output import PictureFolder, beside
from latentfaces.tasks.photos import own_photos
from latentfaces.tasks.variants import Name, check_share, check_skips, encode, variants

GREY = 127


@dataclass(kw_only=True)
class Inpaint(PhotoTask):
    """A line for each photo: the photo, the photo with its hole, then `num_images` ways to fill it.

    Outside the hole each pixel is exactly the photo's.

    Args:
        mask: a picture of the photo's shape, of any size: white is painted anew.
        num_photos: at most so many photos.
        resample: how often each step is taken: more fit the filling better to what is around it, for as much more time.
        skips: strength, in [0, 1], of the features of what is kept where the VAE has skip connections; 1 there if None.
        feather: pixels inside the hole over which the photo fades into the filling; R / 32 if None.
    """

    mask: str | None
    num_photos: int
    resample: int
    skips: float | None
    feather: int | None

    def __post_init__(self) -> None:
        if self.image is None:
            raise UserError("task=inpaint needs a photo: type image=PHOTO.png, of which task.mask says what to replace")
        if self.mask is None:
            raise UserError("task=inpaint needs task.mask=MASK.png, a picture that is white where to paint anew")
        if self.resample < 1:
            raise UserError(f"task.resample={self.resample} must be at least 1")
        if self.feather is not None and self.feather < 0:
            raise UserError(f"task.feather={self.feather} must be at least 0 pixels")
        check_share("task.skips", self.skips or 0.0)

    def __call__(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write the fillings; the grid's path."""
        assert self.image is not None
        assert self.mask is not None
        strength = float(pipeline.vae.skip_connections) if self.skips is None else self.skips
        check_skips(pipeline, strength)
        photos = own_photos(pipeline.resolution, self.image, self.num_photos, self.seed)
        hole = read_mask(self.mask, photos, pipeline.resolution)
        weight = feathered(hole, pipeline.resolution // 32 if self.feather is None else self.feather)
        shown = []
        for which, names in variants(len(photos.images), self.num_images, self.seed, self.batch_size):
            x0, features = encode(pipeline, photos.images, which)
            kept = [strength * ~shrunk(hole, *f.shape[-2:]).to(f.device) * f for f in features] if strength else None
            latents = self.filled(pipeline, x0, shrunk(hole, *x0.shape[-2:]).to(x0.device), names)
            filled = to_uint8(pipeline.decode(latents, kept)).cpu()
            faces = composed(photos.images[which], filled, hole, weight)
            pictures.add(faces)
            shown.append(faces)
        holes = torch.where(hole, GREY, photos.images)
        return pictures.grid(*beside(photos.images, holes, torch.cat(shown)))

    def filled(self, pipeline: FacePipeline, x0: Tensor, hole: Tensor, names: list[Name]) -> Tensor:
        """Latents (b, c, h, w) that are x0 outside the hole (1, 1, h, w), each filled with the noise of its name."""
        predictor, draw = pipeline.predictor, pipeline.draws(names)
        noise = draw()
        # What is kept follows one straight path, unless the way is random anyway: then each step draws it anew.
        renewed = self.resample > 1 or self.sampler.is_random
        keep = Keeper(predictor.schedule, x0, hole, draw if renewed else lambda: noise)
        first = x0.new_full((len(x0),), predictor.first_time)
        start = per_sample(predictor.schedule.sigma(first)) * noise
        x = torch.where(hole, start, predictor.schedule.add_noise(x0, noise, first))
        with pipeline.autocast():
            if self.resample == 1:
                return self.sampler.refine(predictor, x, predictor.first_time, draw, keep)
            return self.resampled(pipeline, x, draw, keep)

    @torch.no_grad()
    def resampled(self, pipeline: FacePipeline, x: Tensor, draw: Callable[[], Tensor], keep: "Keeper") -> Tensor:
        """Take each step, but the last, `resample` times, with noise added again between (algorithm 1, lines 3 to 11).

        Each step stands alone: a sampler that remembers earlier ones takes them as its first.
        """
        predictor = pipeline.predictor
        for t, t_next in itertools.pairwise(self.sampler.times(predictor.schedule, predictor.first_time)):
            for repeat in range(self.resample if t_next > 0 else 1):
                if repeat > 0:
                    x = noised_again(predictor.schedule, x, t_next, t, draw())
                x = self.sampler.solve(predictor, x, Trajectory([t, t_next], draw, keep))
        return x


@dataclass(frozen=True)
class Keeper:
    """Puts the photo back where nothing is to change, as noisy as the rest is (algorithm 1, lines 4, 5 and 8)."""

    schedule: NoiseSchedule
    x0: Tensor
    hole: Tensor
    draw: Callable[[], Tensor]

    def __call__(self, x: Tensor, t: float) -> Tensor:
        known = self.schedule.add_noise(self.x0, self.draw(), self.x0.new_full((len(x),), t)) if t > 0 else self.x0
        return torch.where(self.hole, x, known)


def noised_again(schedule: NoiseSchedule, x: Tensor, s: float, t: float, noise: Tensor) -> Tensor:
    """x at s -> x at the noisier t, a draw of q(x_t | x_s) (Kingma et al. 2021, eq. 20 and 21)."""
    (alpha_s, alpha_t), (sigma_s, sigma_t) = (
        function(torch.tensor([s, t], dtype=torch.float64)).tolist() for function in (schedule.alpha, schedule.sigma)
    )
    ratio = alpha_t / alpha_s
    return ratio * x + max(sigma_t**2 - (ratio * sigma_s) ** 2, 0.0) ** 0.5 * noise


def composed(photos: Tensor, faces: Tensor, hole: Tensor, weight: Tensor) -> Tensor:
    """Faces within the hole, photos outside (b, 3, R, R) uint8; `weight` (1, 1, R, R) of the faces."""
    mixed = photos.float().lerp(faces.float(), weight).round().to(torch.uint8)
    return torch.where(hole, mixed, photos)
