"""Files -> batches."""

from typing import TYPE_CHECKING, Any

from latentfaces.data.datasets import FFHQDataset
from latentfaces.data.images import to_float, to_uint8
from latentfaces.data.pack import Pack, open_pack
from latentfaces.data.sources import DrawnFaces, Photos

if TYPE_CHECKING:
    from latentfaces.data.datamodule import FFHQDataModule

__all__ = ["DrawnFaces", "FFHQDataModule", "FFHQDataset", "Pack", "Photos", "open_pack", "to_float", "to_uint8"]


def __getattr__(name: str) -> Any:
    """Import the data module at its first use: Lightning takes seconds to import."""
    if name != "FFHQDataModule":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from latentfaces.data.datamodule import FFHQDataModule

    return FFHQDataModule
