"""Sources of images: a folder, a .zip, drawn faces, or a pack whose images are elsewhere."""

import hashlib
import os
import re
import stat
import struct
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from decimal import Decimal
from functools import cached_property
from pathlib import Path, PurePosixPath

from PIL import Image

from latentfaces.data.images import HAS_HEIF, FilterName, Picture, decode, decode_photo, digest
from latentfaces.data.synthetic import DRAWING_VERSION, draw_face
from latentfaces.errors import UserError

FFHQ_JSON = "ffhq-dataset-v2.json"
FFHQ_FOLDERS = ("images1024x1024", "thumbnails128x128", "in-the-wild-images")
HEIF = (".heic", ".heif")
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif", *HEIF * HAS_HEIF)
SYSTEM_FOLDERS = {
    *("__macosx", "$recycle.bin", "system volume information", "lost+found", "thumbnails", "thumbs"),
    *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),  # of network storages
}
"""Folders that other programs add next to images, in lower case. Hidden ones begin with a dot."""
ALIGNMENT, FACES_CSV, CONTACT_SHEET = "alignment.json", "faces.csv", "contact_sheet.png"
"""Files next to aligned faces: settings, what was done with each face, and a picture of them."""
METADATA = ("identity.csv", FFHQ_JSON, ALIGNMENT, FACES_CSV, CONTACT_SHEET)
MAX_FILE_BYTES = 2**28
RUN, PNG_TEXT = "/.hydra/config.yaml", b"latentfaces\0"
"""End of the name of a file in each run folder, and the key of the metadata in each PNG of sample.py."""


class BadImageError(UserError):
    """A file of a source that cannot be read. The message names it."""


def natural_key(name: str) -> list[tuple[Decimal, str]]:
    """Return a sort key that puts 2.png before 10.png."""
    # Python converts at most 4,300 digits to an int.
    return [(Decimal(part), "") if part.isdecimal() else (Decimal(-1), part) for part in re.split(r"(\d+)", name)]


def member_name(member: zipfile.ZipInfo) -> str:
    """Return the name of a .zip member in UTF-8 and with slashes, where Windows may have written backslashes."""
    name = member.filename
    if not member.flag_bits & 0x800:  # macOS writes UTF-8 without this flag, and zipfile then reads code page 437
        with suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return PurePosixPath(name.replace("\\", "/")).as_posix()


def is_hidden(name: str) -> bool:
    """Return whether a file is hidden, or in a hidden folder or one of `SYSTEM_FOLDERS`."""
    *folders, file = name.split("/")
    return any(part.startswith(".") or part.lower() in SYSTEM_FOLDERS for part in folders) or file.startswith(".")


def files_in(folder: str | Path, above: str = "") -> Iterator[tuple[str, int, str]]:
    """Yield name and bytes of each file in a folder and its subfolders, and the reason to leave it out or "".

    It is ten times as fast as `Path.rglob`.
    """
    try:
        entries = list(os.scandir(folder))
    except PermissionError:
        if is_hidden(f"{above}x"):  # such as lost+found
            return
        raise
    for entry in entries:
        name = above + entry.name
        if entry.is_symlink() and not Path(entry).is_file():
            yield name, 0, "link to a folder" if Path(entry).is_dir() else "dangling link"
        elif entry.is_file():
            yield name, entry.stat().st_size, ""
        elif entry.is_dir():
            yield from files_in(entry.path, f"{name}/")


class Source:
    """Named images in a fixed order. It is used directly for a pack whose images are not on this machine.

    Args:
        name: becomes part of the pack's name.
        names: one name per image.
        fingerprint: a text that changes with the images.
    """

    licence: str | None = None

    def __init__(self, name: str, names: list[str], fingerprint: str) -> None:
        self.name, self.names, self.fingerprint = name, names, fingerprint

    def read(self, index: int, resolution: int, resize_filter: FilterName = "auto") -> Picture:
        """Return one image, cropped to a square and resized.

        Raises:
            BadImageError: the file is damaged or not an image.
        """
        raise NotImplementedError

    def left_out(self) -> list[str]:
        """Return a text for each kind of file that is left out."""
        return []


