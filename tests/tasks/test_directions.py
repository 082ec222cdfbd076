"""Directions of a run, and faces along them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import Command, refused
from helpers.stand_ins import CPU, SIDE, PixelVAE, read, singles, skip_vae, write_pack
from torch import Tensor, nn

from latentfaces.diffusion import Conditioning, DDIMSampler, Denoiser, HeunSampler, RectifiedFlow, Sampler
from latentfaces.errors import UserError
from latentfaces.labels import Label
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks import Directions
from latentfaces.tasks.directions import Measurement

NUM_IMAGES = 40


class OneFeature(nn.Module):
    """A network with one feature, 5 times the first value of x_t plus 8 times the first label, which predicts v = 0."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_time, self.blocks = nn.Identity(), nn.ModuleList([nn.Identity()])

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        self.embed_time(t)
        self.blocks[0](5 * x_t[:, 0, 0, :1] + 8 * condition[:, :1])
        return torch.zeros_like(x_t)


@pytest.mark.parametrize("sampler", [DDIMSampler(4), HeunSampler(4)])
def test_planted_feature_is_found_at_every_time(sampler: Sampler) -> None:
    rows = torch.tensor([[0.0], [1.0]])
    conditioning = Conditioning([Label("bright", "binary")])
    denoiser = Denoiser(OneFeature(), RectifiedFlow())
    pipeline = FacePipeline(PixelVAE(), denoiser, SIDE, CPU, conditioning=conditioning, label_rows=rows)
    task = Directions(
        sampler=sampler, num_images=NUM_IMAGES, seed=3, batch_size=16, folder="", pack=None, num_components=1
    )
    found = task.found(pipeline)
    names = [(3, number) for number in range(NUM_IMAGES)]
    known = pipeline.condition(pipeline.labels_for(names))
    assert known is not None
    std = (5 * pipeline.noise(names)[:, 0, 0, 0] + 8 * known[:, 0]).std()
    assert found.names == ["pc1", "bright"]
    assert found.times.tolist() == pytest.approx([0.25, 0.5, 0.75, 1])
    assert torch.allclose(found.explained, torch.ones(2), atol=1e-4)
    assert torch.allclose(found.vectors.abs(), std.expand(2, 4, 1), rtol=1e-4)
    assert (found.vectors[1] > 0).all()  # towards those that have the label


def test_effect_of_a_direction_is_measured_and_flagged(tmp_path: Path) -> None:
    bright, dark = (np.full((3, SIDE, SIDE), level, np.uint8) for level in (220, 30))
    noise = np.random.default_rng(0).integers(0, 20, (40, 3, SIDE, SIDE), dtype=np.uint8)
    images = noise + np.stack([bright, dark] * 20)
    labels = [Label("bright", "binary"), Label("even", "binary")]
    pack = write_pack(tmp_path / "pack", images, val_every=3)
    number = torch.from_numpy(pack.train_indices)
    rows = torch.stack([number % 2 == 0, number % 4 < 2], dim=1).float()
    denoiser = Denoiser(OneFeature(), RectifiedFlow())
    pipeline = FacePipeline(skip_vae(), denoiser, SIDE, CPU, conditioning=Conditioning(labels), label_rows=rows)
    measure = Measurement(pipeline, pack)
    still = torch.from_numpy(images[1]).expand(2, 5, -1, -1, -1)
    assert measure("pc1", still).strip() == "0.00"
    brighter = still.clone()
    brighter[:, -1] = torch.from_numpy(images[0])
    moved, *rest = measure("bright", brighter).split()
    # At one of two ends, at strength 3: another image. Of 14 held-out images 7 are bright: 49 of 91 pairs are that far.
    assert float(moved) == pytest.approx(1 / 2 / 3 / (49 / 91), abs=0.02)
    assert rest[:2] == ["bright", "+100"]
    assert "!" not in rest
    assert "! another label" in measure("even", brighter)
    brighter[:, [0, -1]], brighter[:, 2] = 255, 0  # farther apart than held-out images
    assert "! another face" in measure("pc1", brighter)


def test_a_stage_1_run_has_no_directions() -> None:
    task = Directions(
        sampler=DDIMSampler(2), num_images=2, seed=0, batch_size=2, folder="", pack=None, num_components=1
    )
    with pytest.raises(UserError, match="stage 1"):
        task.found(FacePipeline(PixelVAE(), None, SIDE, CPU))


def test_commands(trained: Path, workplace: Path, sample: Command, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(trained, workplace, dirs_exist_ok=True)
    short = ["sampler=ddim", "sampler.num_steps=2"]
    sample("task=directions", *short, "num_images=6", "task.num_components=2", "output=found")
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "found/grid.png"
    assert sorted(path.name for path in Path("found").iterdir()) == ["00000.png", "00001.png", "grid.png"]
    assert read(Path("found/00000.png")).shape == (3, 8 * 18 + 2, 5 * 18 + 2)
    sample("task=directions", "task.names={pc2: smile}", "output=renamed")
    assert capsys.readouterr().out.splitlines()[-1] == "outputs/ldm/faces/directions.npz"
    assert not Path("renamed").exists()
    assert "num_images=... has no" in refused("sample.py", "task=directions", "task.names={pc1: a}", "num_images=9")

    sample("task=slide", "direction=smile", *short, "num_images=3", "seed=4", "output=row")
    sample("task=generate", *short, "num_images=1", "seed=4", "output=unchanged")
    assert np.array_equal(singles(Path("row"))[1], singles(Path("unchanged"))[0])  # strength 0
    assert Path("row/animation.gif").exists()
    sample("task=slide", "direction=smile", "image=found/00000.png", "sampler.num_steps=2", "num_images=2", "output=me")
    sample("task=remake", "image=me/00001.png", "output=again")
    assert np.array_equal(singles(Path("again")), singles(Path("me")))
    Path("outputs/ldm/faces").rename("outputs/ldm/moved")
    sample("task=remake", "image=me/00001.png", "run=moved", "output=moved")
    assert np.array_equal(singles(Path("moved")), singles(Path("me")))
    Path("outputs/ldm/moved").rename("outputs/ldm/faces")

    assert "Directions: pc1, smile." in refused("sample.py", "task=slide", "direction=pc2", "output=x")
    assert "task.range=" in refused("sample.py", "task=slide", "direction=smile", "task.range=[1]", "output=x")
    assert "direction=..." in refused("sample.py", "task=generate", "direction=smile", "output=x")
    assert "compile=true" in refused("sample.py", "task=slide", "direction=smile", "compile=true", "output=x")
    assert "num_images=2" in refused("sample.py", "task=directions", "num_images=2", "output=x")
    assert "num_steps=1" in refused("sample.py", "task=directions", "sampler.num_steps=1", "output=x")
