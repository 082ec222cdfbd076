"""Files -> batches."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentfaces.data.datamodule import FFHQDataModule
    from latentfaces.data.datasets import FFHQDataset
    from latentfaces.data.images import to_float, to_uint8
    from latentfaces.data.pack import Pack, open_pack
    from latentfaces.data.sources import DrawnFaces, Photos

MODULES = {
    "FFHQDataModule": "datamodule",
    "FFHQDataset": "datasets",
    **dict.fromkeys(("to_float", "to_uint8"), "images"),
    **dict.fromkeys(("Pack", "open_pack"), "pack"),
    **dict.fromkeys(("DrawnFaces", "Photos"), "sources"),
}
"""Module of each public name. They are imported when they are used: an exported model needs none of Lightning."""
__all__ = ["DrawnFaces", "FFHQDataModule", "FFHQDataset", "Pack", "Photos", "open_pack", "to_float", "to_uint8"]


def __getattr__(name: str) -> Any:
    """Import a public name (PEP 562)."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f"{__name__}.{MODULES[name]}"), name)
