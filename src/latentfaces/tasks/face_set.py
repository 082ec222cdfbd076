"""Files of task=dataset: images, labels and shards, written batch by batch so that a killed task resumes."""

import csv
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from latentfaces.data.arrays import ResumableArray
from latentfaces.errors import UserError
from latentfaces.files import append, atomic_write, read_csv, read_json
from latentfaces.tasks.identify import read_recipe
from latentfaces.tasks.output import OWN_LABELS, PictureFolder

IMAGES, LABELS, STATE = "images", "labels.csv", "set.json"


class FaceSet:
    """Set of faces on disk. set.json counts the complete batches. Files of an incomplete one are overwritten.

    Args:
        pictures: the folder.
        total: number of faces.
        names: names of the labels.
        shards: faces per .tar; None for a folder of PNGs.

    Raises:
        UserError: the folder has faces of other settings.
    """

    def __init__(self, pictures: PictureFolder, total: int, names: Sequence[str], shards: int | None) -> None:
        self.pictures, self.folder, self.total, self.shards = pictures, pictures.folder, total, shards
        self.fields = ["name", *names]
        self.features = ResumableArray(self.folder / "features.npy", total, pictures.origin)
        if not self.features.has_origin:
            raise UserError(f"output={self.folder} contains faces of other settings. Choose another folder.")
        self.features.resume()
        state = {"faces": 0, "next": 0, "copies": 0, "twins": 0} | read_json(self.folder / STATE)
        self.next, self.copies, self.twins = state["next"], state["copies"], state["twins"]
        rows = read_csv(self.folder / LABELS)[: state["faces"]] if state["faces"] else []
        self.names = [row["name"] for row in rows]
        with atomic_write(self.folder / LABELS) as file:
            file.write(self.as_csv([{field: field for field in self.fields}, *rows]).encode())
        self.write_shards(0)

    @property
    def known(self) -> Tensor:
        """Features (n, d) of the faces so far."""
        return torch.from_numpy(self.features.read()[: len(self.names)]) if self.names else torch.empty(0)

    def as_csv(self, rows: Sequence[Mapping[str, str]]) -> str:
        """Return rows of labels.csv."""
        lines = io.StringIO()
        csv.DictWriter(lines, self.fields, lineterminator="\n").writerows(rows)
        return lines.getvalue()

    def add(
        self,
        faces: Tensor,
        features: Tensor,
        labels: Sequence[Mapping[str, float | str]],
        new: list[int],
        copies: int,
        recipe: Mapping[str, Any],
    ) -> None:
        """Write those of the next samples that are new.

        Args:
            faces: samples (n, 3, R, R) uint8.
            features: their features (n, d).
            labels: known labels of each.
            new: indices of those that belong to the set.
            copies: number of copies of training images.
            recipe: metadata of all of them.
        """
        before, rows = len(self.names), []
        for i in new:
            name = f"{self.next + i:06d}.png"
            own: dict[str, Any] = {OWN_LABELS: labels[i]} if labels[i] else {}
            self.pictures.write(faces[i], f"{IMAGES}/{name}", index=self.next + i, **recipe, **own)
            cells = {key: value if isinstance(value, str) else f"{value:g}" for key, value in labels[i].items()}
            rows.append({"name": name, **cells})
        if rows:
            self.features.write(before, features[new].numpy())
            append(self.folder / LABELS, self.as_csv(rows))
        self.names += [row["name"] for row in rows]
        self.next += len(faces)
        self.copies += copies
        self.twins += len(faces) - len(new) - copies
        state = {"faces": len(self.names), "next": self.next, "copies": self.copies, "twins": self.twins}
        with atomic_write(self.folder / STATE) as file:
            file.write(json.dumps(state).encode())
        self.write_shards(before)

    def write_shards(self, first: int) -> None:
        """Move the images from number `first` on into shards, as far as these are complete."""
        if self.shards is None:
            return
        for start in range(first // self.shards * self.shards, len(self.names), self.shards):
            names = self.names[start : start + self.shards]
            if len(names) < self.shards and len(self.names) < self.total:
                return
            path = self.folder / f"{start // self.shards:06d}.tar"
            if not path.exists():
                with atomic_write(path) as file, tarfile.open(fileobj=file, mode="w") as archive:
                    for name in names:
                        image = self.folder / IMAGES / name
                        labels = (read_recipe(image) or {}).get(OWN_LABELS, {})
                        add_file(archive, name, image.read_bytes())
                        add_file(archive, name.replace(".png", ".json"), json.dumps(labels).encode())
            for name in names:
                (self.folder / IMAGES / name).unlink(missing_ok=True)

    def finish(self) -> None:
        """Remove what resuming needs."""
        for path in self.folder.glob("*features.*"):
            path.unlink()
        if self.shards is not None and (self.folder / IMAGES).exists():
            (self.folder / IMAGES).rmdir()


def add_file(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file to an archive, without its time and owner, so that bytes repeat."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))
