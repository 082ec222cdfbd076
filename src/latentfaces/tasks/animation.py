"""Rows of faces, and their animations as GIF or MP4."""

import importlib
import importlib.util
import io
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from PIL import Image
from torch import Tensor

from latentfaces.bounds import Interval
from latentfaces.errors import missing_extra
from latentfaces.files import atomic_write
from latentfaces.marks import GENERATED, Source, mark_gif, mark_mp4
from latentfaces.tasks.base import PhotoTask, SamplingTask
from latentfaces.tasks.output import PictureFolder


@dataclass(kw_only=True)
class RowTask(PhotoTask, SamplingTask):
    """Task that makes a row of faces, and an animation of it forwards and backwards.

    Args:
        animation: "gif", "mp4" (needs PyAV) or "none".
        frames_per_second: frame rate of the animation, within what a GIF allows.
    """

    animation: Literal["gif", "mp4", "none"]
    frames_per_second: Annotated[float, Interval(ge=0.1, le=50)]

    def __post_init__(self) -> None:
        if self.animation == "mp4" and importlib.util.find_spec("av") is None:
            raise missing_extra("task.animation=mp4", "video", ", or use task.animation=gif")

    def write(self, faces: Tensor, pictures: PictureFolder) -> Path:
        """Write faces (n, 3, R, R) uint8, the animation and the row. Return the path of the row."""
        pictures.add(faces)
        if self.animation != "none":
            path = pictures.folder / f"animation.{self.animation}"
            save_animation(there_and_back(faces), path, self.frames_per_second, pictures.recipe(), pictures.source)
            pictures.sign(path)
            print(path)
        return pictures.grid(faces, columns=len(faces))


def there_and_back(frames: Tensor) -> Tensor:
    """Return frames (n, 3, H, W) as a loop: to the last and back to the second."""
    return torch.cat([frames, frames[1:-1].flip(0)])


def save_animation(
    frames: Tensor, path: Path, frames_per_second: float, text: str = "", source: Source = GENERATED
) -> None:
    """Write frames (n, 3, H, W) uint8 as .gif or .mp4, by the suffix, with `text` as comment and the source type.

    The frame times of a GIF are multiples of 10 ms.
    """
    pictures = list(frames.permute(0, 2, 3, 1).contiguous().cpu().numpy())
    if path.suffix == ".mp4":
        data = mark_mp4(mp4_of(pictures, frames_per_second, text), source)
    else:
        data = mark_gif(gif_of(pictures, frames_per_second, text), source)
    with atomic_write(path) as file:
        file.write(data)


def gif_of(pictures: list[Any], frames_per_second: float, text: str) -> bytes:
    """Encode a GIF that loops."""
    first, *rest = [Image.fromarray(picture) for picture in pictures]
    milliseconds, buffer = 10 * round(100 / frames_per_second), io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=milliseconds, loop=0, comment=text.encode())
    return buffer.getvalue()


def mp4_of(pictures: list[Any], frames_per_second: float, text: str) -> bytes:
    """Encode H.264 with PyAV."""
    av: Any = importlib.import_module("av")
    height, width = pictures[0].shape[:2]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        file.metadata["comment"] = text
        stream = file.add_stream("libx264", rate=Fraction(frames_per_second).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "16"}
        for picture in pictures:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode(None))
    return buffer.getvalue()
