"""Edits of photos by SDEdit (Meng et al. 2022, algorithm 1) or by labels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from latentfaces.bounds import Fraction, Interval, Positive
from latentfaces.data.images import to_uint8
from latentfaces.data.pack import pack_if_here
from latentfaces.diffusion.schedule import at
from latentfaces.errors import UserError
from latentfaces.marks import EDITED
from latentfaces.pipeline import FacePipeline, Name
from latentfaces.tasks.base import PackTask, SamplingTask
from latentfaces.tasks.encoding import check_skips, encode
from latentfaces.tasks.inpaint import composed
from latentfaces.tasks.masks import feathered, read_mask
from latentfaces.tasks.output import PictureFolder, beside
from latentfaces.tasks.reconstruct import report
from latentfaces.tasks.relabel import print_moved, relabeled


@dataclass(kw_only=True)
class Edit(PackTask, SamplingTask):
    """A row for each photo: the photo, then `num_images` edits of it: noise is added up to some time, then removed.

    Where labels are requested, the photo is inverted and generated again with them instead; see `relabeled`.

    Args:
        num_photos: maximum number of photos.
        strength: time on the schedule's even scale (`NoiseSchedule.condition`), in (0, 1], up to which noise is added:
            near 0 the result is the VAE's reconstruction, at 1 nothing is left of the photo.
        skips: strength, in [0, 1], of the photo's features where the VAE has skip connections.
        photo_labels: labels of the photos, for an edit by labels; those that are not given are unknown.
        mask: image of the photo's shape, for an edit by labels: outside of white nothing changes.
    """

    num_photos: Positive
    strength: Annotated[float, Interval(gt=0, le=1)]
    skips: Fraction
    photo_labels: dict[str, Any] | None = None
    mask: str | None = None

    def __post_init__(self) -> None:
        if self.mask is not None and self.image is None:
            raise UserError(f"task.mask={self.mask} needs a photo of its shape. Give image=PHOTO.png.")

    def __call__(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write the edits. Return the path of the grid."""
        pictures.source = EDITED
        if not pipeline.asked.isnan().all():
            return self.by_labels(pipeline, pictures)
        check_skips(pipeline, self.skips)
        photos = self.photos(pipeline, pictures, self.num_photos)
        shown = []
        for which, names in self.variants(len(photos.images)):
            x0, features = encode(pipeline, photos.images, which)
            skips = [self.skips * feature for feature in features] if self.skips else None
            faces = to_uint8(pipeline.decode(self.edited(pipeline, x0, names), skips)).cpu()
            photos.save(faces, which, pictures)
            shown.append(faces)
        return pictures.grid(*beside(photos.images, torch.cat(shown)))

    def by_labels(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write photos with the requested labels. Return the path of the grid.

        Its columns are the photo, the photo generated again without a change, the result, and their difference.
        """
        photos = self.photos(pipeline, pictures, self.num_photos)
        images, size, hole, mask = photos.images, pipeline.resolution, None, None
        unchanged, changed = relabeled(pipeline, images, self.photo_labels or {}, self.sampler, self.batch_size)
        report("_without_change", images, unchanged)
        print_moved(pipeline, unchanged, changed, pack_if_here(self.pack))
        difference = (127.5 + (changed.float() - unchanged.float()) / 2).to(torch.uint8)
        if self.mask is not None:
            hole, mask = read_mask(self.mask, photos, size)
            changed = composed(images, changed, hole, feathered(hole, size // 32))
        photos.save(changed, list(range(len(images))), pictures, hole, mask)
        return pictures.grid(*beside(images, unchanged, changed, difference))

    def edited(self, pipeline: FacePipeline, x0: Tensor, names: list[Name]) -> Tensor:
        """Return latents (b, c, h, w) for the latents x0 of photos, each with the noise of its name."""
        draw, predictor = pipeline.draws(names), pipeline.predictor()
        start = at(predictor.schedule.time_of, self.strength)
        noise = draw()
        if start >= predictor.first_time:  # some schedules keep a trace of the photo even there
            return pipeline.sample(noise, self.sampler, draw)
        times = self.sampler.times(predictor.schedule, predictor.first_time, x0.shape)
        reached = [t for t in times if 0 < t <= start * (1 + 1e-4)]
        if not reached:
            raise UserError(
                f"task.strength={self.strength:g} is below all of the {len(times) - 1} sampling times. Raise it or "
                "sampler.num_steps."
            )
        x_t = predictor.schedule.add_noise(x0, noise, x0.new_full((len(x0),), start))
        with pipeline.autocast():
            return self.sampler.refine(predictor, x_t, start, draw)
