"""Files with labels: one `Row` per image. They are untrusted; nothing in them is run."""

import csv
import io
import json
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from latentfaces.data.sources import MAX_FILE_BYTES, DrawnFaces, Photos, Source
from latentfaces.data.synthetic import known_labels
from latentfaces.errors import UserError, one_line

AUTO, FOLDERS = "auto", "folders"
CLASS = "class"
"""Name of the label of formats that have only one."""


class Row(NamedTuple):
    """Labels of one image."""

    image: str
    """Path below the root, file name, or file name without suffix."""
    cells: dict[str, str]
    """Text of each label; "" where missing."""
    place: str
    """Where the row is, for messages."""


def label_rows(wanted: str, source: Source, names: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of a file or a rule.

    Args:
        wanted: value of `data.labels`: a CSV, a JSON, a folder of JSONs, or one of "auto" and "folders".
        source: the images. The file may be in their folder or .zip.
        names: names of the images in the pack.

    Raises:
        UserError: the file is missing or damaged, or there are no such labels.
    """
    if wanted == AUTO:
        if not isinstance(source, DrawnFaces):
            raise UserError("data.labels=auto is for data=synthetic. Give a file of labels.")
        return (Row(name, known_labels(index), name) for index, name in enumerate(names))
    if wanted == FOLDERS:
        return (Row(name, {CLASS: PurePosixPath(name).parent.name}, name) for name in names)
    path = Path(wanted).expanduser()
    if path.is_dir():
        return features_rows(path)
    text = read_text(path, wanted, source)
    return json_rows(text, wanted) if path.suffix.lower() == ".json" else csv_rows(text, wanted)


def read_text(path: Path, wanted: str, source: Source) -> str:
    """Return the text of a file on disk, or else in the folder or .zip of the images."""
    try:
        if path.exists():
            if path.stat().st_size > MAX_FILE_BYTES:
                raise UserError(f"{path} has more than {MAX_FILE_BYTES:,} bytes. Choose a file of labels.")
            return path.read_text("utf-8-sig")  # spreadsheets put a mark at the beginning
        if isinstance(source, Photos) and (photos := source.unaligned or source).has_file(wanted):
            return photos.file_bytes(wanted).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"data.labels={wanted} is not a text in UTF-8. Unpack or convert it.") from None
    raise UserError(f"data.labels={wanted} does not exist. Give a file, a folder of JSONs, auto or folders.")


def csv_rows(text: str, path: str) -> Iterator[Row]:
    """Yield the rows of a CSV with the column `name`, or of FFHQ-Aging, which has `image_number`."""
    first = text.partition("\n")[0]
    # In countries with decimal commas, spreadsheets write semicolons.
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=";" if ";" in first and "," not in first else ",")
    try:
        header = [one_line(column) for column in next(lines, [])]
        columns = [column for column in header if column]
        if len(set(columns)) < len(columns):
            raise UserError(f"{path}, line 1: a column is there twice. Remove one.")
        if "name" not in header and "image_number" not in header:
            found = ", ".join(header)[:200]
            raise UserError(f"{path}, line 1: no column `name` with file names, only {found}. Rename that column.")
        for cells in lines:
            if not any(cells):  # spreadsheets write empty rows as commas
                continue
            place = f"{path}, line {lines.line_num}"
            if len(cells) != len(header):
                raise UserError(f"{place}: {len(cells)} cells, but the header has {len(header)}. Correct it.")
            row = {column: cell for column, cell in zip(header, cells, strict=True) if column}
            number = row.pop("image_number", "")
            name = row.pop("name", number and number.zfill(5))
            yield Row(name.strip(), {column: one_line(cell) for column, cell in row.items()}, place)
    except csv.Error as error:
        raise UserError(f"{path}, line {lines.line_num}: {error}. Correct or remove it.") from None


def identities(source: Source) -> list[str] | None:
    """Return the identity on each image from identity.csv, whose names are relative to its folder, if there is one."""
    if not isinstance(source, Photos) or (found := source.identity_csv()) is None:
        return None
    (folder, text), people = found, dict[str, str]()
    where = f"{(folder / 'identity.csv').as_posix()} in {source.root}"
    for row in csv_rows(text, where):
        name, identity = image_key((folder / row.image).as_posix()), row.cells.get("identity")
        if not identity or people.setdefault(name, identity) != identity:
            raise UserError(f"{row.place} needs one identity for {name}. Correct it.")
    missing = next((name for name in source.names if image_key(name) not in people), None)
    if missing is not None:
        raise UserError(f"{where} does not name {missing}. Complete or remove it.")
    return [people[image_key(name)] for name in source.names]


def image_key(name: str) -> str:
    """Return the name of an image as it is compared: Windows has other slashes, and macOS decomposes accents."""
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def json_rows(text: str, path: str) -> Iterator[Row]:
    """Yield the rows of StyleGAN's dataset.json: {"labels": [[path, class or vector], ...]}."""
    content = parse(text, path)
    entries = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise UserError(f'{path} has no list "labels" of [path, class]. Give a dataset.json of StyleGAN, or a CSV.')
    for number, entry in enumerate(entries):
        place = f"{path}, entry {number}"
        match entry:
            case [str(name), list(vector)]:
                yield Row(name, {f"{CLASS}_{i}": as_text(value, place) for i, value in enumerate(vector)}, place)
            case [str(name), value]:
                yield Row(name, {CLASS: as_text(value, place)}, place)
            case _:
                raise UserError(f"{place} is not [path, class] or [path, vector]. Correct it.")


def features_rows(folder: Path) -> Iterator[Row]:
    """Yield the rows of ffhq-features: one JSON per image, of which some are empty."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise UserError(f"data.labels={folder} contains no .json. Give the folder of ffhq-features, or a CSV.")
    for path in paths:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{path} has more than {MAX_FILE_BYTES:,} bytes. Remove it.")
        faces = parse(path.read_bytes() or b"[]", str(path))
        face = faces[0] if isinstance(faces, list) and faces else {}
        attributes = face.get("faceAttributes", {}) if isinstance(face, dict) else None
        if not isinstance(attributes, dict):
            raise UserError(f"{path} is not a list of faces with faceAttributes. Remove it.")
        yield Row(path.stem, flatten(attributes, str(path)), str(path))


def flatten(attributes: dict[str, Any], place: str) -> dict[str, str]:
    """Return the single values of nested attributes: {"hair": {"bald": 0.1}} is hair_bald. Lists are left out."""
    cells: dict[str, str] = {}
    for name, value in attributes.items():
        if isinstance(value, dict):
            cells |= {f"{one_line(name)}_{key}": cell for key, cell in flatten(value, place).items()}
        elif not isinstance(value, list):
            cells[one_line(name)] = as_text(value, place)
    return cells


def parse(text: str | bytes, path: str) -> Any:
    """Parse JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON ({type(error).__name__}). Fetch it again.") from None


def as_text(value: Any, place: str) -> str:
    """Return a value of a JSON as the text of a cell."""
    if isinstance(value, list | dict):
        raise UserError(f"{place}: {ascii(value)[:40]} is not a single value. Correct it.")
    return "" if value is None else one_line(value)
