"""Base classes of the tasks of sample.py."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Interval

from latentfaces.diffusion import Sampler
from latentfaces.tasks.output import PictureFolder
from latentfaces.tasks.paste import Alignment

Natural = Annotated[int, Ge(0)]
Positive = Annotated[int, Ge(1)]
Fraction = Annotated[float, Interval(ge=0, le=1)]


@dataclass(kw_only=True)
class SamplingTask:
    """Task that samples.

    Args:
        sampler: maps noise to latents.
        num_images: number of samples, per photo where there are photos.
        seed: selects the noise: image i of a seed is always the same.
        batch_size: images at once. It changes time and memory, and no pixel by more than one level of 255.
    """

    sampler: Sampler
    num_images: int
    seed: int
    batch_size: int


@dataclass(kw_only=True)
class PhotoTask(SamplingTask):
    """Task that edits photos.

    Args:
        image: an image, or a folder or .zip of images.
        align: work on the face in a photo of `image`: "true", "false" or "auto"; see `Alignment`.
        face: number of the face.
    """

    image: str | None
    align: str = "false"
    face: Positive = 1

    def alignment(self, pictures: PictureFolder) -> Alignment:
        """Return the choice of a face in each photo."""
        return Alignment(self.align, self.face, pictures.folder)


@dataclass(kw_only=True)
class PackTask(PhotoTask):
    """Task that edits photos, or held-out images of a pack.

    Args:
        pack: the run's pack, used unless `image` is given.
    """

    pack: str | None
