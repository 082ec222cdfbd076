"""A source's pictures -> a pack, on all cores; a killed packing goes on where it was."""

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.progress import track

from latentfaces.data.images import FilterName
from latentfaces.data.pack import FORMAT, Pack, hold_out, open_pack
from latentfaces.data.rows import open_rows
from latentfaces.data.sources import BadImageError, Source
from latentfaces.errors import UserError
from latentfaces.files import file_lock, require_space

MAX_SKIPPED = 0.01
HOW = {
    True: "upright, largest centred square; JPEGs decoded at 1/2, 1/4 or 1/8 where that leaves enough pixels; "
    "the mean for whole factors, Lanczos otherwise",
    False: "upright, largest centred square, decoded in full and resized with the filter",
}
AT_ONCE = 16  # pictures: to hand over each by itself costs as much as a hundredth of the work
PENDING, WRITTEN, ENLARGED = range(3)  # what is known of a picture while packing


def find_or_write_pack(
    source: Source,
    folder: Path,
    resolution: int,
    on_bad_image: Literal["fail", "skip"] = "fail",
    val_every: int = 10,
    resize_filter: FilterName = "auto",
) -> Pack:
    """The pack of `source` in `folder`, made now if it is not there yet.

    Args:
        source: the pictures.
        folder: where the pack lies; it must be this source's.
        resolution: height and width in pixels.
        on_bad_image: stop at a damaged picture, or leave it out (at most 1 % of all) and list it in the manifest.
        val_every: one picture (or person) of so many is held out for validation.
        resize_filter: how pictures are made smaller (see `images.center_square`).

    Raises:
        UserError: the pack there is another source's, or was made with other settings; or it cannot be made.
    """
    if not folder.exists():
        packing = Packing(source, folder, resolution, on_bad_image, val_every, resize_filter)
        packing.check_space()  # what is refused is refused before anything is written
        with file_lock(folder):
            if not folder.exists():  # not by another process meanwhile
                return packing.run()
    pack = open_pack(folder)
    if pack.manifest["source"]["fingerprint"] != source.fingerprint:
        raise UserError(
            f"{folder} was packed from {pack.manifest['source']['name']} as it was then, which is not what "
            f"{source.name} is now: delete that folder to pack again"
        )
    wanted = {"resolution": resolution, "val_every": val_every, "filter": resize_filter}
    for key, value in wanted.items():
        if pack.manifest["settings"][key] != value:
            raise UserError(
                f"{folder} was packed with data.{key}={pack.manifest['settings'][key]}, not {value}: "
                f"delete that folder to pack again, or leave data.{key} as it was"
            )
    return pack


