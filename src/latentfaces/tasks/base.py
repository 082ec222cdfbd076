"""Base classes of the tasks of sample.py."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from rich.progress import track
from torch import Tensor

from latentfaces.bounds import Natural, Positive
from latentfaces.data.images import to_float, to_uint8
from latentfaces.diffusion import Sampler
from latentfaces.pipeline import FacePipeline, Name
from latentfaces.tasks.output import PictureFolder
from latentfaces.tasks.paste import Alignment
from latentfaces.tasks.photos import OwnPhotos, held_out_photos, read_photos


@dataclass(kw_only=True)
class Task:
    """Task that writes images.

    Args:
        num_images: number of images, per photo where there are photos.
        seed: selects the noise: image i of a seed is always the same. Also selects photos where there are more.
        batch_size: images at once. It changes time and memory, and no pixel by more than one level of 255.
    """

    num_images: Positive
    seed: Natural
    batch_size: Positive

    def reconstructed(self, pipeline: FacePipeline, images: Tensor, skips: float = 0.0) -> Tensor:
        """Reconstruct images (n, 3, R, R) uint8; for `skips` see `FacePipeline.reconstruct`."""
        batches = images.split(self.batch_size)
        return torch.cat([to_uint8(pipeline.reconstruct(to_float(batch), skips)).cpu() for batch in batches])


@dataclass(kw_only=True)
class SamplingTask(Task):
    """Task that samples.

    Args:
        sampler: maps noise to latents.
    """

    sampler: Sampler

    def variants(self, num_photos: int) -> Iterator[tuple[list[int], list[Name]]]:
        """Yield batches of photos and of names of the noise, `num_images` for each photo in turn.

        Result i of any photo has the noise of sample i of the seed.
        """
        pairs = [(photo, (self.seed, number)) for photo in range(num_photos) for number in range(self.num_images)]
        for start in track(range(0, len(pairs), self.batch_size), "Sampling"):
            batch = pairs[start : start + self.batch_size]
            yield [photo for photo, _ in batch], [name for _, name in batch]

    def noise_of(self, pipeline: FacePipeline, photos: Tensor) -> Tensor:
        """Return the noise (n, c, h, w) from which the sampler generates photos (n, 3, R, R) uint8, approximately.

        Raises:
            UserError: the sampler adds noise, so it cannot be inverted.
        """
        return torch.cat([pipeline.invert(to_float(batch), self.sampler) for batch in photos.split(self.batch_size)])


@dataclass(kw_only=True)
class PhotoTask(Task):
    """Task that starts from photos.

    Args:
        image: an image, or a folder or .zip of images.
        align: work on the face in a photo of `image`: "true", "false" or "auto"; see `Alignment`.
        face: number of the face.
    """

    image: str | None
    align: str = "false"
    face: Positive = 1

    def own_photos(
        self,
        pipeline: FacePipeline,
        pictures: PictureFolder,
        num_photos: int = 1,
        image: str | None = None,
        key: str = "image",
    ) -> OwnPhotos:
        """Read at most `num_photos` photos of an image, folder or .zip, by default `image`; `key` names it."""
        place = image or self.image
        assert place is not None
        alignment = None if self.align == "false" else Alignment(self.align, self.face, pictures.folder)
        return read_photos(place, pipeline.resolution, num_photos, self.seed, alignment, key)


@dataclass(kw_only=True)
class PackTask(PhotoTask):
    """Task that starts from photos, or from held-out images of a pack.

    Args:
        pack: the run's pack, used unless `image` is given.
    """

    pack: str | None

    def photos(self, pipeline: FacePipeline, pictures: PictureFolder, num_photos: int) -> OwnPhotos:
        """Read at most `num_photos` photos or, without `image`, held-out images of the pack."""
        if self.image is None:
            return held_out_photos(self.pack, num_photos, self.seed)
        return self.own_photos(pipeline, pictures, num_photos)
