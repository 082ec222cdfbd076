"""Pack the images of a source on all cores. A packing that was killed is resumed."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import Image
from rich.progress import track
from rich.text import Text

from latentfaces.data.arrays import ResumableArray
from latentfaces.data.images import FilterName
from latentfaces.data.label_files import identities
from latentfaces.data.pack import FORMAT, Pack, hold_out, open_pack, tuning_half
from latentfaces.data.sources import BadImageError, Photos, Source
from latentfaces.data.verify import changed_files, file_sha256
from latentfaces.errors import UserError
from latentfaces.files import atomic_write, file_lock, require_space

T = TypeVar("T")

MAX_SKIPPED = 0.01
HOW = (
    "upright, ICC profiles converted to sRGB, largest centered square; filter=auto: JPEGs decoded at 1/2, 1/4 or 1/8 "
    "where that leaves enough pixels, mean for integer factors, Lanczos otherwise"
)
AT_ONCE = 16  # images per task of the pool: one task per image costs 1 % of the time
NUM_COMPARED = 32
"""Files to compare with an existing pack, evenly spaced."""

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
    """Return the pack of `source` in `folder`, which is written if there is none.

    Args:
        source: the images.
        folder: the folder of the pack.
        resolution: height and width in pixels.
        on_bad_image: "fail" at a damaged image, or "skip" it (at most 1 % of all) and list it in the manifest.
        val_every: one of this many images (or identities) is held out for validation.
        resize_filter: see `images.center_square`.

    Raises:
        UserError: the pack is of other images or settings, or it cannot be written.
    """
    settings = {"resolution": resolution, "val_every": val_every, "filter": resize_filter}
    if not folder.exists():
        packing = Packing(source, folder, settings, on_bad_image)
        if not packing.array.is_begun:  # before anything is written
            num_bytes, remedy = len(source.names) * 3 * resolution**2, "make room, or lower data.resolution"
            require_space(folder, num_bytes, f"packing {source.name}", remedy)
        with file_lock(folder):
            if not folder.exists():  # another process may have written it meanwhile
                return packing.run()
    pack = open_pack(folder)
    difference = ""
    if pack.manifest["source"]["fingerprint"] != source.fingerprint:
        difference = "its list of files has changed"
    elif isinstance(source, Photos):
        difference = next(changed_files(source, pack.files[:: -(-len(pack.images) // NUM_COMPARED)]), "")
    if difference:
        raise UserError(
            f"{folder} was packed from other images than those in {source.name} now ({difference}). For another folder "
            "of this name use data.folder=OTHER. If the images have changed, delete the pack."
        )
    licence = pack.manifest["source"].get("licence")
    if source.licence not in (None, licence):
        manifest = folder / "manifest.json"
        raise UserError(f"{folder} was packed with licence={licence}, not {source.licence}. Correct it in {manifest}.")
    for key, value in settings.items():
        if pack.manifest["settings"][key] != value:
            raise UserError(
                f"{folder} was packed with data.{key}={pack.manifest['settings'][key]}, not {value}. "
                f"Delete that folder to pack again, or leave data.{key} as it was."
            )
    return pack


class Packing:
    """A pack that is being written.

    Until it is complete, it is in `<folder>.partial`, with one record per image. A later run of the same source and
    settings resumes it.

    Args:
        source, folder, on_bad_image: see `find_or_write_pack`.
        settings: the other arguments of `find_or_write_pack`.
    """

    def __init__(self, source: Source, folder: Path, settings: dict[str, Any], on_bad_image: str) -> None:
        self.source, self.folder, self.settings, self.on_bad_image = source, folder, settings, on_bad_image
        self.resolution: int = settings["resolution"]
        self.names, self.people = source.names, identities(source)
        self.partial = folder.with_name(folder.name + ".partial")
        origin = {"format": FORMAT, "fingerprint": source.fingerprint, **settings}
        self.array = ResumableArray(self.partial / "images.npy", len(self.names), origin, RECORD)
        self.faults: dict[int, str] = {}

    def run(self) -> Pack:
        """Decode and resize the pending images, then write the manifest and rename the folder."""
        for files in self.source.left_out():
            print(f"Left out of {self.source.name}: {files}")
        if not self.array.is_begun:
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir(parents=True)
            self.array.create((3, self.resolution, self.resolution), np.uint8)
        self.array.path.unlink(missing_ok=True)  # of a run that was killed while it left out images
        self.array.resume()
        pending = np.flatnonzero(~self.array.done).tolist()
        tasks = [pending[first : first + AT_ONCE] for first in range(0, len(pending), AT_ONCE)]
        for _ in in_parallel(self.convert, tasks, f"Packing {len(self.names):,} images of {self.source.name}"):
            pass
        return self.finish()

    def convert(self, indices: list[int]) -> None:
        """Pack some images. Skip damaged ones if `on_bad_image` allows it."""
        for index in indices:
            try:
                image = self.source.read(index, self.resolution, self.settings["filter"])
            except BadImageError as error:
                if self.on_bad_image == "fail":
                    remedy = "repair or remove it, or skip such files (data.on_bad_image=skip, or --on-bad-image skip)"
                    raise UserError(f"{error}: {remedy}") from error
                self.faults[index] = str(error)
                if len(self.faults) > max(1, MAX_SKIPPED * len(self.names)):
                    raise UserError(
                        f"{len(self.faults)} of {len(self.names)} images cannot be read, more than on_bad_image=skip "
                        f"leaves out; the last: {error}"
                    ) from error
            else:
                record = (image.sha256, ENLARGED if image.enlarged else WRITTEN)
                self.array.write(index, image.pixels[None], np.array([record], RECORD))

    def finish(self) -> Pack:
        """Write the manifest and rename the folder."""
        kept = np.flatnonzero(self.array.done).tolist()
        if not kept:
            raise UserError(f"No image of {self.source.name} can be read, for example: {min(self.faults.values())}")
        records = self.array.records[kept]
        hashes = [sha256.decode() for sha256 in records["sha256"].tolist()]
        names = [self.names[i] for i in kept]
        people = [self.people[i] for i in kept] if self.people else None
        rule, val = hold_out(names, people, self.settings["val_every"])
        num_enlarged = int((records["state"] == ENLARGED).sum())
        if self.faults:
            self.close_gaps(kept)
            where = self.folder / "manifest.json"
            print(f"{len(self.faults)} of {len(self.names)} images cannot be read: left out, and listed in {where}")
        if num_enlarged:
            print(f"{num_enlarged} of {len(kept)} images are smaller than {self.resolution} pixels: enlarged")
        report_copies(names, hashes, val)
        manifest = {
            "format": FORMAT,
            "source": {name: getattr(self.source, name) for name in ("name", "fingerprint", "licence")},
            "settings": self.settings,
            "resolution": self.resolution,
            "num_images": len(kept),
            "how": HOW,
            "sha256": file_sha256(self.array.path if self.faults else self.array.partial),
            "split": {"rule": rule, "val": val, "tuning": tuning_half(val, people)},
            "enlarged": num_enlarged,
            "skipped": [self.faults[index] for index in sorted(self.faults)],
            "names": names,
            "sha256_of_sources": hashes,
            "written_by": f"latentfaces {version('latentfaces')}",
        }
        # Before the records are removed: a full disk then costs no image.
        with atomic_write(self.partial / "manifest.json") as file:
            file.write(json.dumps(manifest, indent=1).encode())
        self.array.finish()
        self.partial.replace(self.folder)
        return Pack(self.folder, manifest)

    def close_gaps(self, kept: list[int]) -> None:
        """Copy the rows of `kept`, some at a time since all may not fit into memory."""
        images = self.array.read()
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(kept), *images.shape[1:])}
        with atomic_write(self.array.path) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, len(kept), 1024):
                file.write(images[kept[start : start + 1024]].data)


def num_threads() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_parallel(function: Callable[[Any], T], tasks: list[Any], title: str) -> Iterator[T]:
    """Yield the results of tasks in order, from a thread on each core. An error or a signal cancels pending tasks."""
    # Pillow and rich import at first use. A signal in an import can deadlock the threads that import too.
    Image.init()
    Text.from_markup("")
    with ThreadPoolExecutor(num_threads()) as pool:
        try:
            yield from track(pool.map(function, tasks), title, total=len(tasks))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def report_copies(names: list[str], hashes: list[str], val: list[int]) -> None:
    """Print how many held-out images are copies of training images."""
    held_out = set(val)
    training = {sha256: name for i, (name, sha256) in enumerate(zip(names, hashes, strict=True)) if i not in held_out}
    copies = [i for i in val if hashes[i] in training]
    if copies:
        print(
            f"WARNING: {len(copies)} held-out images are identical to training images, such as {names[copies[0]]} and "
            f"{training[hashes[copies[0]]]}. Metrics on them are too good: remove the copies and pack again."
        )
