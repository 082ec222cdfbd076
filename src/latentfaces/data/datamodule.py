"""Batches for both stages."""

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from latentfaces.bounds import Ge
from latentfaces.data.aligning import align_photos
from latentfaces.data.datasets import (
    Draws,
    FFHQDataset,
    ImageBatch,
    LatentBatch,
    LatentDataset,
    TrainBatches,
    ValBatches,
)
from latentfaces.data.images import FilterName, to_float
from latentfaces.data.kaggle import LICENCE, download_ffhq
from latentfaces.data.label_files import identities
from latentfaces.data.labels import LabelTable, read_labels
from latentfaces.data.latents import Encode, LatentCache
from latentfaces.data.pack import Pack, hold_out, open_pack
from latentfaces.data.packing import find_or_write_pack
from latentfaces.data.prefetch import Prefetched
from latentfaces.data.sources import DrawnFaces, Photos, Source
from latentfaces.errors import UserError, warn
from latentfaces.ranks import is_main_process

SIDED = re.compile("(?<![a-z])(left|right)|yaw|_roll", re.IGNORECASE)
"""Names of labels that are wrong for mirror images."""
Batches = Iterable[ImageBatch | LatentBatch]


class FFHQDataModule(LightningDataModule):
    """Images, packed once. Batches are images (stage 1) or, with an encoder, cached posteriors (stage 2).

    A batch is images (b, 3, R, R) float in [-1, 1], or moments (b, 2, c, h, w) float: mean and std. With `use_labels`
    it is moments and labels (b, L) float, NaN where missing. Images move to the device as uint8, and are mirrored and
    converted to float there.

    Args:
        source: the images.
        folder: folder of packs; this one is `folder/<source name>-<resolution>`.
        resolution: height and width in pixels.
        batch_size: items per batch and device.
        seed: seed of order and mirroring.
        horizontal_flip: mirror a random half of the training images.
        on_bad_image: "fail" or "skip"; see `find_or_write_pack`.
        val_every: one of this many images (or identities) is held out.
        num_val_images: maximum number of held-out images in a validation, evenly spaced; the test takes all.
        filter: resize filter; "auto" is the mean for integer factors, Lanczos otherwise.
        labels: labels of the images, see `label_rows`.
        label_types: kinds of labels, where they are not to be inferred.
    """

    def __init__(
        self,
        source: Source,
        folder: str | Path,
        resolution: Annotated[int, Ge(8)],
        batch_size: Annotated[int, Ge(1)],
        seed: Annotated[int, Ge(0)] = 0,
        horizontal_flip: bool = True,
        on_bad_image: Literal["fail", "skip"] = "fail",
        val_every: Annotated[int, Ge(2)] = 10,
        num_val_images: Annotated[int, Ge(1)] = 1000,
        filter: FilterName = "auto",
        labels: str | None = None,
        label_types: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.source = source
        self.folder = Path(folder) / f"{source.name}-{resolution}"
        self.resolution, self.batch_size, self.seed = resolution, batch_size, seed
        self.horizontal_flip, self.on_bad_image, self.val_every = horizontal_flip, on_bad_image, val_every
        self.num_val_images, self.filter = num_val_images, filter
        self.labels, self.label_types = labels, dict(label_types or {})
        self.label_table: LabelTable | None = None
        self.opened: Pack | None = None
        self.encoder: tuple[str, Encode] | None = None
        self.train_dataset: Dataset[Tensor]
        self.val_dataset: Dataset[Tensor]
        self.test_dataset: Dataset[Tensor]
        self.position = {"epoch": 0, "taken": 0}
        self.floats = torch.empty(0)
        self.names: list[str] = []
        self.rows = np.zeros(0, np.int64)
        """Indices in the pack of the images of the current batch."""

    @classmethod
    def from_photos(
        cls, root: str | Path, licence: str | None = None, align: bool = False, **options: Any
    ) -> "FFHQDataModule":
        """Create from a folder or .zip of photos; `options` as for the class. The pack alone is enough.

        With `align` the images are the aligned faces, which are written to a folder next to the pack.
        """
        path, resolution = Path(root).expanduser(), options["resolution"]
        name = path.resolve().name.removesuffix(".zip") + "-aligned" * align
        pack = Path(options["folder"]) / f"{name}-{resolution}"
        if str(root) and path.exists():
            source = Photos(root, licence)
            if align:
                source = align_photos(source, pack.with_name(f"{pack.name}-faces"), resolution)
                source.name = name
            return cls(source, **options)
        if pack.exists():
            if is_main_process():
                print(f"{root} does not exist: using the pack {pack} alone")
            manifest = open_pack(pack).manifest
            return cls(Source(name, manifest["names"], manifest["source"]["fingerprint"]), **options)
        raise UserError(f"data.root={root} does not exist. Give a folder or .zip of photos.")

    @classmethod
    def from_ffhq(cls, root: str | Path | None, folder: str | Path, **options: Any) -> "FFHQDataModule":
        """Create from FFHQ in `root`, by default downloaded from Kaggle once; `options` as for the class."""
        if root is None:
            root = Path(folder) / "ffhq.zip"
            if not Path(folder, f"ffhq-{options['resolution']}").exists():  # the pack alone is enough
                download_ffhq(root)
        return cls.from_photos(root, LICENCE, folder=folder, **options)

    @classmethod
    def from_drawn_faces(cls, num_images: Annotated[int, Ge(2)], **options: Any) -> "FFHQDataModule":
        """Create from synthetic faces; `options` as for the class."""
        return cls(DrawnFaces(num_images), **options)

    def use_latents(self, key: str, encode: Encode) -> None:
        """Return cached posteriors of `encode` from now on; `key` is the hash of its weights."""
        self.encoder = key, encode

    def use_labels(self, names: Sequence[str] | None = None) -> LabelTable:
        """Read the labels of these names, by default all, and print a summary. Batches of latents have them then.

        Raises:
            UserError: there are no such labels, or the file is damaged.
        """
        if self.labels is None:
            raise UserError("model.labels needs labels. Add data.labels=FILE, or data.labels=auto with data=synthetic.")
        self.label_table = read_labels(self.labels, self.source, self.pack(), names, self.label_types)
        if is_main_process():
            print(self.label_table.summary)
            sided = [label.name for label in self.label_table.labels if SIDED.search(label.name)]
            if sided and self.horizontal_flip:
                warn(f"Mirror images make {', '.join(sided)} wrong. Use data.horizontal_flip=false.")
        return self.label_table

    def pack(self) -> Pack:
        """Return the pack, which is written if there is none.

        Raises:
            UserError: the images cannot be packed, or are too few.
        """
        if self.opened is None:
            if not self.folder.exists():  # reject too few images before packing them
                names = self.source.names
                num_val = len(hold_out(names, identities(self.source), self.val_every)[1])
                self.require_batch(self.source.name, len(names) - num_val, num_val)
            self.opened = find_or_write_pack(
                self.source, self.folder, self.resolution, self.on_bad_image, self.val_every, self.filter
            )
        self.require_batch(str(self.folder), len(self.opened.train_indices), len(self.opened.val_indices))
        return self.opened

    def require_batch(self, name: str, num_train: int, num_val: int) -> None:
        """Reject fewer images than an optimizer step or a validation of all devices needs."""
        needed = self.batch_size * self.num_ranks * self.accumulate
        if num_train < needed or num_val < self.num_ranks:
            raise UserError(
                f"{name} has {num_train} training and {num_val} held-out images, but an optimizer step takes {needed} "
                "(data.batch_size x devices x trainer.accumulate_grad_batches). Add images or lower data.batch_size."
            )
        if self.num_val_images < self.num_ranks:
            raise UserError(
                f"data.num_val_images={self.num_val_images} is fewer than the {self.num_ranks} devices. Raise it."
            )

    def prepare_data(self) -> None:
        """Pack the images, on one process of each machine."""
        self.pack()

    def setup(self, stage: str | None = None) -> None:
        """Open the pack or, with an encoder, the latent cache."""
        pack = self.pack()
        held_out, self.names = pack.val_indices, pack.manifest["names"]
        num_val = min(self.num_val_images, len(held_out))
        spaced = held_out[np.linspace(0, len(held_out) - 1, num_val).round().astype(int)]
        moments = self.latents(pack) if self.encoder is not None else None
        labels = self.label_table.values if self.label_table is not None else None

        def dataset(indices: NDArray[np.int64]) -> Dataset[Tensor]:
            return FFHQDataset(pack.images, indices) if moments is None else LatentDataset(moments, indices, labels)

        self.train_dataset, self.val_dataset = dataset(pack.train_indices), dataset(spaced)
        self.test_dataset = dataset(held_out)

    def latents(self, pack: Pack) -> NDArray[np.float16]:
        """Return the complete latent cache of the encoder; each rank encodes its part of what is missing."""
        assert self.encoder is not None
        cache = LatentCache(pack, *self.encoder, mirrored=self.horizontal_flip)
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        # In the precision of the training, as the VAE was trained: on a CPU with bfloat16 several times as fast.
        with self.trainer.precision_plugin.forward_context() if self.trainer else contextlib.nullcontext():
            cache.fill(device, self.rank, self.num_ranks)
        barrier = self.trainer.strategy.barrier if self.trainer else lambda: None
        barrier()
        if self.rank == 0:
            cache.finish()
        barrier()
        return cache.open()

    @property
    def rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def num_ranks(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def accumulate(self) -> int:
        return self.trainer.accumulate_grad_batches if self.trainer else 1

    def train_dataloader(self) -> Batches:
        ranks = self.rank, self.num_ranks, self.accumulate
        num_items = len(self.train_dataset)  # type: ignore[arg-type]
        self.train_batches = TrainBatches(
            num_items, self.batch_size, self.seed, self.horizontal_flip, *ranks, **self.position
        )
        if self.trainer is not None and self.trainer.fit_loop.restarting:
            self.renumber_batches()
        return self.loader(self.train_dataset, self.train_batches)

    def renumber_batches(self) -> None:
        """Adapt the batch counts of a resumed trainer to this batch size and number of ranks."""
        assert self.trainer is not None
        progress, batches = self.trainer.fit_loop.epoch_loop.batch_progress, self.train_batches
        done, total = progress.current.processed, progress.total.processed  # type: ignore[attr-defined]
        # A checkpoint of the end of an epoch has the position of the next one.
        first = batches.first if batches.taken(batches.first) else len(batches)
        if done:
            progress.is_last_batch = first == len(batches)
        shifts = ((progress.current, first - done if done else 0), (progress.total, -(total % self.accumulate)))
        for counts, shift in shifts:
            for name in ("ready", "started", "processed", "completed"):
                setattr(counts, name, getattr(counts, name) + shift)

    def val_dataloader(self) -> Batches:
        return self.loader(self.val_dataset)

    def test_dataloader(self) -> Batches:
        return self.loader(self.test_dataset)

    def loader(self, dataset: Dataset[Tensor], batches: Sampler[Draws] | None = None) -> Batches:
        """Return a loader that prepares the next batch while the last one is used; by default of all items once."""
        num_items = len(dataset)  # type: ignore[arg-type]
        loader = DataLoader(
            dataset,
            batch_sampler=batches or ValBatches(num_items, self.batch_size, self.rank, self.num_ranks),  # type: ignore[arg-type] # a batch is two arrays
            collate_fn=lambda batch: batch,
            pin_memory=torch.cuda.is_available(),
            # A new iterator must not draw from the global generator, or a resumed run differs.
            generator=torch.Generator().manual_seed(self.seed),
        )
        return Prefetched(loader)

    def photos(self, rows: NDArray[np.int64]) -> list[str]:
        """Return the names of the images with these indices in the pack."""
        return [self.names[row] for row in rows]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        # Lightning searches a batch for tensors to move, which costs 0.2 ms a step.
        return batch if device.type == "cpu" else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(
        self, batch: ImageBatch | LatentBatch, dataloader_idx: int
    ) -> Tensor | tuple[Tensor, Tensor]:
        self.rows = batch.rows
        if isinstance(batch, LatentBatch):
            moments = batch.moments.float()
            return moments if batch.labels is None else (moments, batch.labels)
        if batch.images.device.type != "cpu":
            return to_float(batch.images, batch.mirrored)
        # On a CPU the allocation takes longer than the conversion. A step is over before the next batch is converted,
        # so that one buffer is enough. Code that keeps a batch for longer must copy it.
        if self.floats.shape != batch.images.shape:
            self.floats = torch.empty(batch.images.shape)
        return to_float(batch.images, batch.mirrored, self.floats)

    def state_dict(self) -> dict[str, int]:
        """Return the position in the data: the epoch, and how many of its images were taken."""
        assert self.trainer is not None
        if not self.train_batches.started:
            return self.position
        done = int(self.trainer.fit_loop.epoch_loop.batch_progress.current.processed)  # type: ignore[attr-defined]
        # The trainer's own count of epochs runs ahead where training ends in the middle of one.
        if done >= self.trainer.num_training_batches:
            return {"epoch": self.train_batches.epoch + 1, "taken": 0}
        return {"epoch": self.train_batches.epoch, "taken": self.train_batches.taken(done)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        # Earlier versions called it "pictures".
        self.position = {"epoch": state_dict["epoch"], "taken": state_dict.get("taken", state_dict.get("pictures", 0))}
