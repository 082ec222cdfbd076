"""Content Credentials: signed by a certificate of the user's, and read back."""

import sys
from pathlib import Path

import pytest
import torch
from helpers.certificates import write_pair

from latentfaces.errors import UserError
from latentfaces.evaluation import save_png
from latentfaces.export.credentials import Credentials, read_credentials
from latentfaces.marks import EDITED, GENERATED
from latentfaces.tasks.animation import save_animation
from latentfaces.tasks.identify import identify, read_recipe, read_source

FACES = torch.randint(0, 255, (2, 3, 16, 16), dtype=torch.uint8)


@pytest.fixture
def face(tmp_path: Path) -> Path:
    save_png(FACES[0], tmp_path / "face.png", '{"task": "edit"}', EDITED)
    return tmp_path / "face.png"


@pytest.fixture
def credentials(tmp_path: Path) -> Credentials:
    return Credentials(*write_pair(tmp_path))


def test_a_signed_image_names_its_signer_and_keeps_its_other_marks(face: Path, credentials: Credentials) -> None:
    size = face.stat().st_size
    credentials.sign(face, EDITED)
    assert read_credentials(face).startswith("Valid, signed by signer, latentfaces tests; signingCredential.untrusted")
    assert (read_source(face), read_recipe(face)) == (EDITED, {"task": "edit"})
    assert face.stat().st_size < size + 8192  # no thumbnail


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_animations_are_signed_too(suffix: str, credentials: Credentials, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    save_animation(FACES, path, 10.0)
    credentials.sign(path, GENERATED)
    assert read_credentials(path).startswith("Valid")
    assert read_source(path) == GENERATED


def test_a_changed_pixel_is_noticed(face: Path, credentials: Credentials) -> None:
    credentials.sign(face, EDITED)
    data = bytearray(face.read_bytes())
    data[data.index(b"IDAT") + 20] ^= 1
    face.write_bytes(data)
    assert read_credentials(face).startswith("Invalid")
    assert "dataHash.mismatch" in read_credentials(face)


def test_files_that_cannot_sign_are_refused_by_key(face: Path, tmp_path: Path) -> None:
    chain, key = write_pair(tmp_path)
    with pytest.raises(UserError, match=r"gone.pem cannot be read"):
        Credentials(tmp_path / "gone.pem", key)
    with pytest.raises(UserError, match=r"mark_key=.*chain.pem is not a private key"):
        Credentials(chain, chain)
    with pytest.raises(UserError, match=r"cannot sign|Check mark_certificate"):
        Credentials(key, key).sign(face, EDITED)
    chain, key = write_pair(tmp_path, days=-1)
    with pytest.raises(UserError, match=r"face.png cannot be signed .* Check mark_certificate"):
        Credentials(chain, key).sign(face, EDITED)
    assert read_credentials(face) == "none"


def test_identify_lists_the_marks(face: Path, credentials: Credentials) -> None:
    assert identify(str(face)) == [f"source type: {EDITED}", 'recipe: {"task": "edit"}', "c2pa: none"]
    credentials.sign(face, EDITED)
    assert identify(str(face))[2].startswith("c2pa: Valid, signed by signer")
    (face.parent / "empty.png").touch()
    for image, clue in ((None, "Give image=FILE"), ("gone.png", "gone.png"), (face.parent / "empty.png", "empty")):
        with pytest.raises(UserError, match=clue):
            identify(image and str(image))


def test_a_missing_extra_is_one_line(face: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(UserError, match=r"pip install 'latentfaces\[c2pa\]'"):
        Credentials("chain.pem", "key.pem")
    assert "pip install 'latentfaces[c2pa]'" in identify(str(face))[2]
