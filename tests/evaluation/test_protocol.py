"""Rows of a protocol: their columns, and the reasons why they are not comparable with published rows."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from latentfaces.data.pack import Pack
from latentfaces.data.packing import find_or_write_pack
from latentfaces.data.sources import Photos
from latentfaces.errors import UserError
from latentfaces.evaluation.feature_cache import image_features
from latentfaces.evaluation.protocol import (
    PROTOCOLS,
    JoinedFeatures,
    Reference,
    Row,
    as_markdown,
    comparability,
    differences,
    label_groups,
    protocol_named,
    source_size,
    table,
)
from latentfaces.labels import Label
from latentfaces.ranks import Ranks

FULL = PROTOCOLS["fid50k_full"]


class Pixels:
    """Features that are every `step`-th value of an image."""

    def __init__(self, step: int) -> None:
        self.step, self.key = step, f"pixels{step}"

    def __call__(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :: self.step].float()


@cache
def ffhq(count: int = 70_000, resize_filter: str = "auto", suffix: str = "png") -> Pack:
    """A pack of the first images of FFHQ at 256 pixels, without the images."""
    held_out = list(range(60_000, count))
    manifest: dict[str, Any] = {
        "num_images": count,
        "resolution": 256,
        "names": [f"{number // 1000:02d}000/{number:05d}.{suffix}" for number in range(count)],
        "settings": {"filter": resize_filter},
        "split": {"val": held_out},
    }
    return Pack(Path("ffhq-256"), manifest)


def reasons(
    reference: Reference, num_samples: int = 50_000, features: tuple[str, ...] = FULL.features, **asked: object
) -> list[str]:
    return differences(FULL, reference, num_samples, features, asked)


def test_a_row_of_the_complete_ffhq_is_comparable() -> None:
    assert reasons(Reference(ffhq(), "all", 1024)) == []
    assert reasons(Reference(ffhq(), "all", 1024), features=("inception",)) == []
    assert differences(PROTOCOLS["fid50k_train"], Reference(ffhq(), "train", 1024), 50_000, FULL.features, {}) == []


@pytest.mark.parametrize(
    ("pack", "name", "size", "reason"),
    [
        (ffhq(52_001), "all", 1024, "images other than the 70,000 of FFHQ"),
        (ffhq(), "all", 512, "512 px source"),
        (ffhq(), "all", None, "source of unknown size"),
        (ffhq(resize_filter="lanczos"), "all", 1024, "resized by lanczos, papers at 256 px use box"),
        (ffhq(), "train", 1024, "reference train instead of all"),
        (ffhq(suffix="jpg"), "all", 1024, "images that are not PNG"),
    ],
)
def test_each_difference_of_the_real_images_is_a_reason(pack: Pack, name: Any, size: int | None, reason: str) -> None:
    found = reasons(Reference(pack, name, size))
    assert reason in found
    assert len(found) == 1 + (size is None)  # the filter of "auto" follows from the size of the source


def test_each_difference_of_the_samples_is_a_reason() -> None:
    whole = Reference(ffhq(), "all", 1024)
    assert reasons(whole, 10_000) == ["10,000 instead of 50,000 samples"]
    assert reasons(whole, features=("encoder",)) == ["features of encoder"]
    assert reasons(whole, Smiling=1) == ["samples with Smiling=1"]


def test_a_resolution_without_published_rows_is_a_reason() -> None:
    pack = ffhq(70_000, resize_filter="bicubic")
    pack.manifest.update(resolution=48)
    assert reasons(Reference(pack, "all", 1024)) == ["resized by bicubic, no paper at 48 px is known"]


@pytest.mark.parametrize(("size", "resize_filter"), [(1024, "box"), (700, "lanczos"), (256, "none"), (None, "auto")])
def test_the_filter_auto_is_named_by_what_it_did(size: int | None, resize_filter: str) -> None:
    assert Reference(ffhq(), "all", size).resize_filter == resize_filter


def test_references_are_all_images_the_training_images_and_half_of_those_held_out() -> None:
    pack = ffhq(60_010)
    assert Reference(pack, "all", 1024).indices.tolist() == list(range(60_010))
    assert Reference(pack, "train", 1024).indices.tolist() == list(range(60_000))
    assert Reference(pack, "held_out", 1024).indices.tolist() == list(range(60_001, 60_010, 2))


def test_box_and_lanczos_references_differ_and_the_row_names_the_filter(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    noise = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(noise.integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / f"images/{number:05d}.png")
    features, lines = [], []
    for chosen, named in (("auto", "box"), ("lanczos", "lanczos")):
        pack = find_or_write_pack(Photos(tmp_path / "images"), tmp_path / chosen, 16, resize_filter=chosen)  # type: ignore[arg-type]
        size = source_size({"root": tmp_path / "images"}, pack.manifest["names"])
        assert size == 64
        reference = Reference(pack, "all", size)
        features.append(image_features(Pixels(7), pack, 5, Ranks()))
        row = Row.measure("run", {"pixels": (features[-1], features[0])})
        lines.append(table([row], reference)[-1])
        assert lines[-1][:5] == ["run", "16", "12", "12 (all)", named]
    assert lines[0][5:] != lines[1][5:]
    assert not torch.equal(*features)


def test_the_size_of_sources_is_unknown_where_they_differ_or_are_gone(tmp_path: Path) -> None:
    for number, side in enumerate((20, 30)):
        Image.new("RGB", (side, 40)).save(tmp_path / f"{number}.png")
    data = {"root": tmp_path}
    assert source_size(data, ["0.png"]) == 20
    assert source_size(data, ["0.png", "1.png"]) is None
    assert source_size(data, ["2.png"]) is None
    assert source_size({"root": None, "folder": tmp_path}, ["0.png"]) is None
    assert source_size({**data, "align": True}, ["0.png"]) is None


def test_a_row_has_the_published_names_and_only_frechet_distance_of_dinov2() -> None:
    real, fake = torch.randn(2, 60, 4, generator=torch.Generator().manual_seed(0))
    row = Row.measure("faces", {"inception": (real, fake), "dinov2": (real, real + 3)})
    cells = table([row], Reference(ffhq(), "all", 1024))
    text = as_markdown({"protocol": {"name": "fid10k"}, "reasons": ["few", "small"], "table": cells})
    head, rule, line, _, state = text.splitlines()
    titles = (
        "model | px | samples | reference | filter | FID | KID | precision | recall | density | coverage | FD-DINOv2"
    )
    assert head == f"| {titles} |"
    assert head.count("|") == rule.count("|") == line.count("|")
    assert line.startswith("| faces | 256 | 60 | 60 (all) | box | ")
    assert line.endswith(" | 36 |")  # 4 means that differ by 3, and no covariance
    assert state == "fid10k: not comparable with published rows of FFHQ: few; small"
    assert comparability({"protocol": {"name": "fid10k"}, "reasons": []}) == "fid10k: comparable"
    other = table([Row.measure("faces", {"nets/own.pt": (real, fake)})], Reference(ffhq(), "all", 1024))
    assert other[0][5:7] == ["frechet distance (own)", "kernel distance (own)"]


def test_balls_of_density_and_coverage_are_those_of_the_real_images() -> None:
    real, fake = torch.arange(10.0)[:, None], torch.full((30, 1), 0.5)
    values = Row.measure("one face", {"pixels": (real, fake)}).values["pixels"]
    assert values["coverage"] == pytest.approx(0.4)  # the balls to the 5th neighbor of 0, 1, 2 and 3 contain 0.5
    assert values["density"] == 4 / 5


def test_joined_features_are_those_of_each_network() -> None:
    images = torch.randint(0, 256, (3, 3, 4, 4), dtype=torch.uint8)
    joined = JoinedFeatures([Pixels(2), Pixels(5)])
    first, second = joined(images).split([24, 10], dim=1)
    assert joined.key == "pixels2+pixels5"
    assert torch.equal(first, Pixels(2)(images))
    assert torch.equal(second, Pixels(5)(images))


def test_groups_are_the_values_with_enough_images_and_samples() -> None:
    labels = [Label("age", "number"), Label("hair", "category", choices=("dark", "blond", "red"))]
    real, asked = (
        torch.tensor([[torch.nan, n % 3] for n in range(180)]),
        torch.tensor([[30.0, n % 2] for n in range(100)]),
    )
    groups = {name: (int(ours.sum()), int(theirs.sum())) for name, ours, theirs in label_groups(labels, real, asked)}
    assert groups == {"hair=dark": (60, 50), "hair=blond": (60, 50)}


def test_an_unknown_protocol_is_an_error_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"task\.protocol=fid5k is unknown\. Choose one of fid50k_full, "):
        protocol_named("fid5k")
