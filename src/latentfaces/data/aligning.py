"""Write the aligned faces of a folder or .zip of photos on all cores. A run that was killed is resumed."""

import csv
import io
import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from rich.progress import track
from rich.text import Text

from latentfaces.data import align
from latentfaces.data.crops import Square, crop
from latentfaces.data.packing import num_threads
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
SHOWN, COLUMNS, THUMBNAIL, CAPTION = 64, 8, 128, 28
"""Faces of each kind on the contact sheet, and its layout in pixels."""


def align_photos(source: Photos, folder: Path, size: int) -> Photos:
    """Write the faces of all photos to `folder`, unless this is done already. Return them as a source.

    Args:
        source: the photos.
        folder: gets a PNG for each face, faces.csv and a contact sheet.
        size: height and width of a face in pixels.

    Raises:
        UserError: the extra `align` is missing, the folder has other contents, or no face is taken.
    """
    align.session()
    settings = {"fingerprint": source.fingerprint, "size": size}
    with file_lock(folder):
        path = folder / ALIGNMENT
        if not folder.exists() or not any(folder.iterdir()):
            with atomic_write(path) as file:
                file.write(json.dumps(settings).encode())
        elif not path.exists() or json.loads(path.read_text()) != settings:
            raise UserError(f"{folder} has other contents than the {size}-pixel faces of {source.name}. Delete it.")
        if not (folder / FACES_CSV).exists():
            Aligning(source, folder, size).run()
    faces = Photos(folder, source.licence)
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


class Aligning:
    """Aligned faces that are being written. `progress.csv` has the photos that are done.

    Args:
        source, folder, size: see `align_photos`.
    """

    def __init__(self, source: Photos, folder: Path, size: int) -> None:
        self.source, self.folder, self.size = source, folder, size
        stems = Counter(PurePosixPath(name).with_suffix("") for name in source.names)
        self.stems = {}
        for name in source.names:
            stem = PurePosixPath(name).with_suffix("")
            is_unique = stems[stem] == 1 and not re.search(r"-face\d+$", stem.name)
            self.stems[name] = str(stem) if is_unique else name
        self.progress = folder / "progress.csv"
        self.rows: dict[str, list[Row]] = {}

    def run(self) -> None:
        """Process the pending photos, then write the contact sheet and faces.csv."""
        self.resume()
        pending = [name for name in self.source.names if printable(name) not in self.rows]
        Image.init()  # as in `Packing.run`
        Text.from_markup("")
        with ThreadPoolExecutor(num_threads()) as pool:
            try:
                done = pool.map(self.align, pending)
                title = f"Aligning {len(self.source.names):,} photos of {self.source.name}"
                for rows in track(done, title, total=len(pending)):
                    append(self.progress, as_csv(rows))
                    self.rows[rows[0]["source"]] = rows
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        self.finish()

    def resume(self) -> None:
        """Read what an earlier run has done. Its last photo, which may be incomplete, is done again."""
        earlier = read_csv(self.progress) if self.progress.exists() else []
        for row in earlier:
            if row["source"] != earlier[-1]["source"]:
                self.rows.setdefault(row["source"], []).append(row)
        with atomic_write(self.progress) as file:
            file.write((",".join(FIELDS) + "\n").encode())
            file.write(as_csv([row for rows in self.rows.values() for row in rows]).encode())

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
            row |= {"side": f"{face.square.side:.1f}"}
            row |= dict(zip(FIELDS[6:], (f"{x:.1f}" for x in (*face.box, *face.landmarks.ravel())), strict=True))
            if not left_out:
                path = self.folder / (self.stems[name] + (f"-face{number}" if number > 1 else "") + ".png")
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path, compress_level=1)
                row["file"] = printable(path.relative_to(self.folder).as_posix())
            rows.append(row)
        return rows or [{"source": printable(name), "left_out": "no face found"}]

    def finish(self) -> None:
        """Write identity.csv where identities are known, the contact sheet, and last faces.csv. Print the counts."""
        rows = [row for name in self.source.names for row in self.rows[printable(name)]]
        taken = [row for row in rows if row.get("file")]
        left_out = [row for row in rows if not row.get("file")]
        if people := self.source.identities():
            of = dict(zip(map(printable, self.source.names), people, strict=True))
            with atomic_write(self.folder / "identity.csv") as file:
                lines = io.StringIO()
                csv.writer(lines).writerows([("name", "identity"), *((r["file"], of[r["source"]]) for r in taken)])
                file.write(lines.getvalue().encode())
        self.contact_sheet(taken, left_out)
        with atomic_write(self.folder / FACES_CSV) as file:
            file.write((",".join(FIELDS) + "\n" + as_csv(rows)).encode())
        self.progress.unlink()
        print(f"{self.folder}: {len(taken):,} faces taken, {len(left_out):,} left out, see {FACES_CSV}")
        for reason, count in Counter(row["left_out"].partition(":")[0] for row in left_out).most_common():
            print(f"  {count:,} {reason}")

    def contact_sheet(self, taken: list[Row], left_out: list[Row]) -> None:
        """Write a picture with evenly spaced faces: those that are taken above those that are left out."""
        names = {printable(name): name for name in self.source.names}
        shown = [rows[:: -(-len(rows) // SHOWN) or 1] for rows in (taken, left_out)]
        heights = [-(-len(rows) // COLUMNS) * (THUMBNAIL + CAPTION) for rows in shown]
        sheet = Image.new("RGB", (COLUMNS * THUMBNAIL, sum(heights) + 2 * CAPTION), "white")
        draw, top = ImageDraw.Draw(sheet), 0
        for title, rows, height in zip(
            (f"taken: {len(taken)}", f"left out: {len(left_out)}"), shown, heights, strict=True
        ):
            draw.text((4, top + 8), title, "black")
            for index, row in enumerate(rows):
                x, y = index % COLUMNS * THUMBNAIL, top + CAPTION + index // COLUMNS * (THUMBNAIL + CAPTION)
                sheet.paste(self.thumbnail(row, names[row["source"]]), (x, y))
                lines = (PurePosixPath(row["source"]).name, row["left_out"])
                draw.text((x + 2, y + THUMBNAIL), "\n".join(line[:20] for line in lines), "black", font_size=10)
            top += CAPTION + height
        sheet.save(self.folder / CONTACT_SHEET)

    def thumbnail(self, row: Row, name: str) -> Image.Image:
        """Return the face of a row or, where there is none, the photo; gray if it cannot be read."""
        gray = Image.new("RGB", (THUMBNAIL, THUMBNAIL), "gray")
        try:
            photo = self.source.photo(name)
        except BadImageError:
            return gray
        if row.get("score"):
            marks = np.array([float(row[field]) for field in FIELDS[10:]]).reshape(5, 2)
            return crop(photo, Square.of_landmarks(marks), THUMBNAIL)
        photo.thumbnail((THUMBNAIL, THUMBNAIL))
        gray.paste(photo)
        return gray
