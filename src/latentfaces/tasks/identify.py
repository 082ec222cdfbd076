"""Marks of a file."""

import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from latentfaces.errors import UserError
from latentfaces.export.credentials import read_credentials
from latentfaces.marks import read_recipe, read_source


@dataclass
class Identify:
    """Print the marks of a PNG, GIF, MP4 or .npz of latentfaces, or of an image of another program.

    Args:
        image: the file.
    """

    image: str | None

    def __call__(self) -> list[str]:
        """Return a line for each kind of mark."""
        if self.image is None:
            raise UserError("task=identify needs a file. Give image=FILE.")
        path = Path(self.image)
        try:
            source, recipe = read_source(path), read_recipe(path)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"image={path} cannot be read ({error}). Give another file.") from None
        return [
            f"source type: {source or 'none'}",
            f"recipe: {json.dumps(recipe) if recipe else 'none'}",
            f"c2pa: {read_credentials(path)}",
        ]
