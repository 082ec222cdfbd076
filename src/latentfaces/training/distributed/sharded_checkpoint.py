"""Checkpoints of sharded tensors: folders that any number of ranks can read, under any strategy.

`meta.pt` has all that ranks have in common, and says which of the folders `a` and `b` has the rows, a file a rank. It
is written last, and whole, so that the checkpoint is always the old one or the new one. Nothing in it is code.
"""

import contextlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from latentfaces.errors import UserError
from latentfaces.ranks import local
from latentfaces.training.checkpoint import AtomicCheckpointIO, DiskFullError, damage_of_file, save_whole
from latentfaces.training.distributed.sharding import rows_of, sharded

META, ROWS = "meta.pt", "rows of"
SLOTS = ("a", "b")
DEEPSPEED = "checkpoint"
"""The folder that DeepSpeed makes in its own checkpoints."""


class CheckpointFiles(AtomicCheckpointIO):
    """Also goes on from a sharded checkpoint, and takes its place."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        target = Path(path)
        if not target.is_dir():
            previous = target.with_stem("last.previous")
            if target.stem == "last" and target.exists() and previous.is_dir():  # where this ended below, in between
                shutil.rmtree(previous)
            super().save_checkpoint(checkpoint, target, storage_options)
            return
        whole = target.with_name(target.name + ".whole.partial")  # the folder goes when there is what takes its place
        super().save_checkpoint(checkpoint, whole, storage_options)
        if not self.skipped:
            aside = target.with_stem(f"{target.stem}.previous")  # where resume=auto looks, if this ends in between
            if aside.is_dir():
                shutil.rmtree(aside)
            aside.unlink(missing_ok=True)
            target.rename(aside)
            whole.rename(target)
            shutil.rmtree(aside)

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        if Path(path).is_dir():
            return read_sharded(Path(path))
        return super().load_checkpoint(path, *arguments, **options)


def is_checkpoint(path: Path) -> bool:
    """Whether there is one, of one file or sharded, damaged or not: what a first save that was cut left is none."""
    return path.is_file() or (path / META).exists() or (path / DEEPSPEED).is_dir()


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, of one file or sharded; None if nothing is."""
    if not path.is_dir():
        return damage_of_file(path)
    if (path / DEEPSPEED).is_dir():  # which says nothing to hold it against
        return None
    if (problem := damage_of_file(path / META)) is not None:
        return f"{META}: {problem}"
    return next((f"{part.name}: {problem}" for part in parts_of(path) if (problem := damage_of_file(part))), None)


def write_sharded(
    checkpoint: dict[str, Any],
    folder: Path,
    rank: int,
    num_ranks: int,
    barrier: Callable[[], None],
    on_any: Callable[[bool], bool],
) -> None:
    """Write a checkpoint as a folder; all ranks do.

    Args:
        checkpoint: nested containers with sharded tensors, the same on all ranks but for these.
        folder: the target; a checkpoint of one file there is replaced.
        rank: this one.
        num_ranks: how many write.
        barrier: waits for the others.
        on_any: whether something holds on any rank.

    Raises:
        DiskFullError: there was no room for this rank's share, or, on all ranks, for another's; what was there stays.
    """
    target, folder = folder, folder.with_name(folder.name + ".sharded") if folder.is_file() else folder
    slot = SLOTS[1] if (folder / META).exists() and read_meta(folder)["slot"] == SLOTS[0] else SLOTS[0]
    barrier()  # all have looked
    if rank == 0:
        shutil.rmtree(folder / slot, ignore_errors=True)
        (folder / slot).mkdir(parents=True)
    barrier()
    rows: dict[str, Tensor] = {}
    common = without_rows(checkpoint, rows)
    full: DiskFullError | None = None
    try:
        save_whole(rows, folder / slot / f"{rank}.pt")
    except DiskFullError as error:
        full = error
    if on_any(full is not None):  # which waits for all ranks
        if rank == 0:
            drop(folder / slot)
        raise full or DiskFullError(target, "another rank has no room")
    if rank == 0:
        try:
            save_whole({"slot": slot, "num_ranks": num_ranks, "checkpoint": common}, folder / META)
        except DiskFullError:
            drop(folder / slot)
            raise
        for other in set(SLOTS) - {slot}:
            shutil.rmtree(folder / other, ignore_errors=True)
        if folder != target:
            target.unlink()
            folder.rename(target)


def drop(slot: Path) -> None:
    """Take away rows that were written in vain, and the checkpoint's folder, unless it holds the one before."""
    shutil.rmtree(slot, ignore_errors=True)
    with contextlib.suppress(OSError):
        slot.parent.rmdir()


def without_rows(node: Any, rows: dict[str, Tensor], path: str = "") -> Any:
    """The node with each sharded tensor taken out into `rows`, and its place and shape left behind."""
    if isinstance(node, DTensor):
        rows[path] = local(node.detach()).cpu()
        return {ROWS: path, "shape": list(node.shape)}
    if isinstance(node, dict):
        return {key: without_rows(value, rows, f"{path}/{key}") for key, value in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(without_rows(value, rows, f"{path}/{number}") for number, value in enumerate(node))
    return node


def read_meta(folder: Path) -> dict[str, Any]:
    """What the ranks have in common.

    Raises:
        UserError: it is damaged.
    """
    try:
        meta: dict[str, Any] = torch.load(folder / META, weights_only=True, map_location="cpu")
    except Exception as error:
        raise UserError(
            f"{folder / META} is damaged ({type(error).__name__}): go on from another checkpoint"
        ) from error
    return meta


def parts_of(folder: Path, meta: dict[str, Any] | None = None) -> list[Path]:
    """The files of the ranks' rows."""
    meta = read_meta(folder) if meta is None else meta
    return [folder / meta["slot"] / f"{rank}.pt" for rank in range(meta["num_ranks"])]


def read_sharded(folder: Path, mesh: DeviceMesh | None = None) -> dict[str, Any]:
    """A checkpoint that `write_sharded` wrote, on any number of ranks.

    Args:
        folder: the checkpoint.
        mesh: the ranks to share it out over; none for whole tensors.

    Raises:
        UserError: a file is missing or damaged.
    """
    meta = read_meta(folder)
    try:
        parts = [torch.load(file, weights_only=True, map_location="cpu", mmap=True) for file in parts_of(folder, meta)]
    except Exception as error:
        raise UserError(
            f"{folder} has lost a rank's rows ({type(error).__name__}): go on from another checkpoint"
        ) from error
    checkpoint: dict[str, Any] = with_rows(meta["checkpoint"], parts, mesh)
    return checkpoint


def with_rows(node: Any, parts: list[Mapping[str, Tensor]], mesh: DeviceMesh | None) -> Any:
    """The inverse of `without_rows`, from what all ranks wrote."""
    if isinstance(node, dict) and ROWS in node:
        tensor = torch.cat([part[node[ROWS]] for part in parts])
        if mesh is None:
            return tensor
        rows = rows_of(tensor, mesh.get_local_rank(), mesh.size()).to(mesh.device_type, copy=True)
        return sharded(rows, torch.Size(node["shape"]), mesh)
    if isinstance(node, dict):
        return {key: with_rows(value, parts, mesh) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(with_rows(value, parts, mesh) for value in node)
    return node
