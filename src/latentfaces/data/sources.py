"""Where pictures come from: a folder, a .zip, or our own pen. All answer the same four questions."""

import csv
import hashlib
import io
import json
import os
import re
import stat
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

from PIL import UnidentifiedImageError

from latentfaces.data.images import FilterName, Picture, decode, digest
from latentfaces.data.pack import Pack
from latentfaces.data.synthetic import draw_face
from latentfaces.errors import UserError

FFHQ_JSON = "ffhq-dataset-v2.json"
FFHQ_FOLDERS = ("images1024x1024", "thumbnails128x128", "in-the-wild-images")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
UNREAD = (".heic", ".heif", ".avif", ".jxl", ".gif", ".dng", ".cr2", ".cr3", ".nef", ".arw")
"""Suffixes of what a person may take for photos, and nothing here reads."""

MAX_FILE_BYTES = 2**28


class BadImageError(Exception):
    """A picture that cannot be read; the message names it."""


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key that puts 2.png before 10.png, as people and FFHQ's numbering do."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def zip_threat(member: zipfile.ZipInfo, is_picture: bool) -> str | None:
    """Return why a .zip member is rejected, or None.

    Nothing is ever extracted to disk, so that none of it could do harm; but who made such a .zip meant to.
    """
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or member.filename[1:2] == ":":
        return "climbs out of its folder"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "is a link to another file"
    if is_picture and member.file_size > MAX_FILE_BYTES:
        return f"unpacks to over {MAX_FILE_BYTES:,} bytes, as no photo does"
    return None


def files_in(folder: Path, above: str = "") -> Iterator[tuple[str, int]]:
    """Name within `folder` and size of each file in it and in its folders; ten times as fast as `Path.rglob`.

    Raises:
        UserError: naming a folder that may not be read.
    """
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}): grant it, or give another folder") from error
    for entry in entries:
        if entry.is_file():
            yield above + entry.name, entry.stat().st_size
        elif entry.is_dir(follow_symlinks=False):
            yield from files_in(Path(entry.path), f"{above}{entry.name}/")


def ffhq_key(path: Path) -> tuple[str, str]:
    """Return the part of an FFHQ path that identifies the file: the folder of its size, and its name."""
    sizes = [part for part in path.parts[:-1] if part.startswith(("images", "thumbnails"))]
    return sizes[-1] if sizes else "", path.name


class Source(ABC):
    """Named pictures in a fixed order."""

    name: str
    licence: str | None = None

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """One name per picture."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when the pictures change; cheap to compute."""

    @abstractmethod
    def read(self, index: int, resolution: int, resize_filter: FilterName = "auto") -> Picture:
        """Picture `index`, squared and resized.

        Raises:
            BadImageError: the file is damaged or no picture.
        """

    def identities(self) -> list[str] | None:
        """The person on each picture, where known."""
        return None

    def unread(self) -> list[str]:
        """Names of what a person may take for pictures of this source, and is left out."""
        return []


class DrawnFaces(Source):
    """`num_images` faces drawn by our own code from a seed: no download, no person, no licence.

    Args:
        num_images: how many.
        seed: picture i is drawn from seed * 1,000,003 + i.
    """

    def __init__(self, num_images: int, seed: int = 0) -> None:
        if num_images < 2:
            raise UserError(f"data.num_images={num_images} is too few: training and validation need at least 2")
        self.num_images, self.seed = num_images, seed
        self.name = f"synthetic-{num_images}" + (f"-seed{seed}" if seed else "")

    @property
    def names(self) -> list[str]:
        return [f"drawn-{index:06d}" for index in range(self.num_images)]

    @property
    def fingerprint(self) -> str:
        return f"drawn faces, num_images={self.num_images}, seed={self.seed}"

    def read(self, index: int, resolution: int, resize_filter: FilterName = "auto") -> Picture:
        pixels = draw_face(self.seed * 1_000_003 + index, resolution)  # drawn at this size: nothing is resized
        return Picture(pixels.transpose(2, 0, 1), False, digest(pixels.tobytes()))


