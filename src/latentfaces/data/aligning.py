"""Write the aligned faces of a folder or .zip of photos on all cores. A run that was killed is resumed."""

import csv
import io
import json
import re
from collections import Counter
from contextlib import nullcontext
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from latentfaces.data import align
from latentfaces.data.contact_sheet import SIDE, contact_sheet
from latentfaces.data.crops import Square, crop
from latentfaces.data.label_files import identities
from latentfaces.data.packing import in_parallel
from latentfaces.data.sources import ALIGNMENT, CONTACT_SHEET, FACES_CSV, BadImageError, Photos
from latentfaces.errors import UserError
from latentfaces.files import append, atomic_write, file_lock, read_csv

Row = dict[str, Any]
LANDMARKS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
FIELDS = (
    *("source", "face", "file", "left_out", "score", "side", "left", "top", "right", "bottom"),
    *(f"{landmark}_{axis}" for landmark in LANDMARKS for axis in "xy"),
)
"""Columns of faces.csv. Without a file the face was left out, for the reason in `left_out`. Positions in pixels."""
MAX_SHOWN = 64
"""Faces of each kind on the contact sheet."""


def align_photos(source: Photos, folder: Path, size: int) -> Photos:
    """Write the faces of all photos to `folder`, unless this is done already. Return them as a source.

    Args:
        source: the photos.
        folder: gets a PNG for each face, faces.csv and a contact sheet.
        size: height and width of a face in pixels.

    Raises:
        UserError: the extra `align` is missing, the folder has other contents, or no face is taken.
    """
    if source.archive is None and folder.resolve().is_relative_to(source.root.resolve()):
        raise UserError(f"{folder} is inside of {source.root}. Choose another --align, or data.folder.")
    is_done, path = (folder / FACES_CSV).exists(), folder / ALIGNMENT
    if not is_done:
        align.session()  # before anything is written
    settings = json.dumps({"fingerprint": source.fingerprint, "size": size})
    with nullcontext() if is_done else file_lock(folder):  # complete faces may be in a read-only folder
        if not folder.exists() or not any(folder.iterdir()):
            with atomic_write(path) as file:
                file.write(settings.encode())
        elif not path.exists() or path.read_text() != settings:
            raise UserError(f"{folder} has other contents than the {size}-pixel faces of {source.name}. Delete it.")
        if not (folder / FACES_CSV).exists():
            Aligning(source, folder, size).run()
    faces = Photos(folder, source.licence)
    faces.unaligned = source
    if not faces.listing[0]:
        raise UserError(f"No face was found in {source.root} that is fit for training: see {folder / FACES_CSV}.")
    return faces


def printable(text: str) -> str:
    """Escape what is not UTF-8 in the name of a file."""
    return text.encode(errors="backslashreplace").decode()


def as_csv(rows: list[Row]) -> str:
    """Return rows of faces.csv."""
    lines = io.StringIO()
    csv.DictWriter(lines, FIELDS, lineterminator="\n").writerows(rows)
    return lines.getvalue()


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write a file like faces.csv."""
    with atomic_write(path) as file:
        file.write((",".join(FIELDS) + "\n" + as_csv(rows)).encode())


class Aligning:
    """Aligned faces that are being written. `progress.csv` has the photos that are done.

    Args:
        source, folder, size: see `align_photos`.
    """

    def __init__(self, source: Photos, folder: Path, size: int) -> None:
        self.source, self.folder, self.size = source, folder, size
        stems = {name: str(PurePosixPath(name).with_suffix("")) for name in source.names}
        uses = Counter([*stems.values(), *source.names])
        self.stems = {
            name: stem if uses[stem] == 1 and not re.search(r"-face\d+$", stem) else name
            for name, stem in stems.items()
        }
        self.progress = folder / "progress.csv"
        self.people = dict(zip(map(printable, source.names), identities(source) or [], strict=False))

    def run(self) -> None:
        """Process the pending photos in order, then write the contact sheet and faces.csv."""
        rows: list[Row] = [*read_csv(self.progress)] if self.progress.exists() else []
        rows = [row for row in rows if row["source"] != rows[-1]["source"]]  # the last photo may be incomplete
        write_rows(self.progress, rows)
        pending = self.source.names[len({row["source"] for row in rows}) :]
        title = f"Aligning {len(self.source.names):,} photos of {self.source.name}"
        for faces in in_parallel(self.align, pending, title):
            append(self.progress, as_csv(faces))
            rows += faces
        self.finish(rows)

    def align(self, name: str) -> list[Row]:
        """Write the faces of one photo. Return their rows, or one row with the reason why there are none."""
        try:
            photo = self.source.photo(name)
        except BadImageError as error:
            return [{"source": printable(name), "left_out": printable(f"not readable: {error}")}]
        rows = []
        for number, face in enumerate(align.find_faces(photo), 1):
            image = crop(photo, face.square, self.size)
            left_out = align.reason_against(face, image)
            row = {"source": printable(name), "face": number, "left_out": left_out, "score": f"{face.score:.3f}"}
            numbers = (face.square.side, *face.box, *face.landmarks.ravel())
            row |= dict(zip(FIELDS[5:], (f"{number:.1f}" for number in numbers), strict=True))
            if not left_out:
                path = self.folder / (self.stems[name] + (f"-face{number}" if number > 1 else "") + ".png")
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path, compress_level=1)
                row["file"] = printable(path.relative_to(self.folder).as_posix())
            rows.append(row)
        return rows or [{"source": printable(name), "left_out": "no face found"}]

    def finish(self, rows: list[Row]) -> None:
        """Write identity.csv where identities are known, the contact sheet, and last faces.csv. Print the counts."""
        taken = [row for row in rows if row.get("file")]
        left_out = [row for row in rows if not row.get("file")]
        if self.people:
            lines = io.StringIO()
            people = ((row["file"], self.people[row["source"]]) for row in taken)
            csv.writer(lines).writerows([("name", "identity"), *people])
            with atomic_write(self.folder / "identity.csv") as file:
                file.write(lines.getvalue().encode())
        sections = {f"taken: {len(taken):,}": taken, f"left out: {len(left_out):,}": left_out}
        sheet = contact_sheet({title: self.thumbnails(some) for title, some in sections.items()})
        sheet.save(self.folder / CONTACT_SHEET)
        write_rows(self.folder / FACES_CSV, rows)
        self.progress.unlink()
        print(f"{self.folder}: {len(taken):,} faces taken, {len(left_out):,} left out, see {FACES_CSV}")
        for reason, count in Counter(row["left_out"].partition(":")[0] for row in left_out).most_common():
            print(f"  {count:,} {reason}")

    def thumbnails(self, rows: list[Row]) -> list[tuple[Image.Image, tuple[str, str]]]:
        """Return evenly spaced faces, or photos without a face, with the name and the reason to leave it out."""
        names, thumbnails = {printable(name): name for name in self.source.names}, []
        for row in rows[:: -(-len(rows) // MAX_SHOWN) or 1]:
            try:
                image = self.source.photo(names[row["source"]])
                if row.get("score"):
                    marks = np.array([float(row[field]) for field in FIELDS[10:]]).reshape(5, 2)
                    image = crop(image, Square.of_landmarks(marks), SIDE)
            except BadImageError:
                image = Image.new("RGB", (SIDE, SIDE), "gray")
            image.thumbnail((SIDE, SIDE))
            thumbnails.append((image, (PurePosixPath(row["source"]).name, row["left_out"])))
        return thumbnails
