"""Packs: who is held out, and which folders are none."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from latentfaces.data.pack import Pack, hold_out, open_pack, tuning_half
from latentfaces.data.packing import find_or_write_pack
from latentfaces.data.sources import Photos
from latentfaces.errors import UserError


def test_opening_gives_what_packing_gave(photos: Path, folder: Path) -> None:
    written = find_or_write_pack(Photos(photos), folder, 8)
    opened = open_pack(folder)
    assert opened.manifest == written.manifest
    assert np.array_equal(opened.images[:], written.images[:])


@pytest.mark.parametrize("size", [None, 0, 50, 1000])
def test_missing_or_truncated_images_are_reported_when_the_pack_is_opened(
    photos: Path, folder: Path, size: int | None
) -> None:
    find_or_write_pack(Photos(photos), folder, 8)
    if size is None:
        (folder / "images.npy").unlink()
    else:
        os.truncate(folder / "images.npy", size)  # reading a map of it would kill the process
    with pytest.raises(UserError, match=r"is not a complete pack \(images\.npy is missing or damaged\)"):
        open_pack(folder)


def test_missing_folder_is_reported_as_missing_and_not_as_damaged(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"The images of this run are not here: .*faces-8 does not exist"):
        open_pack(tmp_path / "faces-8")


def numbered(count: int, start: int = 0) -> list[str]:
    """Return names as FFHQ's."""
    return [f"images1024x1024/{i // 1000 * 1000:05d}/{i:05d}.png" for i in range(start, start + count)]


def test_every_picture_is_either_learned_from_or_held_out(tmp_path: Path) -> None:
    pack = Pack(tmp_path, {"num_images": 12, "split": {"val": hold_out(list("abcdefghijkl"), None, 5)[1]}})
    assert pack.val_indices.tolist() == [0, 5, 10]
    assert pack.train_indices.tolist() == [1, 2, 3, 4, 6, 7, 8, 9, 11]


def test_every_tenth_picture_is_held_out() -> None:
    assert hold_out(numbered(25), None, 10) == ("one image in 10", [0, 10, 20])


def test_whole_ffhq_has_its_official_split() -> None:
    for names in (numbered(70_000), [f"{i:05d}.jpg" for i in range(70_000)]):
        rule, held_out = hold_out(names, None, 10)
        assert "official" in rule
        assert held_out == list(range(60_000, 70_000))


@pytest.mark.parametrize("names", [numbered(70_000, start=1), [f"drawn-{i:06d}" for i in range(70_000)]])
def test_another_set_of_as_many_has_not(names: list[str]) -> None:
    assert hold_out(names, None, 7)[0] == "one image in 7"


def test_nobody_is_both_learned_from_and_held_out() -> None:
    people = [str(number % 13) for number in range(60)]
    rule, held_out = hold_out(numbered(60), people, 5)
    inside, outside = ({people[i] for i in range(60) if (i in held_out) is is_in} for is_in in (True, False))
    assert rule == "one identity in 5"
    assert inside == {"0", "5", "10"}  # of people sorted as numbers; sorted as text, others would be
    assert inside.isdisjoint(outside)
    assert inside | outside == set(people)


def test_no_person_is_in_both_halves_of_the_held_out_images() -> None:
    people, val = list("abcabbcaaadd"), [0, 1, 2, 3, 4, 5, 6, 7, 8]  # of a are 4, of b 3, of c 2
    half = tuning_half(val, people)
    inside, outside = ({people[i] for i in val if (i in half) is is_in} for is_in in (True, False))
    assert inside.isdisjoint(outside)
    assert len(half) in (4, 5)
    assert tuning_half([0, 3, 7], people) == [0, 7]  # one person alone
    assert tuning_half(val, None) == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("manifest", [None, '{"format": 1, "num_'])
def test_folder_that_is_no_whole_pack_is_refused_by_name(photos: Path, folder: Path, manifest: str | None) -> None:
    folder.mkdir(parents=True)
    if manifest is not None:
        (folder / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match=rf"{folder.name} is not a complete pack"):
        find_or_write_pack(Photos(photos), folder, 8)


def test_pack_of_another_format_is_refused_by_number(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="pack of format 99"):
        open_pack(folder)


def test_pack_from_before_settings_were_noted_is_refused_in_a_sentence(photos: Path, folder: Path) -> None:
    manifest = find_or_write_pack(Photos(photos), folder, 8).manifest
    old = {key: value for key, value in manifest.items() if key not in ("settings", "sha256_of_sources")}
    (folder / "manifest.json").write_text(json.dumps(old | {"format": 1}))
    with pytest.raises(UserError, match=rf"{folder.name}.*Delete"):
        find_or_write_pack(Photos(photos), folder, 8)
