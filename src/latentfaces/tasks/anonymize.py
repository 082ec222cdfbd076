"""New faces in photos."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from latentfaces.data.align import find_faces, session
from latentfaces.data.crops import Square, crop, paste
from latentfaces.data.pack import pack_if_here
from latentfaces.data.sources import BadImageError
from latentfaces.errors import UserError
from latentfaces.evaluation.features import EncoderFeatures, NetworkFeatures, saved_network
from latentfaces.evaluation.probe import Probe, WithPixels
from latentfaces.files import append, atomic_write
from latentfaces.marks import EDITED
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks.directions import probes_of
from latentfaces.tasks.face_set import IMAGES
from latentfaces.tasks.inpaint import Inpainting
from latentfaces.tasks.output import PictureFolder
from latentfaces.tasks.photos import open_source

CENTER, RADII = (0.5, 0.6), (0.28, 0.34)
"""Ellipse around the inside of a face, from brows to chin, as fractions of the side of FFHQ's square."""
RECOGNIZED = 256
"""Height and width of the faces that the recognizer sees."""
REPORT, PROGRESS = "photos.json", "photos.partial.jsonl"


@dataclass(kw_only=True)
class Anonymize(Inpainting):
    """Generate the inside of each face in photos again, and paste it in place. Writes photos.json.

    Every other pixel of a photo is unchanged. The binary labels of a face, as probes recognize them, are kept. A photo
    without a face, or one that fails, is listed with the reason. A killed task with the same output resumes.

    Args:
        num_images: maximum number of photos.
        image: photo, or folder or .zip of photos.
        pack: the run's pack, for the probes. Without it labels that are not requested are unknown.
        recognizer: file of a network that maps aligned faces (n, 3, 256, 256) uint8 to (n, d), see `saved_network`.
        same_person: distance of its outputs up to which two faces are the same person.
    """

    image: str | None
    pack: str | None
    recognizer: str | None
    same_person: float | None

    def __post_init__(self) -> None:
        if self.image is None:
            raise UserError("task=anonymize needs photos. Give image=FOLDER.")
        if (self.recognizer is None) != (self.same_person is None):
            raise UserError("task.recognizer=FILE and task.same_person=DISTANCE belong together. Give both, or none.")

    def __call__(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write the photos. Return the path of photos.json."""
        assert self.image is not None
        session()  # before anything is written
        pictures.source = EDITED
        recognizer = None
        if self.recognizer is not None:
            recognizer = saved_network(self.recognizer, pipeline.device, "task.recognizer")
        pack = pack_if_here(self.pack)
        probes = probes_of(pipeline, pack) if pack is not None else {}
        source = open_source(self.image, "image")
        names, progress = source.names[: self.num_images], pictures.folder / PROGRESS
        rows = finished(pictures, names, progress)
        count = sum(row.get("faces", 0) for row in rows)
        for number in track(range(len(rows), len(names)), "Photos"):
            row: dict[str, Any] = {"photo": names[number]}
            try:
                photo = source.photo(names[number])
                squares, reason = [face.square for face in find_faces(photo)], "no face found"
            except (BadImageError, OSError, ValueError) as error:
                squares, reason = [], str(error)
            if squares:
                result = self.anonymized(pipeline, photo, squares, probes, count)
                count += len(squares)
                row |= {"file": f"{IMAGES}/{number:05d}.png", "faces": len(squares)}
                pictures.write(pil_to_tensor(result), row["file"], compress_level=1, index=number)
                if recognizer is not None:
                    row["distances"] = distances(recognizer, photo, result, squares)
            else:
                row["left_out"] = reason
            rows.append(row)
            append(progress, as_line(row))
        path = self.report(rows, pictures.folder / REPORT)
        progress.unlink()
        return path

    def anonymized(
        self,
        pipeline: FacePipeline,
        photo: Image.Image,
        squares: list[Square],
        probes: dict[str, Probe],
        first: int,
    ) -> Image.Image:
        """Return a photo with new faces in the squares, with the noise of the samples from number `first` on."""
        size = pipeline.resolution
        crops = torch.stack([pil_to_tensor(crop(photo, square, size)) for square in squares])
        hole, condition = inside_of_face(size), pipeline.condition(self.labels(pipeline, crops, probes))
        weight, numbers, result = hole.numpy().astype(np.float32), list(range(len(crops))), photo
        for start in range(0, len(crops), self.batch_size):
            which = numbers[start : start + self.batch_size]
            names = [(self.seed, first + index) for index in which]
            given = None if condition is None else condition[which]
            faces = self.faces(pipeline, crops, hole.expand(len(crops), 1, -1, -1), which, names, given)
            for face, index in zip(faces, which, strict=True):
                result = paste(result, to_pil_image(face), squares[index], weight)
        return result

    def labels(self, pipeline: FacePipeline, crops: Tensor, probes: dict[str, Probe]) -> Tensor:
        """Return the labels (n, L) of crops (n, 3, R, R) uint8: the requested ones, or else those of the probes."""
        labels = pipeline.asked.repeat(len(crops), 1)
        seen = WithPixels(EncoderFeatures(pipeline.vae))(crops) if probes else crops
        for index, label in enumerate(pipeline.conditioning.labels if pipeline.conditioning else []):
            if label.name in probes and pipeline.asked[index].isnan():
                labels[:, index] = probes[label.name](seen)
        return labels

    def report(self, rows: list[dict[str, Any]], path: Path) -> Path:
        """Write photos.json and print its summary. Return its path."""
        written = [row for row in rows if "file" in row]
        summary: dict[str, Any] = {"photos": len(rows), "faces": sum(row["faces"] for row in written)}
        print(f"{summary['faces']:,} faces in {len(written):,} of {len(rows):,} photos")
        measured = [distance for row in written for distance in row.get("distances", ())]
        if self.same_person is not None and measured:
            beyond = sum(distance > self.same_person for distance in measured) / len(measured)
            summary |= {"same_person": self.same_person, "fraction_beyond": beyond}
            summary["median_distance"] = float(np.median(measured))
            print(f"beyond the same-person distance of {self.same_person:g}: {beyond:.1%} of the faces")
        for row in rows:
            if "left_out" in row:
                print(f"left out: {row['photo']} ({row['left_out']})")
        with atomic_write(path) as file:
            file.write(json.dumps({**summary, "files": rows}, indent=1).encode())
        return path


def finished(pictures: PictureFolder, names: list[str], progress: Path) -> list[dict[str, Any]]:
    """Return the rows of the photos that a killed task has finished. The file `progress` gets them, after the origin.

    Raises:
        UserError: the folder has a complete set, or photos of other settings.
    """
    if (pictures.folder / REPORT).exists():
        raise UserError(f"output={pictures.folder} already contains images. Choose another folder.")
    text = progress.read_text() if progress.exists() else as_line(pictures.origin)
    complete = text[: text.rfind("\n") + 1]  # a kill may have cut the last line
    origin, *rows = [json.loads(line) for line in complete.splitlines()]
    if origin != pictures.origin or [row["photo"] for row in rows] != names[: len(rows)]:
        raise UserError(f"output={pictures.folder} contains images of other settings. Choose another folder.")
    with atomic_write(progress) as file:
        file.write(complete.encode())
    return rows


def as_line(content: dict[str, Any]) -> str:
    """Return a line of JSON."""
    return json.dumps(content) + "\n"


def inside_of_face(size: int) -> Tensor:
    """Return the inside of a face in FFHQ's square as (size, size) bool."""
    y, x = torch.meshgrid(*[(torch.arange(size) + 0.5) / size] * 2, indexing="ij")
    return ((x - CENTER[0]) / RADII[0]) ** 2 + ((y - CENTER[1]) / RADII[1]) ** 2 <= 1


def distances(
    recognizer: NetworkFeatures, photo: Image.Image, result: Image.Image, squares: list[Square]
) -> list[float]:
    """Return the distance of each new face from the one in the photo."""
    before, after = (
        recognizer(torch.stack([pil_to_tensor(crop(image, square, RECOGNIZED)) for square in squares]))
        for image in (photo, result)
    )
    return [round(distance, 4) for distance in (after - before).norm(dim=1).tolist()]