class Packing:
    """A pack in the making; arguments as `find_or_write_pack`.

    Nothing bears the final name before it is whole: pictures go into `folder.partial`, beside a byte per picture that
    says what became of it. A run that finds such a folder of the same source and settings goes on with what is pending.
    """

    def __init__(
        self,
        source: Source,
        folder: Path,
        resolution: int,
        on_bad_image: str,
        val_every: int,
        resize_filter: FilterName,
    ) -> None:
        self.source, self.folder, self.resolution = source, folder, resolution
        self.on_bad_image, self.resize_filter = on_bad_image, resize_filter
        self.settings = {"resolution": resolution, "val_every": val_every, "filter": resize_filter}
        self.names = source.names
        self.partial = folder.with_name(folder.name + ".partial")
        self.faults: dict[int, str] = {}

    def run(self) -> Pack:
        """Read, square and resize what is pending; write the manifest; give the folder its name."""
        if unread := self.source.unread():
            print(f"{len(unread)} files, as {unread[0]}, are in formats that are not read, and are left out")
        self.open_arrays()
        pending = np.flatnonzero(np.asarray(self.state) == PENDING).tolist()
        some = [pending[first : first + AT_ONCE] for first in range(0, len(pending), AT_ONCE)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                done = pool.map(self.convert_some, some)
                for _ in track(done, f"Packing {len(self.names):,} pictures of {self.source.name}", total=len(some)):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return self.finish()

    @cached_property
    def token(self) -> str:
        """What the arrays are of."""
        return json.dumps({"format": FORMAT, "fingerprint": self.source.fingerprint, **self.settings})

    @property
    def marker(self) -> Path:
        """The file that has the token, once there are arrays."""
        return self.partial / "packing.json"

    @property
    def is_begun(self) -> bool:
        """Whether a packing of the same pictures was cut."""
        return self.marker.exists() and self.marker.read_text() == self.token

    def check_space(self) -> None:
        """Refuse a disk that is too small for the arrays, unless they are there."""
        if not self.is_begun:
            num_bytes = len(self.names) * 3 * self.resolution**2
            remedy = "make room, or lower data.resolution"
            require_space(self.folder, num_bytes, f"packing {self.source.name}", remedy)

    def open_arrays(self) -> None:
        """Map the arrays: those of a packing that was cut, where it was of the same pictures, or new ones."""
        if not self.is_begun:
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir(parents=True)
            shape = (len(self.names), 3, self.resolution, self.resolution)
            np.lib.format.open_memmap(self.partial / "images.npy", mode="w+", dtype=np.uint8, shape=shape).flush()
            for name, dtype in (("state.npy", "u1"), ("sha256.npy", "S32")):
                array = np.lib.format.open_memmap(self.partial / name, mode="w+", dtype=dtype, shape=shape[:1])
                array.flush()
            self.marker.write_text(self.token)  # last: from here on the folder can be gone on with
        self.images: Any = np.load(self.partial / "images.npy", mmap_mode="r+")
        # To write into a map of it would cost four times as much.
        self.rows = open_rows(self.partial / "images.npy", writable=True)
        self.state: Any = np.load(self.partial / "state.npy", mmap_mode="r+")
        self.digests: Any = np.load(self.partial / "sha256.npy", mmap_mode="r+")

    def convert_some(self, indices: list[int]) -> None:
        """Pack a few pictures."""
        for index in indices:
            self.convert(index)

    def convert(self, index: int) -> None:
        """Pack one picture."""
        try:
            picture = self.source.read(index, self.resolution, self.resize_filter)
        except BadImageError as error:
            self.leave_out(index, error)
            return
        self.rows[index] = picture.pixels
        self.digests[index] = picture.sha256
        self.state[index] = ENLARGED if picture.enlarged else WRITTEN  # last: a kill before it packs this one again

    def leave_out(self, index: int, error: BadImageError) -> None:
        """Skip a damaged picture, if that was asked for and is still rare."""
        if self.on_bad_image == "fail":
            remedy = "repair or remove it, or leave such files out with data.on_bad_image=skip"
            raise UserError(f"{error}: {remedy}") from error
        self.faults[index] = str(error)
        if len(self.faults) > max(1, MAX_SKIPPED * len(self.names)):
            raise UserError(
                f"{len(self.faults)} of {len(self.names)} pictures cannot be read, more than on_bad_image=skip leaves "
                f"out; the last: {error}"
            ) from error

    def finish(self) -> Pack:
        """The manifest, and the final name."""
        self.images.flush()
        state = np.asarray(self.state)
        kept = np.flatnonzero(state != PENDING).tolist()
        if self.faults:
            self.close_gaps(kept)
        # From here on a kill means packing anew: the arrays no longer fit the notes on what is pending.
        self.marker.unlink()
        if self.faults:
            (self.partial / "kept.npy").replace(self.partial / "images.npy")
        people = self.source.identities()
        val_every = int(self.settings["val_every"])
        names = [self.names[i] for i in kept]
        rule, val = hold_out(names, [people[i] for i in kept] if people else None, val_every)
        if self.faults:
            where = self.folder / "manifest.json"
            print(f"{len(self.faults)} of {len(state)} pictures cannot be read: left out, and listed in {where}")
        num_enlarged = int((state == ENLARGED).sum())
        if num_enlarged:
            print(f"{num_enlarged} of {len(kept)} pictures are smaller than {self.resolution} pixels: enlarged")
        manifest = {
            "format": FORMAT,
            "source": {
                "name": self.source.name,
                "fingerprint": self.source.fingerprint,
                "licence": self.source.licence,
            },
            "settings": self.settings,
            "resolution": self.resolution,
            "num_images": len(kept),
            "how": HOW[self.resize_filter == "auto"],
            "sha256": file_sha256(self.partial / "images.npy"),
            "split": {"rule": rule, "val": val},
            "enlarged": num_enlarged,
            "skipped": [self.faults[index] for index in sorted(self.faults)],
            "names": names,
            "sha256_of_sources": [self.digests[index].decode() for index in kept],
            "written_by": f"latentfaces {version('latentfaces')}",
        }
        (self.partial / "manifest.json").write_text(json.dumps(manifest, indent=1))
        for leftover in ("state.npy", "sha256.npy"):
            (self.partial / leftover).unlink()
        self.partial.replace(self.folder)
        return Pack(self.folder, manifest)

    def close_gaps(self, kept: list[int]) -> None:
        """Copy what is kept into kept.npy, a few pictures at a time: the whole may not fit into memory."""
        shape = (len(kept), *self.images.shape[1:])
        closed = np.lib.format.open_memmap(self.partial / "kept.npy", mode="w+", dtype=np.uint8, shape=shape)
        for start in range(0, len(kept), 1024):
            closed[start : start + 1024] = self.images[kept[start : start + 1024]]
        closed.flush()


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
