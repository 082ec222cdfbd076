"""Drawn faces, and a pipeline that knows how they vary."""

from pathlib import Path

import numpy as np
import pytest
from helpers.stand_ins import drawn, fitted_pipeline, save_photo, write_pack

from latentfaces.data.pack import Pack
from latentfaces.pipeline import FacePipeline


@pytest.fixture(scope="session")
def faces() -> np.ndarray:
    """Three hundred drawn faces, (300, 3, 16, 16) uint8."""
    return drawn(300)


@pytest.fixture
def pack(faces: np.ndarray, tmp_path: Path) -> Pack:
    """A pack of them, every fifth held out."""
    return write_pack(tmp_path / "data" / "faces-16", faces, val_every=5)


@pytest.fixture(scope="session")
def pipeline(faces: np.ndarray) -> FacePipeline:
    """The best Gaussian model of the faces that are not held out."""
    return fitted_pipeline(np.delete(faces, np.s_[::5], axis=0))


@pytest.fixture
def photo(tmp_path: Path) -> str:
    """A face that is in no pack, as a file."""
    return save_photo(drawn(1, first=5000)[0], tmp_path / "me.png")
