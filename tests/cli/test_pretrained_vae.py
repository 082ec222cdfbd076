"""Stage 2 with a pretrained VAE: `vae=taesd:FOLDER`."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import SHORT, TINY_LDM, refused, run_command
from helpers.photo_files import photos, tree, write_folder
from helpers.pretrained_files import write_compvis, write_diffusers, write_taesd
from helpers.states import assert_equal, checkpoint

from latentfaces.data import open_pack
from latentfaces.report.run_page import differences
from latentfaces.run import find_run

DATA = ["data=folder", "data.root=photos", "data.resolution=16", "data.val_every=4"]
COMMAND = [*TINY_LDM, *SHORT, *DATA, "vae=taesd:weights"]


@pytest.fixture
def files(workplace: Path) -> Path:
    """A workplace with photos and the weights of a VAE."""
    write_folder(workplace / "photos", photos([f"{n}.png" for n in range(32)]))
    write_taesd(workplace / "weights", latent_channels=16)
    return workplace


def test_no_other_run_is_needed(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    constant = ["model.lr_schedule.decay_share=0"]
    run_command("train.py", *COMMAND, *constant, "name=straight", "trainer.max_steps=6")
    assert "taesd:weights reconstructs held-out images with " in capsys.readouterr().out
    run_command("train.py", *COMMAND, *constant, "name=faces")
    run = find_run("faces", "ldm")
    assert {"source": "taesd:weights", "licence": "MIT"}.items() <= run.config["model"]["autoencoder"].items()
    assert ("model.autoencoder.licence", "MIT", "") in differences(run.folder, run.config)  # in report.html
    assert (run.folder / "images" / "vae.png").exists()

    shutil.rmtree("weights")  # the run has a copy
    run_command("train.py", *COMMAND, *constant, "name=faces", "trainer.max_steps=6", "resume=auto")
    assert "reconstructs held-out" not in capsys.readouterr().out.rpartition("Resuming from")[2]
    straight, resumed = checkpoint("ldm/straight"), checkpoint("ldm/faces")
    assert_equal(straight["state_dict"], resumed["state_dict"], "weights")
    run_command("sample.py", "run=faces", "num_images=2", "output=samples")
    assert len(list(Path("samples").glob("0*.png"))) == 2

    (cache,) = Path("data/photos-16").glob("latents-*.npy")  # of all three trainings
    vae = run.module("autoencoder", "best_vae")
    latents = np.load(cache)[open_pack(Path("data/photos-16")).train_indices, 0, 0]
    normalized = vae.normalize(torch.from_numpy(latents).float()).transpose(0, 1).flatten(1)
    torch.testing.assert_close(normalized.mean(1), torch.zeros(16), rtol=0, atol=1e-3)
    torch.testing.assert_close(normalized.std(1, correction=0), torch.ones(16), rtol=0, atol=1e-3)


@pytest.mark.parametrize("vae", ["diffusers:weights#vae", "ldm:weights/model.ckpt"])
def test_a_vae_of_diffusers_is_kept_in_the_run(files: Path, vae: str) -> None:
    pytest.importorskip("diffusers")
    write_diffusers(files / "weights" / "vae", "tiny")
    write_compvis(files / "weights" / "model.ckpt")
    run_command("train.py", *COMMAND, f"vae={vae}", "name=faces")
    run_command("latentfaces-budget", "model=ldm", *DATA, "data.resolution=32", f"vae={vae}")
    shutil.rmtree("weights")
    run_command("train.py", *COMMAND, f"vae={vae}", "name=faces", "trainer.max_steps=6", "resume=auto")
    run_command("sample.py", "run=faces", "num_images=2", "output=samples")
    assert len(list(Path("samples").glob("0*.png"))) == 2


def test_a_kill_while_latents_are_encoded_leaves_a_run_to_resume(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: object) -> None:
        raise MemoryError

    monkeypatch.setattr("latentfaces.data.latents.LatentCache.finish", interrupt)
    with pytest.raises(SystemExit):
        run_command("train.py", *COMMAND, "name=faces")
    monkeypatch.undo()
    monkeypatch.chdir(files)
    run_command("train.py", *COMMAND, "name=faces", "resume=auto")
    assert find_run("faces", "ldm").module("autoencoder", "best_vae").measured


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["vae=taesd:photos"], "photos must have one VAE of the taesd family"),
        (["vae=taesd:nowhere"], "nowhere must have one VAE of the taesd family"),
        (["data=from_vae"], "vae=taesd:weights has no images. Add data=folder data.root=IMAGES"),
        (["model.denoiser.network.channels=4"], "but the latents of this VAE have 16 channels"),
        (["data.resolution=20"], "data.resolution=20 is no multiple of the VAE's factor 8"),
        (["+model.autoencoder.skip_connections=true"], "skip_connections has no effect on a trained VAE"),
        (["model/autoencoder=skip_f8"], "model/autoencoder has no effect"),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(files: Path, overrides: list[str], said: str) -> None:
    before = tree(files)
    command = COMMAND if overrides[0] != "data=from_vae" else [*TINY_LDM, *SHORT, "vae=taesd:weights"]
    message = refused("train.py", *command, "name=faces", *overrides)
    assert said in message
    assert message.count("\n") == 1
    assert tree(files) == before


def test_reconstructions_that_are_not_finite_are_rejected(files: Path) -> None:
    path = files / "weights" / "tiny_decoder.pth"
    state = torch.load(path, weights_only=True)
    state["1.weight"].fill_(torch.nan)
    torch.save(state, path)
    assert "reconstructs images of this data as NaN or Inf" in refused("train.py", *COMMAND, "name=faces")
    assert not (files / "outputs").exists()


def test_the_cost_is_counted(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_command("latentfaces-budget", "model=ldm", *DATA, "data.resolution=32", "vae=taesd:weights")
    assert "latents of 4x4x16" in capsys.readouterr().out
