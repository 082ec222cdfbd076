"""Base classes of the tasks of sample.py."""

from dataclasses import dataclass

from latentfaces.bounds import Natural, Positive
from latentfaces.diffusion import Sampler
from latentfaces.pipeline import FacePipeline
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


@dataclass(kw_only=True)
class SamplingTask(Task):
    """Task that samples.

    Args:
        sampler: maps noise to latents.
    """

    sampler: Sampler


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
