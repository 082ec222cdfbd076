"""Photos through the VAE and back."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentfaces.data.ffhq import to_float, to_uint8
from latentfaces.data.pack import open_pack
from latentfaces.data.sources import BadImageError, Photos
from latentfaces.errors import UserError
from latentfaces.evaluation import calculate_metrics
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks.output import PictureFolder


@dataclass
class Reconstruct:
    """Photos above what the VAE makes of them, with PSNR and SSIM.

    Where the VAE has skip connections, a third row shows what it makes of them with these, and that is what is written
    as single pictures.

    Args:
        pack: the run's pack, whose held-out photos are shown unless `image` is given.
        image: a picture, or a folder or .zip of pictures, centre-cropped to a square.
        num_images: at most so many.
        seed: of the choice among more.
        batch_size: how many at once.
    """

    pack: str
    image: str | None
    num_images: int
    seed: int
    batch_size: int

    def __call__(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write originals above reconstructions; the grid's path."""
        images = torch.from_numpy(self.originals(pipeline.resolution))
        rows = [images, self.reconstructions(pipeline, images, 0.0)]
        self.report("", rows[0], rows[1])
        if pipeline.vae.skip_connections:
            rows.append(self.reconstructions(pipeline, images, 1.0))
            self.report("_with_skips", rows[0], rows[2])
        pictures.add(rows[-1])
        columns = min(16, len(images))
        bands = zip(*(row.split(columns) for row in rows), strict=True)
        return pictures.grid(torch.cat([part for band in bands for part in band]), columns)

    def reconstructions(self, pipeline: FacePipeline, images: Tensor, skips: float) -> Tensor:
        """What the VAE makes of images (n, 3, R, R) uint8, likewise; for `skips` see `FacePipeline.reconstruct`."""
        batches = images.split(self.batch_size)
        return torch.cat([to_uint8(pipeline.reconstruct(to_float(batch), skips)).cpu() for batch in batches])

    @staticmethod
    def report(suffix: str, images: Tensor, reconstructions: Tensor) -> None:
        """Print PSNR and SSIM."""
        for name, value in calculate_metrics(to_float(images), to_float(reconstructions)).items():
            print(f"{name}{suffix} {value:.4g}")

    def originals(self, resolution: int) -> np.ndarray:
        """The photos, (n, 3, R, R) uint8."""
        if self.image is None:
            pack = open_pack(Path(self.pack))
            return pack.images[np.sort(self.choose(pack.val_indices))]
        path = Path(self.image).expanduser()
        if not path.exists():
            raise UserError(f"image={self.image} does not exist")
        single = path.is_file() and Photos.is_picture(path.name)
        source = Photos(path.parent if single else path)
        wanted = [source.names.index(path.name)] if single else self.choose(np.arange(len(source.names))).tolist()
        try:
            return np.stack([source.read(index, resolution).pixels for index in wanted])
        except BadImageError as error:
            raise UserError(f"{error}: give another picture") from error

    def choose(self, indices: np.ndarray) -> np.ndarray:
        """At most `num_images` of them, by the seed."""
        return np.random.default_rng(self.seed).permutation(indices)[: self.num_images]
