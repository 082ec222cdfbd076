"""Where a task's pictures go."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from latentfaces.errors import UserError
from latentfaces.evaluation import save_grid, save_png


class PictureFolder:
    """Writes 00000.png, 00001.png, ... and grid.png, each with what remakes it in its PNG text "latentfaces".

    Args:
        folder: where to; it must not hold pictures yet.
        origin: what all pictures have in common: run, weights, task, seed, ...
    """

    def __init__(self, folder: str | Path, origin: dict[str, Any]) -> None:
        self.folder, self.origin = Path(folder), origin
        self.count = 0
        if any(self.folder.glob("*.png")):
            raise UserError(f"output={self.folder} holds pictures already: name another folder")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"output={self.folder} cannot be written ({error.strerror})") from error

    def add(self, images: Tensor) -> None:
        """Write images (n, 3, H, W) uint8, numbered on from the last."""
        for image in images:
            save_png(image, self.folder / f"{self.count:05d}.png", self.text(index=self.count))
            self.count += 1

    def grid(self, images: Tensor, columns: int) -> Path:
        """Write all images (n, 3, H, W) uint8 as grid.png."""
        path = self.folder / "grid.png"
        save_grid(images, path, columns, self.text())
        return path

    def text(self, **more: Any) -> dict[str, str]:
        """PNG text."""
        return {"latentfaces": json.dumps(self.origin | more)}
