"""Time to load photos: from a pack, and with a torchvision ImageFolder as CompVis, DiT and diffusers load them.

    python benchmarks/data.py PHOTOS [--resolution 256] [--seconds 4]

PHOTOS is a folder whose only subfolder is called photos and contains the images. Without it, faces of 512 pixels are
drawn. torch has one thread, the variants take turns for five rounds, and the disk cache is warm. The table has medians,
minimum and maximum of:

- loading: wall microseconds per image in the training process. Two more threads read the next batch of a pack.
- packing: CPU microseconds per image over all threads, against a loop that opens, converts and resizes with Pillow.
- waiting: fraction of the wall time of a training of a small VAE at 64 pixels.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from about import about
from PIL import Image
from timing import spread
from torch import Tensor
from torchvision import datasets, transforms

from latentfaces.autoencoder import VAE
from latentfaces.data.datamodule import FFHQDataModule
from latentfaces.data.datasets import ImageBatch
from latentfaces.data.prefetch import Prefetched
from latentfaces.data.sources import Photos
from latentfaces.data.synthetic import draw_face

BATCH = 64


def write_photos(folder: Path, count: int, names: int, side: int = 512) -> None:
    """Write drawn faces as JPEGs of quality 95, with camera noise, so that they decode as slowly as photos.

    There are `names` files of `count` different images, so that an epoch is long enough.
    """
    (folder / "photos").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        face = draw_face(index, side // 4).repeat(4, 0).repeat(4, 1)
        grainy = (face + rng.normal(0, 6, face.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(grainy).save(folder / "photos" / f"{index:05d}.jpg", quality=95)
    for index in range(count, names):
        (folder / "photos" / f"{index:05d}.jpg").hardlink_to(folder / "photos" / f"{index % count:05d}.jpg")


def peers(folder: Path, resolution: int) -> Iterator[Tensor]:
    """Yield float batches of the usual chain without end."""
    chain = transforms.Compose(
        [
            transforms.Resize(resolution),
            transforms.CenterCrop(resolution),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    dataset = datasets.ImageFolder(str(folder), chain)
    while True:
        for images, _ in torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, drop_last=True):
            yield images


def ours(data: FFHQDataModule, as_float: bool) -> Iterator[ImageBatch | Tensor]:
    """Yield batches of the data module without end, as moved to the device or as the training step takes them."""
    while True:
        for batch in data.train_dataloader():
            yield data.on_after_batch_transfer(batch, 0) if as_float else batch


def cost(batches: Iterator[ImageBatch | Tensor], seconds: float) -> float:
    """Return microseconds per image."""
    next(batches)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        batch = next(batches)
        count += len(batch.images if isinstance(batch, ImageBatch) else batch)
    return (time.perf_counter() - started) / count * 1e6


def pil_loop(folder: Path, resolution: int, count: int) -> float:
    """Return CPU microseconds per image of a plain loop that opens, converts and resizes into an array."""
    names = sorted((folder / "photos").iterdir())[:count]
    packed = np.empty((len(names), 3, resolution, resolution), np.uint8)
    started = time.process_time()
    for index, name in enumerate(names):
        with Image.open(name) as image:
            small = image.convert("RGB").resize((resolution, resolution), Image.Resampling.BOX)
            packed[index] = np.asarray(small).transpose(2, 0, 1)
    return (time.process_time() - started) / len(names) * 1e6


def packing(folder: Path, resolution: int, home: Path) -> float:
    """Return CPU microseconds per image of packing, over all threads."""
    started = time.process_time()
    pack = FFHQDataModule(Photos(folder), home, resolution, BATCH).pack()
    return (time.process_time() - started) / pack.manifest["num_images"] * 1e6


def waiting_share(folder: Path, home: Path, seconds: float) -> float:
    """Return the fraction of a small model's training time at 64 pixels that is spent waiting for batches."""
    data = FFHQDataModule(Photos(folder), home, 64, 16)
    data.setup()
    vae = VAE(channels=32, multipliers=(1, 2), patch_size=2)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-4)
    loader, waited, started = data.train_dataloader(), 0.0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for batch in loader:
            asked = time.perf_counter()
            images = data.on_after_batch_transfer(batch, 0)
            waited += time.perf_counter() - asked
            reconstructions, *_ = vae(images)
            (reconstructions - images).abs().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert isinstance(loader, Prefetched)
    return (waited + loader.waited) / (time.perf_counter() - started)


def measure(folder: Path, resolution: int, seconds: float, home: Path) -> dict[str, dict[str, float]]:
    """Measure microseconds per image and the fraction of waiting, in five interleaved rounds."""
    data = FFHQDataModule(Photos(folder), home / "pack", resolution, BATCH)
    data.setup()
    variants: dict[str, Callable[[int], float]] = {
        "load: ImageFolder chain, float": lambda _: cost(peers(folder, resolution), seconds),
        "load: pack, float": lambda _: cost(ours(data, as_float=True), seconds),
        "load: pack, uint8 for the device": lambda _: cost(ours(data, as_float=False), seconds),
        "pack: PIL loop": lambda _: pil_loop(folder, resolution, 256),
        "pack: ours": lambda turn: packing(folder, resolution, home / str(turn)),
        "fraction of training spent waiting": lambda _: waiting_share(folder, home / "small", seconds),
    }
    values: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(5):
        for name, variant in variants.items():
            values[name].append(variant(turn))
    return {name: spread(rounds) for name, rounds in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="?")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        folder = arguments.photos
        if folder is None:
            folder = home / "faces"
            write_photos(folder, 512, names=2048)
        rows = measure(folder, arguments.resolution, arguments.seconds, home)
    for name, row in rows.items():
        base = rows["load: ImageFolder chain, float" if name.startswith("load") else "pack: PIL loop"]["median"]
        if name.startswith("fraction"):
            print(f"{name:34s} {row['median']:.2%} ({row['min']:.2%}-{row['max']:.2%})")
        else:
            row["ratio"] = base / row["median"]
            print(f"{name:34s} {row['median']:8.1f} us ({row['min']:.1f}-{row['max']:.1f})  {row['ratio']:6.1f}x")
    if arguments.json:
        arguments.json.write_text(json.dumps({**about(), "resolution": arguments.resolution, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