class DrawnFaces(Source):
    """Faces drawn from their index as the seed, with no download and no license."""

    def __init__(self, num_images: int) -> None:
        super().__init__(
            f"synthetic-{num_images}",
            [f"drawn-{index:06d}" for index in range(num_images)],
            f"drawn faces {DRAWING_VERSION}, num_images={num_images}, seed=0",
        )

    def read(self, index: int, resolution: int, resize_filter: FilterName = "auto") -> Picture:
        pixels = draw_face(index, resolution)  # drawn at this size, so the filter has no effect
        return Picture(pixels.transpose(2, 0, 1), False, digest(pixels.tobytes()))


class Photos(Source):
    """Images of a folder with its subfolders, or of a .zip.

    Args:
        root: the folder or .zip.
        licence: terms of the images, for the manifest.
    """

    unaligned: "Photos | None" = None
    """The photos, if these are their aligned faces."""

    def __init__(self, root: str | Path, licence: str | None = None) -> None:
        self.root, self.licence = Path(root).expanduser(), licence
        self.name = self.root.resolve().name.removesuffix(".zip")
        self.archive: zipfile.ZipFile | None = None
        self.members: dict[str, zipfile.ZipInfo] = {}
        if not self.root.is_file():
            return
        if self.is_picture(self.root.name):
            raise UserError(f"{self.root} is one image. Point data.root at a folder or .zip of images.")
        try:
            self.archive = zipfile.ZipFile(self.root)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
            if self.root.suffix.lower() != ".zip":
                raise UserError(f"{self.root} is neither a folder nor a .zip. Unpack or convert it.") from None
            size = f"{self.root.stat().st_size:,} bytes"
            raise UserError(f"{self.root} ({size}) is not a readable .zip ({error}). Fetch it again.") from error
        self.members = {member_name(member): member for member in self.archive.infolist()}

    @staticmethod
    def is_picture(name: str) -> bool:
        """Return whether a file that is not hidden has the suffix of an image."""
        return name.lower().endswith(SUFFIXES) and not is_hidden(name)

    def files(self) -> Iterator[tuple[str, int, str]]:
        """Yield name and bytes of each file, and the reason to leave it out or "".

        Raises:
            UserError: a .zip is not to be trusted.
        """
        if self.archive is None:
            yield from files_in(self.root)
            return
        for member in self.archive.infolist():
            name = member_name(member)
            # Nothing is extracted, but aligned faces get the names of their photos.
            if name.startswith("/") or ".." in name.split("/") or name[1:2] == ":":
                raise UserError(f"{member.filename} in {self.root} climbs out of its folder. Remove it from the .zip.")
            if stat.S_ISLNK(member.external_attr >> 16):
                raise UserError(f"{member.filename} in {self.root} is a link to another file. Remove it from the .zip.")
            if not member.filename.endswith(("/", "\\")):
                yield name, member.file_size, "" if member is self.members[name] else "same name as a later zip member"

    @cached_property
    def listing(self) -> tuple[dict[str, int], dict[str, list[str]]]:
        """Bytes of each image by name, and names of the files that are left out by reason."""
        files = list(self.files())
        images, others = dict[str, int](), defaultdict[str, list[str]](list)
        own = tuple(self.own_outputs(name for name, _, _ in files))
        for name, size, reason in files:
            file = PurePosixPath(name)
            if file.name in METADATA:
                continue
            is_image = name.lower().endswith(SUFFIXES)
            if is_hidden(name) or name.startswith(own):
                if is_image:
                    others["hidden or in a system folder" if is_hidden(name) else "written by latentfaces"].append(name)
            elif is_image and not reason:
                images[name] = size
            else:
                suffix = file.suffix.lower()
                kind = f"{suffix}: pip install 'latentfaces[photos]'" if suffix in HEIF else suffix or "no suffix"
                others[reason or kind].append(name)
        return dict(sorted(images.items(), key=lambda item: (natural_key(item[0]), item[0]))), others

    def own_outputs(self, names: Iterable[str]) -> Iterator[str]:
        """Yield the folders of runs and of samples, each with a slash at its end. Of samples in the root, the grid."""
        for name in names:
            if name.endswith(RUN):
                yield name.removesuffix(RUN) + "/"
            elif PurePosixPath(name).name == "grid.png":
                with suppress(BadImageError):
                    if PNG_TEXT in self.file_bytes(name):
                        yield name.removesuffix("grid.png") or name

    def left_out(self) -> list[str]:
        return [f"{len(names):,} file(s) ({why}), such as {min(names)}" for why, names in self.listing[1].items()]

    @cached_property
    def names(self) -> list[str]:  # type: ignore[override]  # read at the first use
        """Sorted names.

        Raises:
            UserError: there are no images, or the same ones in several sizes.
        """
        images, others = self.listing
        if not images:
            found = f"data.root={self.root} contains no images ({', '.join(SUFFIXES)})"
            if self.archive is None and ".zip" in others:
                raise UserError(f"{found}. Use data.root={self.root / min(others['.zip'])}.")
            if not others:
                raise UserError(f"{found}. Choose another folder.")
            left_out = "; ".join(self.left_out())
            raise UserError(f"{found}, but {left_out}. Convert images to JPEG, or choose another folder.")
        kinds = [kind for kind in FFHQ_FOLDERS if any(kind in Path(name).parts for name in images)]
        if len(kinds) > 1:
            both = " and ".join(kinds)
            raise UserError(f"data.root={self.root} contains the same faces in {both}. Use one of them.")
        return list(images)

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        people = self.identity_csv()
        listing = "\n".join(f"{name} {size}" for name, size in self.listing[0].items()) + (people[1] if people else "")
        return hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()  # names need not be UTF-8

    def has_file(self, name: str) -> bool:
        """Return whether the folder or .zip contains a file of any kind."""
        return name in self.members or (self.archive is None and (self.root / name).is_file())

    def file_bytes(self, name: str) -> bytes:
        """Return the bytes of one file in the folder or .zip.

        Raises:
            BadImageError: it is missing, damaged, encrypted, too large or compressed by an unsupported method.
        """
        path, member = self.root / name, self.members.get(name)
        if member is not None and member.file_size > MAX_FILE_BYTES:
            raise BadImageError(f"{path} cannot be read (unpacks to over {MAX_FILE_BYTES:,} bytes)")
        try:
            if self.archive is not None:
                return self.archive.read(member or name)
            return path.read_bytes()
        except Exception as error:  # zipfile has a dozen ways to say that a member is damaged
            is_zip = self.archive is not None
            remedy = f"; write or fetch the .zip ({self.root.stat().st_size:,} bytes) again" if is_zip else ""
            raise BadImageError(f"{path} cannot be read ({error}){remedy}") from error

    def read(self, index: int, resolution: int, resize_filter: FilterName = "auto") -> Picture:
        name = self.names[index]
        data = self.file_bytes(name)
        try:
            return decode(data, resolution, resize_filter)
        except Exception as error:  # Pillow has a dozen ways to say that a file is damaged
            raise BadImageError(f"{self.root / name} cannot be read ({error})") from error

    def photo(self, name: str) -> Image.Image:
        """Return one image of any shape, upright and in RGB.

        Raises:
            BadImageError: the file is damaged or not an image.
        """
        data = self.file_bytes(name)
        try:
            return decode_photo(data)
        except Exception as error:  # as in `read`
            raise BadImageError(f"{self.root / name} cannot be read ({error})") from error

    def identity_csv(self) -> tuple[Path, str] | None:
        """Return folder and text of the identity.csv next to the first image or in a folder above it, if any.

        Raises:
            UserError: it is elsewhere, or not in UTF-8.
        """
        for folder in Path(self.names[0]).parents:
            path = (folder / "identity.csv").as_posix()
            if self.has_file(path):
                try:
                    return folder, self.file_bytes(path).decode("utf-8-sig")  # spreadsheets put a mark at the beginning
                except UnicodeDecodeError:
                    raise UserError(f"{path} in {self.root} is not in UTF-8. Convert or remove it.") from None
        for name, _, _ in self.files():
            if PurePosixPath(name).name == "identity.csv" and not is_hidden(name):
                raise UserError(f"{name} in {self.root} is not above all images. Move it there, or remove it.")
        return None
