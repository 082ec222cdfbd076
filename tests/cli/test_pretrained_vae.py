"""Pretrained VAEs: in stage 2 by `vae=taesd:FOLDER`, fine-tuned in stage 1 by `init=taesd:FOLDER`."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import ADVERSARIAL, SHORT, TINY_LDM, refused, run_command
from helpers.photo_files import photos, tree, write_folder
from helpers.pretrained_files import write_compvis, write_diffusers, write_taesd
from helpers.states import assert_equal, checkpoint, rows_of

from latentfaces.autoencoder import load_pretrained
from latentfaces.data import open_pack, to_float
from latentfaces.report import write_report
from latentfaces.run import build, find_run

DATA = ["data=folder", "data.root=photos", "data.resolution=16", "data.val_every=4"]
CONSTANT = "model.lr_schedule.decay_share=0"
TUNED = ["model=vae", *SHORT, *DATA, "data.batch_size=8", CONSTANT, "init=taesd:weights", "name=tuned"]
COMMAND = [*TINY_LDM, *SHORT, *DATA, "vae=taesd:weights"]


@pytest.fixture
def files(workplace: Path) -> Path:
    """A workplace with photos and the weights of a VAE."""
    write_folder(workplace / "photos", photos([f"{n}.png" for n in range(32)]))
    write_taesd(workplace / "weights", latent_channels=16)
    return workplace


def test_no_other_run_is_needed(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_command("train.py", *COMMAND, CONSTANT, "name=straight", "trainer.max_steps=6")
    assert "taesd:weights reconstructs held-out images with " in capsys.readouterr().out
    run_command("train.py", *COMMAND, CONSTANT, "name=faces")
    run = find_run("faces", "ldm")
    assert {"source": "taesd:weights", "licence": "MIT"}.items() <= run.config["model"]["autoencoder"].items()
    write_report(run.folder)
    assert "licence: MIT" in (run.folder / "report.html").read_text()
    assert (run.folder / "images" / "vae.png").exists()

    shutil.rmtree("weights")  # the run has a copy
    run_command("train.py", *COMMAND, CONSTANT, "name=faces", "trainer.max_steps=6", "resume=auto")
    assert "reconstructs held-out" not in capsys.readouterr().out.rpartition("Resuming from")[2]
    straight, resumed = checkpoint("ldm/straight"), checkpoint("ldm/faces")
    assert_equal(straight["state_dict"], resumed["state_dict"], "weights")
    assert not any(name.startswith("autoencoder.") for name in straight["state_dict"])  # it is in best_vae.pth
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
        (["vae=taesd:nowhere"], "there is no folder nowhere"),
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


def test_a_decoder_is_fine_tuned_and_used_without_the_files(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, original = load_pretrained("taesd:weights")
    only = [*TUNED, "trainable=decoder"]
    run_command("train.py", *only, "name=straight", "trainer.max_steps=6")
    assert "taesd:weights reconstructs held-out images with " in capsys.readouterr().out
    run_command("train.py", *only)
    shutil.rmtree("weights")
    run_command("train.py", *only, "trainer.max_steps=6", "resume=auto")
    assert_equal(checkpoint("vae/tuned")["state_dict"], checkpoint("vae/straight")["state_dict"])
    assert not any("train/kl" in row for row in rows_of("vae/tuned"))  # its latents have no variance

    run = find_run("tuned", "vae")
    vae, pack = run.module("autoencoder", "best_vae"), open_pack(Path("data/photos-16"))
    assert_equal(vae.encoder.state_dict(), original.encoder.state_dict())
    changed = [
        not torch.equal(a, b) for a, b in zip(vae.decoder.parameters(), original.decoder.parameters(), strict=True)
    ]
    assert all(changed)
    latents = vae.encode(to_float(torch.from_numpy(pack.images[pack.val_indices]))).mean
    torch.testing.assert_close(vae.latent_mean.flatten(), latents.mean((0, 2, 3)), rtol=0.02, atol=1e-3)
    torch.testing.assert_close(vae.latent_std.flatten(), latents.std((0, 2, 3), correction=0), rtol=0.02, atol=1e-3)
    source = {"source": "taesd:weights", "licence": "MIT"}
    assert source.items() <= run.config["model"]["autoencoder"].items()

    run_command("train.py", *TINY_LDM, *SHORT, "vae=tuned", "name=faces")
    assert source.items() <= find_run("faces", "ldm").config["model"]["autoencoder"].items()
    assert_equal(find_run("faces", "ldm").module("autoencoder", "best_vae").state_dict(), vae.state_dict())
    run_command("sample.py", "run=outputs/vae/tuned", "task=reconstruct", "num_images=2", "output=reconstructed")
    assert len(list(Path("reconstructed").glob("0*.png"))) == 2


def test_all_losses_fine_tune_a_vae_of_diffusers(files: Path, squeezenet: Path) -> None:
    pytest.importorskip("diffusers")
    original = write_diffusers(files / "weights" / "vae")
    losses = [*ADVERSARIAL, f"model.loss.perceptual.weights={squeezenet}", "model.loss.equivariance_weight=0.25"]
    losses += ["model.kl_weight.end=1e-4", "model.kl_weight.num_steps=1"]
    run_command("train.py", *TUNED, *losses, "init=diffusers:weights/vae")
    rows = rows_of("vae/tuned")
    for term in ("reconstruction", "perceptual", "kl", "equivariance", "adversarial"):
        values = [float(row[f"train/{term}"]) for row in rows if row.get(f"train/{term}")]
        assert values, term
        assert all(map(np.isfinite, values)), term
    run = find_run("tuned", "vae")
    vae = run.module("autoencoder", "best_vae")
    before, after = original.state_dict(), vae.model.state_dict()
    unchanged = [name for name in before if torch.equal(before[name], after[name])]
    assert not unchanged
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    posterior = vae.encode(images)
    for half, given, expected in (
        ("encoder", images, torch.cat([posterior.mean, posterior.logvar], dim=1)),
        ("decoder", posterior.mean, vae.decode(posterior.mean)),
    ):
        network = getattr(build(run.config["model"]["autoencoder"]), half)
        network.load_state_dict(torch.load(run.folder / f"checkpoints/best_{half}.pth", weights_only=True))
        torch.testing.assert_close(network(given), expected)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["init=taesd:photos"], "photos must have one VAE of the taesd family"),
        (["init=ldm:nowhere.ckpt"], "nowhere.ckpt does not exist"),
        (["init=diffusers:photos"], "diffusers:photos is not a VAE of diffusers"),
        (["model.autoencoder.skip_connections=true"], "model.autoencoder.skip_connections has no effect with init="),
        (["model/autoencoder=skip_f8"], "model/autoencoder has no effect with init=taesd:weights"),
        (["model.kl_weight.end=1e-4"], "model.kl_weight.end has no effect with init=taesd:weights"),
        (["trainable=last"], "Use trainable=decoder or =all"),
        (["data.resolution=20"], "data.resolution=20 is no multiple of the VAE's factor 8"),
        (["model=ldm", "trainable=all"], "Use vae=taesd:weights with model=ldm"),
    ],
)
def test_mistakes_of_fine_tuning_are_one_line(files: Path, overrides: list[str], said: str) -> None:
    if "diffusers" in overrides[0] or "ldm:" in overrides[0]:
        pytest.importorskip("diffusers")
    before = tree(files)
    command = [*(part for part in TUNED if not overrides[0].startswith("model=") or part != "model=vae")]
    command = [part for part in command if part != CONSTANT] if "model=ldm" in overrides else command
    message = refused("train.py", *command, *overrides)
    assert said in message
    assert message.count("\n") == 1
    assert tree(files) == before


def test_a_broken_decoder_is_rejected_before_it_is_tuned(files: Path) -> None:
    path = files / "weights" / "tiny_decoder.pth"
    torch.save({name: value * torch.nan for name, value in torch.load(path, weights_only=True).items()}, path)
    assert "taesd:weights reconstructs images of this data as NaN or Inf" in refused("train.py", *TUNED)
    assert not (files / "outputs").exists()


def test_the_cost_of_fine_tuning_is_counted(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("diffusers")
    write_diffusers(files / "weights" / "vae")
    run_command("latentfaces-budget", "model=vae", *DATA, "init=diffusers:weights/vae")
    assert "Parameters: encoder 0.5 M, decoder 0.8 M." in capsys.readouterr().out
