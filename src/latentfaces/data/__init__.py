"""Files -> batches."""

from latentfaces.data.datamodule import FFHQDataModule
from latentfaces.data.datasets import FFHQDataset
from latentfaces.data.images import to_float, to_uint8
from latentfaces.data.pack import Pack, open_pack
from latentfaces.data.sources import DrawnFaces, Photos

__all__ = ["DrawnFaces", "FFHQDataModule", "FFHQDataset", "Pack", "Photos", "open_pack", "to_float", "to_uint8"]