class TakenAlong(Source):
    """The pictures of a pack whose photos are elsewhere, as on a cluster that got only the pack.

    Args:
        pack: the pack.
    """

    def __init__(self, pack: Pack) -> None:
        self.name = pack.manifest["source"]["name"]
        self.pack = pack

    @property
    def names(self) -> list[str]:
        return self.pack.manifest["names"]

    @property
    def fingerprint(self) -> str:
        return self.pack.manifest["source"]["fingerprint"]

    def read(self, index: int, resolution: int, resize_filter: FilterName = "auto") -> Picture:
        raise BadImageError(f"{self.names[index]} is not here, only the pack {self.pack.folder}")


class Photos(Source):
    """The pictures of a folder (and all folders in it) or of a .zip.

    Args:
        root: the folder or .zip.
        licence: what the manifest says of the pictures' terms.
    """

    def __init__(self, root: str | Path, licence: str | None = None) -> None:
        self.root, self.licence = Path(root).expanduser(), licence
        self.name = self.root.resolve().name.removesuffix(".zip")
        self.archive: zipfile.ZipFile | None = None
        if self.root.is_file():
            try:
                self.archive = zipfile.ZipFile(self.root)
            except zipfile.BadZipFile:
                raise UserError(f"{self.root} {self.what_it_is()}") from None

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes of each picture, by its name."""
        if self.archive is not None:
            for member in self.archive.infolist():
                if problem := zip_threat(member, self.is_picture(member.filename)):
                    raise UserError(f"{member.filename} in {self.root} {problem}: remove it, or make the .zip anew")
            members = [i for i in self.archive.infolist() if not i.is_dir() and self.is_picture(i.filename)]
            found = {i.filename: i.file_size for i in members}
        else:
            found = {name: size for name, size in files_in(self.root) if self.is_picture(name)}
        if not found:
            raise UserError(f"data.root={self.root} holds no pictures ({', '.join(SUFFIXES)}), {self.what_there_is()}")
        kinds = [kind for kind in FFHQ_FOLDERS if any(kind in Path(name).parts for name in found)]
        if len(kinds) > 1:
            raise UserError(
                f"data.root={self.root} holds the same faces as {' and '.join(kinds)}, which would be learned from and "
                f"tested on: give one of them, as {kinds[0]} alone"
            )
        return dict(sorted(found.items(), key=lambda item: (natural_key(item[0]), item[0])))

    @staticmethod
    def is_picture(name: str) -> bool:
        """Whether the name is a picture's; macOS's hidden copies (._photo.jpg) are not."""
        return name.lower().endswith(SUFFIXES) and not Photos.is_hidden(name)

    @staticmethod
    def is_hidden(name: str) -> bool:
        """Whether macOS, or a person, keeps it out of sight."""
        return any(part.startswith((".", "__MACOSX")) for part in name.split("/") if part != ".")

    def what_it_is(self) -> str:
        """In words, what a file is that is no .zip, and the remedy."""
        if self.is_picture(self.root.name):
            return "is one photo: point data.root at a folder or .zip of photos"
        if self.root.suffix.lower() != ".zip":
            return "is neither a folder nor a .zip: unpack or convert it, and point data.root at the folder of photos"
        size = self.root.stat().st_size
        return f"is not a whole .zip ({size:,} bytes): fetch it again, or point data.root at a folder of photos"

    def unread(self) -> list[str]:
        """Names of photos in formats that nothing here reads."""
        return sorted(n for n in self.all_names() if n.lower().endswith(UNREAD) and not self.is_hidden(n))

    def all_names(self) -> list[str]:
        """Names of all files in the folder or .zip, pictures or not."""
        if self.archive is not None:
            return [name for name in self.archive.namelist() if not name.endswith("/")]
        return [name for name, _ in files_in(self.root)]

    def what_there_is(self) -> str:
        """In words, what a folder or .zip without pictures holds."""
        names = self.all_names()
        if not names:
            return "nor anything else: give a folder or .zip of photos"
        packed = next((name for name in names if name.lower().endswith(".zip")), None)
        if packed is not None and self.archive is None:
            return f"but {packed}: type data.root={self.root / packed}"
        if unread := self.unread():
            return f"but {len(unread):,} that are not read, as {unread[0]}: convert them to JPEG"
        return f"but {len(names):,} other files, as {min(names)}: give the folder that has the photos"

    @cached_property
    def names(self) -> list[str]:
        return list(self.sizes)

    @property
    def fingerprint(self) -> str:
        people = self.identity_csv()
        listing = "\n".join(f"{name} {size}" for name, size in self.sizes.items()) + (people[1] if people else "")
        return hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()  # of names that are no UTF-8

    def file_bytes(self, name: str) -> bytes:
        """The bytes of one file in the folder or .zip."""
        if self.archive is None:
            with (self.root / name).open("rb", buffering=0) as file:
                return file.read()
        if self.archive.getinfo(name).file_size > MAX_FILE_BYTES:
            raise UserError(f"{name} in {self.root} unpacks to over {MAX_FILE_BYTES:,} bytes: remove it")
        return self.archive.read(name)

    def read(self, index: int, resolution: int, resize_filter: FilterName = "auto") -> Picture:
        name = self.names[index]
        try:
            return decode(self.file_bytes(name), resolution, resize_filter)
        except (zipfile.BadZipFile, zlib.error) as error:  # the checksum of a member, most often
            size = f"{self.root.stat().st_size:,} bytes"
            raise BadImageError(
                f"{self.root / name} cannot be read ({error}); fetch the .zip ({size}) again"
            ) from error
        except UnidentifiedImageError as error:
            raise BadImageError(f"{self.root / name} cannot be read (no picture by its bytes)") from error
        except Exception as error:  # Pillow has a dozen ways to say that a file is damaged
            raise BadImageError(f"{self.root / name} cannot be read ({error})") from error

    def checksums(self) -> dict[str, str]:
        """MD5 of pictures by name, from FFHQ's ffhq-dataset-v2.json beside `root` or in it, where there is one."""
        path = next((p for p in (self.root / FFHQ_JSON, self.root.parent / FFHQ_JSON) if p.is_file()), None)
        if path is None:
            return {}
        try:
            files = [entry[kind] for entry in json.loads(path.read_text()).values() for kind in ("image", "thumbnail")]
            listed = {ffhq_key(Path(file["file_path"])): file["file_md5"] for file in files}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({type(error).__name__}): fetch it again, or remove it") from error
        keys = {name: ffhq_key(Path(self.root.name) / name) for name in self.names}
        return {name: listed[key] for name, key in keys.items() if key in listed}

    def identity_csv(self) -> tuple[Path, str] | None:
        """Folder and text of the identity.csv beside the first picture, or above all folders, where there is one."""
        for folder in dict.fromkeys((Path(self.names[0]).parent, Path())):
            path = (folder / "identity.csv").as_posix()
            try:
                return folder, self.file_bytes(path).decode("utf-8-sig")  # spreadsheets put a mark at the beginning
            except (KeyError, FileNotFoundError):
                continue
            except UnicodeDecodeError:
                raise UserError(f"{path} in {self.root} is not in UTF-8: save it so, or take it away") from None
        return None

    def identities(self) -> list[str] | None:
        """From an identity.csv (columns name, identity; names as seen from there), where there is one."""
        found = self.identity_csv()
        if found is None:
            return None
        (folder, text), listing = found, "identity.csv"
        rows = csv.DictReader(io.StringIO(text))
        if not {"name", "identity"} <= set(rows.fieldnames or ()):
            raise UserError(f"{listing} in {self.root} needs the columns name and identity, not {rows.fieldnames}")
        people = {(folder / row["name"]).as_posix(): row["identity"] for row in rows}
        missing = [name for name in self.names if name not in people]
        if missing:
            raise UserError(f"{listing} in {self.root} does not name {missing[0]}: complete it, or take it away")
        return [people[name] for name in self.names]
