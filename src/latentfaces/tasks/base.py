"""Fields that several tasks share."""

from dataclasses import dataclass

from latentfaces.diffusion import Sampler


@dataclass(kw_only=True)
class SamplingTask:
    """A task that makes faces from noise.

    Args:
        sampler: from noise to latents.
        num_images: number of faces, of each photo where there are photos.
        seed: names the noise: face i of a seed is always the same.
        batch_size: faces at once. It changes time and memory, and no face by more than one level of 255.
    """

    sampler: Sampler
    num_images: int
    seed: int
    batch_size: int


@dataclass(kw_only=True)
class PhotoTask(SamplingTask):
    """A task that changes photos.

    Args:
        pack: the run's pack, whose held-out photos are taken unless `image` is given.
        image: an image, or a folder or .zip of images.
    """

    pack: str | None
    image: str | None
