"""A source's pictures -> a pack, on all cores; a killed packing goes on where it was."""

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
from rich.progress import track

from latentfaces.data.arrays import ResumableArray
from latentfaces.data.images import FilterName
from latentfaces.data.pack import FORMAT, Pack, hold_out, open_pack
from latentfaces.data.sources import BadImageError, Source
from latentfaces.errors import UserError
from latentfaces.files import atomic_write, file_lock, require_space

MAX_SKIPPED = 0.01
HOW = {
    True: "upright, ICC profiles converted to sRGB, largest centered square; JPEGs decoded at 1/2, 1/4 or 1/8 where "
    "that leaves enough pixels; mean for integer factors, Lanczos otherwise",
    False: "upright, ICC profiles converted to sRGB, largest centered square, decoded in full and resized with the "
    "filter",
}
AT_ONCE = 16  # pictures: to hand over each by itself costs as much as a hundredth of the work
WRITTEN, ENLARGED = 1, 2
RECORD = np.dtype([("sha256", "S32"), ("state", np.uint8)])
"""Record of a packed image: the hash of its file, and WRITTEN or ENLARGED."""


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
        origin = {"format": FORMAT, "fingerprint": source.fingerprint, **self.settings}
        self.array = ResumableArray(self.partial / "images.npy", len(self.names), origin, RECORD)
        self.faults: dict[int, str] = {}

    def run(self) -> Pack:
        """Read, square and resize what is pending; write the manifest; give the folder its name."""
        for files in self.source.left_out():
            print(f"Left out of {self.source.name}: {files}")
        if not self.array.is_begun:
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir(parents=True)
            self.array.create((3, self.resolution, self.resolution), np.uint8)
        self.array.resume()
        pending = np.flatnonzero(~self.array.done).tolist()
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

    def check_space(self) -> None:
        """Refuse a disk that is too small for the arrays, unless they are there."""
        if not self.array.is_begun:
            num_bytes = len(self.names) * 3 * self.resolution**2
            remedy = "make room, or lower data.resolution"
            require_space(self.folder, num_bytes, f"packing {self.source.name}", remedy)

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
        record = (picture.sha256, ENLARGED if picture.enlarged else WRITTEN)
        self.array.write(index, picture.pixels[None], np.array([record], RECORD))

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
        """Write the manifest and give the folder its name."""
        kept = np.flatnonzero(self.array.done).tolist()
        records = self.array.records[kept]
        if self.faults:
            self.close_gaps(kept)
            self.array.discard()
        else:
            self.array.finish()
        people = self.source.identities()
        val_every = int(self.settings["val_every"])
        names = [self.names[i] for i in kept]
        rule, val = hold_out(names, [people[i] for i in kept] if people else None, val_every)
        if self.faults:
            where = self.folder / "manifest.json"
            print(f"{len(self.faults)} of {len(self.names)} pictures cannot be read: left out, and listed in {where}")
        num_enlarged = int((records["state"] == ENLARGED).sum())
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
            "sha256_of_sources": [sha256.decode() for sha256 in records["sha256"].tolist()],
            "written_by": f"latentfaces {version('latentfaces')}",
        }
        (self.partial / "manifest.json").write_text(json.dumps(manifest, indent=1))
        self.partial.replace(self.folder)
        return Pack(self.folder, manifest)

    def close_gaps(self, kept: list[int]) -> None:
        """Copy the rows of `kept`, a few at a time since all may not fit into memory."""
        images = self.array.read()
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(kept), *images.shape[1:])}
        with atomic_write(self.array.path) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, len(kept), 1024):
                file.write(images[kept[start : start + 1024]].data)


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
