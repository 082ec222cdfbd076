"""Alignment of photos that are turned, scaled and pasted on noise: `python benchmarks/align.py PHOTOS [--vae RUN]`.

The landmarks that are found are compared with those found in the photo itself. PHOTOS is a folder or .zip of photos
with one face each. With a run it also compares how well its VAE reconstructs the photos before they were turned,
after, and aligned. It prints figures for benchmarks/LOG.md.
"""

import argparse
import math
import time

import numpy as np
import torch
from PIL import Image

from latentfaces.data.align import find_faces
from latentfaces.data.crops import Floats, Square, border_weight, crop, paste, points_in, warp
from latentfaces.data.images import to_float, to_uint8
from latentfaces.data.sources import Photos
from latentfaces.evaluation import kernel_distance
from latentfaces.evaluation.features import known_features
from latentfaces.pipeline import FacePipeline

SIDE = 640
"""Height and width of the background in pixels."""


def on_noise(photo: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Floats]:
    """Return a photo that is turned by up to 40 degrees, scaled and pasted on noise, and the map (2, 3) from there."""
    angle = math.radians(rng.uniform(-40, 40))
    scale = rng.uniform(0.2, 0.6) * SIDE / max(photo.size)
    linear = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]) / scale
    center = rng.uniform(0.35, 0.65, 2) * SIDE
    affine = np.column_stack([linear, np.array(photo.size) / 2 - linear @ center])
    background = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    mask = warp(Image.new("L", photo.size, 255), affine, background.size)
    background.paste(warp(photo, affine, background.size), (0, 0), mask)
    return background, affine


def psnr(image: Image.Image, other: Image.Image) -> float:
    """Return the peak signal-to-noise ratio in dB."""
    return 10 * math.log10(255**2 / max(float(np.square(np.subtract(image, other, dtype=float)).mean()), 1e-9))


def reconstruction_distance(pipeline: FacePipeline, faces: list[Image.Image]) -> float:
    """Return the kernel distance x 1000 of faces from their reconstructions."""
    features = known_features("efficientnet_lite0")
    images = torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2)
    reconstructions = to_uint8(pipeline.reconstruct(to_float(images)))
    return 1000 * kernel_distance(features(images), features(reconstructions))


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", help="folder or .zip")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--vae", help="run whose VAE reconstructs the faces")
    arguments = parser.parse_args()
    pipeline = FacePipeline.load(arguments.vae) if arguments.vae else None
    framings: dict[str, list[Image.Image]] = {"original": [], "turned": [], "aligned": []}
    source, rng = Photos(arguments.photos), np.random.default_rng(0)
    errors, unchanged, pasted = [], [], []
    missed, several, near, seconds = 0, 0, 0, 0.0
    names = source.names[:: max(1, len(source.names) // arguments.count)][: arguments.count]
    for name in names:
        photo = source.photo(name)
        turned, affine = on_noise(photo, rng)
        begin = time.process_time()
        found = find_faces(turned)
        seconds += time.process_time() - begin
        original = find_faces(photo)
        if not found or not original:
            missed += 1
            continue
        several += len(found) > 1
        marks = original[0].landmarks
        eyes = math.dist(marks[0], marks[1])
        errors.append(np.hypot(*(points_in(affine, found[0].landmarks) - marks).T) / eyes)
        if pipeline is not None:
            squares = (Square.central(*photo.size), Square.central(*turned.size), found[0].square)
            for faces, image, square in zip(framings.values(), (photo, turned, turned), squares, strict=True):
                faces.append(crop(image, square, pipeline.resolution))
        size, square = min(photo.size), original[0].square
        near += square.is_near(Square.central(*photo.size))
        aligned = crop(photo, square, size)
        again = find_faces(aligned)
        if again:
            unchanged.append(psnr(crop(aligned, again[0].square, size), aligned))
        pasted.append(psnr(paste(photo, aligned, square, border_weight(size)), photo))
    mean, worst = np.mean(errors, axis=1), np.max(errors, axis=1)
    print(f"photos {len(names)}, without a face {missed}, with several {several}")
    print(f"found within 2 % of the eye distance: mean landmark {(mean < 0.02).sum() / len(names):.1%}")
    print(f"found within 2 % of the eye distance: all five landmarks {(worst < 0.02).sum() / len(names):.1%}")
    print(f"error of the mean landmark: median {np.median(mean):.2%}, 95 % below {np.quantile(mean, 0.95):.2%}")
    print(f"error of the worst landmark: median {np.median(worst):.2%}, 95 % below {np.quantile(worst, 0.95):.2%}")
    print(f"photos that align=auto leaves as they are: {near / len(errors):.1%}")
    print(f"an aligned crop aligned again: median PSNR {np.median(unchanged):.1f} dB")
    print(f"a crop pasted back: median PSNR {np.median(pasted):.1f} dB")
    if pipeline is not None:
        rows = (f"{name} {reconstruction_distance(pipeline, faces):.1f}" for name, faces in framings.items())
        print(f"kid_effnet of reconstructions: {', '.join(rows)}")
    print(f"{1000 * seconds / len(names):.0f} ms of one core per {SIDE}x{SIDE} photo")


if __name__ == "__main__":
    main()
