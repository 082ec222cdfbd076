"""Photos through the VAE and back."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

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
        reconstructions = torch.cat(
            [to_uint8(pipeline.reconstruct(to_float(batch))).cpu() for batch in images.split(self.batch_size)]
        )
        for name, value in calculate_metrics(to_float(images), to_float(reconstructions)).items():
            print(f"{name} {value:.4g}")
        pictures.add(reconstructions)
        columns = min(16, len(images))
        rows = [
            part for pair in zip(images.split(columns), reconstructions.split(columns), strict=True) for part in pair
        ]
        return pictures.grid(torch.cat(rows), columns)

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
            return np.stack([source.read(index, resolution).pixels.transpose(2, 0, 1) for index in wanted])
        except BadImageError as error:
            raise UserError(f"{error}: give another picture") from error

    def choose(self, indices: np.ndarray) -> np.ndarray:
        """At most `num_images` of them, by the seed."""
        return np.random.default_rng(self.seed).permutation(indices)[: self.num_images]
