"""Loading photos: a torchvision ImageFolder chain, as CompVis, DiT and diffusers load, against a pack.

    python benchmarks/data.py PHOTOS [--resolution 256] [--seconds 4]

PHOTOS is a folder with one picture folder in it, or a .zip that train.py could use; drawn faces of 512 pixels without.
One process, one thread, the variants in turn, five rounds; medians with minimum and maximum. The figures are process
CPU microseconds per picture; the disk cache is warm.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets, transforms

from latentfaces.data.datamodule import FFHQDataModule
from latentfaces.data.sources import Photos
from latentfaces.data.synthetic import draw_face

BATCH = 64


def write_photos(folder: Path, count: int, side: int = 512) -> None:
    """Drawn faces as JPEGs of quality 95, with the noise of a camera, so that they decode as slowly as photos do."""
    (folder / "photos").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        face = draw_face(index, side // 4).repeat(4, 0).repeat(4, 1)
        grainy = (face + rng.normal(0, 6, face.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(grainy).save(folder / "photos" / f"{index:05d}.jpg", quality=95)


def peers(folder: Path, resolution: int) -> Iterator[Tensor]:
    """Float batches of the usual chain, endlessly."""
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


def ours(data: FFHQDataModule, as_float: bool) -> Iterator[Tensor]:
    """Batches of the data module, endlessly: as it hands them to the device, or as the training step gets them."""
    while True:
        for batch in data.train_dataloader():
            yield data.on_after_batch_transfer(batch, 0) if as_float else batch


def cost(batches: Iterator[Tensor], seconds: float) -> float:
    """CPU microseconds a picture."""
    next(batches)
    started, wall, count = time.process_time(), time.perf_counter(), 0
    while time.perf_counter() - wall < seconds:
        count += len(next(batches))
    return (time.process_time() - started) / count * 1e6


def machine() -> str:
    """The processor's name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()


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
            write_photos(folder, 512)
        data = FFHQDataModule(Photos(folder), home / "packs", arguments.resolution, BATCH)
        started = time.perf_counter()
        count = data.pack().manifest["num_images"]
        packing = time.perf_counter() - started
        data.setup()
        variants: dict[str, Callable[[], Iterator[Tensor]]] = {
            "ImageFolder chain, float": lambda: peers(folder, arguments.resolution),
            "pack, float": lambda: ours(data, as_float=True),
            "pack, uint8 for the device": lambda: ours(data, as_float=False),
        }
        costs: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(5):
            for name, variant in variants.items():
                costs[name].append(cost(variant(), arguments.seconds))
    base = median(costs["ImageFolder chain, float"])
    print(f"{count} pictures at {arguments.resolution} pixels; packed once in {packing:.1f} s; {machine()}")
    rows = {}
    for name, values in costs.items():
        rows[name] = {"median": median(values), "min": min(values), "max": max(values), "ratio": base / median(values)}
        print(
            f"{name:28s} {median(values):8.1f} us ({min(values):.1f}-{max(values):.1f})  {base / median(values):6.1f}x"
        )
    if arguments.json:
        about = {"date": datetime.now(UTC).date().isoformat(), "machine": machine(), "torch": torch.__version__}
        arguments.json.write_text(json.dumps({**about, "microseconds": rows}, indent=1))


if __name__ == "__main__":
    main()
