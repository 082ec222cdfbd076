"""Marks: written into each format, and read back from files that may be untrusted."""

import io
import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latentfaces.evaluation import save_png
from latentfaces.marks import EDITED, GENERATED, NEWSCODES, RECIPE, Source, xmp
from latentfaces.tasks.animation import save_animation
from latentfaces.tasks.identify import read_recipe, read_source
from latentfaces.tasks.output import npz_writer

FRAMES = torch.randint(0, 255, (3, 3, 16, 16), dtype=torch.uint8)
MADE = {"run": "outputs/ldm/zoë", "task": "generate", "index": 3}
TEXT = json.dumps(MADE, ensure_ascii=False)


def marked(folder: Path, suffix: str, source: Source = GENERATED) -> Path:
    """Write a file with the recipe `MADE`."""
    path = folder / f"a{suffix}"
    if suffix == ".png":
        save_png(FRAMES[0], path, TEXT, source)
    elif suffix == ".npz":
        with npz_writer(path, (3, 16, 16, 3), TEXT) as append:
            append(FRAMES)
    else:
        save_animation(FRAMES, path, 10.0, TEXT, source)
    return path


@pytest.mark.parametrize("source", [GENERATED, EDITED])
def test_xmp_is_the_property_of_the_iptc_in_rdf(source: Source) -> None:
    packet = xmp(source)
    root = ElementTree.fromstring(packet[packet.index("?>") + 2 : packet.rindex("<?")])
    (description,) = root.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    name = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
    assert description.attrib[name] == f"http://cv.iptc.org/newscodes/digitalsourcetype/{source}"


@pytest.mark.parametrize("suffix", [".png", ".gif", ".mp4", ".npz"])
def test_each_format_has_its_source_and_its_recipe(suffix: str, tmp_path: Path) -> None:
    path = marked(tmp_path, suffix)
    assert read_source(path) == GENERATED
    assert read_recipe(path) == MADE


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="needs exiftool")
@pytest.mark.parametrize("source", [GENERATED, EDITED])
@pytest.mark.parametrize("suffix", [".png", ".gif", ".mp4"])
def test_exiftool_reads_the_source(suffix: str, source: Source, tmp_path: Path) -> None:
    path = marked(tmp_path, suffix, source)
    command = ["exiftool", "-json", "-warning", "-XMP-iptcExt:all", path]
    (found,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert found == {"SourceFile": str(path), "DigitalSourceType": NEWSCODES + source}


def test_arrays_next_to_the_images_are_plain_text(tmp_path: Path) -> None:
    with np.load(marked(tmp_path, ".npz"), allow_pickle=False) as arrays:
        assert arrays.files == ["arr_0", "xmp", RECIPE]
        assert np.array_equal(arrays["arr_0"], FRAMES.permute(0, 2, 3, 1).numpy())
        assert json.loads(str(arrays[RECIPE])) == MADE


def test_marks_of_other_programs_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    element = f"<Iptc4xmpExt:DigitalSourceType>{NEWSCODES}digitalCapture</Iptc4xmpExt:DigitalSourceType>"
    Image.new("RGB", (8, 8)).save(path, xmp=element.encode())
    assert read_source(path) == "digitalCapture"
    assert read_recipe(path) is None


def test_untrusted_files_give_no_recipe_and_run_nothing(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_itxt(RECIPE, "[" * 100_000)
    Image.new("RGB", (8, 8)).save(tmp_path / "deep.png", pnginfo=info)
    assert read_recipe(tmp_path / "deep.png") is None
    np.savez(tmp_path / "pickled.npz", xmp=np.array([print], dtype=object), latentfaces=np.array([print], dtype=object))
    large = io.BytesIO()
    np.save(large, np.array("x" * 2**20))
    with zipfile.ZipFile(tmp_path / "large.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("latentfaces.npy", large.getvalue())
    for name in ("pickled.npz", "large.npz"):
        assert read_source(tmp_path / name) is None
        assert read_recipe(tmp_path / name) is None


@pytest.mark.parametrize("damage", ["encrypted", "unknown method", "huge"])
def test_a_damaged_npz_has_no_marks(damage: str, tmp_path: Path) -> None:
    path, member = tmp_path / "a.npz", io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": (2**59,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("xmp.npy", member.getvalue())
    data = bytearray(path.read_bytes())
    for signature, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = data.find(signature) + place
        data[start] = damage == "encrypted"
        data[start + 2] = 99 if damage == "unknown method" else 0
    path.write_bytes(data)
    assert read_source(path) is None
