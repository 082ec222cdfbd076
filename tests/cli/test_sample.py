"""sample.py from the command line."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.certificates import write_pair
from helpers.commands import ROOT, SHORT, TINY_LDM, TINY_VAE, Command, refused, run_command
from PIL import Image

from latentfaces.autoencoder import Decoder, Skips
from latentfaces.diffusion import AutoGuidance, EulerSampler, NoGuidance
from latentfaces.marks import GENERATED
from latentfaces.pipeline import FacePipeline
from latentfaces.run import Run
from latentfaces.tasks.identify import read_recipe, read_source


@pytest.fixture(scope="module")
def trained(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy to write into."""
    return shutil.copytree(trained, tmp_path_factory.mktemp("copy") / "trained")


@pytest.fixture
def home(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    shutil.rmtree("pictures", ignore_errors=True)
    return trained


@pytest.fixture
def sample(home: Path) -> Command:
    return lambda *arguments: run_command("sample.py", *arguments, "sampler.num_steps=2")


def pixels(name: str) -> np.ndarray:
    return np.asarray(Image.open(Path("pictures") / name)).astype(int)


def test_identify_needs_no_run_and_mark_needs_a_certificate(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain, key = write_pair(tmp_path)
    pair = [f"mark_certificate={chain}", f"mark_key={key}"]
    run_command("sample.py", "num_images=1", "sampler.num_steps=2", "output=signed", "mark=c2pa", *pair)
    capsys.readouterr()
    run_command("sample.py", "task=identify", "image=signed/00000.png")
    source, recipe, credentials = capsys.readouterr().out.splitlines()
    assert source == f"source type: {GENERATED}"
    assert json.loads(recipe.removeprefix("recipe: "))["task"] == "generate"
    assert credentials.startswith("c2pa: Valid, signed by signer")
    for arguments, clue in {
        ("mark=c2pa",): "Give mark_certificate=CHAIN.pem",
        tuple(pair): "no effect without mark=c2pa",
        ("mark=stamp",): "mark",
        ("mark=c2pa", *pair, "task.npz=true", "output=npz"): "cannot sign an .npz",
        ("task=identify", "seed=3"): "seed=... has no effect with task=identify",
        ("task=identify",): "Give image=FILE",
    }.items():
        assert clue in refused("sample.py", *arguments)


def test_each_picture_says_what_made_it(sample: Command) -> None:
    sample("num_images=2", "seed=7", "guidance=none", "output=pictures")
    text = json.loads(Image.open("pictures/00001.png").text["latentfaces"])  # type: ignore[attr-defined]
    settings = text["settings"]
    assert (text["task"], settings["seed"], text["index"], settings["sampler"]["num_steps"]) == ("generate", 7, 1, 2)
    assert text["run"] == "outputs/ldm/faces"
    assert text["weights"] == FacePipeline.load(text["run"], guidance=NoGuidance()).weights


def test_a_row_of_faces_begins_and_ends_with_those_of_its_seeds(sample: Command) -> None:
    sample("task=interpolate", "seed=1", "task.to_seed=2", "num_images=4", "output=pictures")
    row = [pixels(f"0000{index}.png") for index in range(4)]
    shutil.rmtree("pictures")
    for seed, end in ((1, row[0]), (2, row[-1])):
        sample(f"seed={seed}", "num_images=1", "output=pictures")
        assert np.abs(pixels("00000.png") - end).max() <= 1
        shutil.rmtree("pictures")
    assert not np.array_equal(row[0], row[-1])


def test_reconstructions_of_held_out_photos_and_of_my_own(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_command("sample.py", "task=reconstruct", "num_images=3", "output=pictures")
    printed = capsys.readouterr().out
    assert "psnr" in printed
    assert "ssim" in printed
    assert len(list(Path("pictures").glob("0*.png"))) == 3
    Image.new("RGB", (40, 30), (200, 150, 120)).save("me.jpg")
    run_command("sample.py", "task=reconstruct", "image=me.jpg", "output=mine")
    assert Image.open("mine/00000.png").size == (16, 16)
    shutil.rmtree("mine")


REFUSED = {
    "a sampler where nothing is sampled": (["task=reconstruct", "sampler=euler"], "sampler"),
    "an average where the denoiser is not used": (["task=reconstruct", "ema=0.1"], "ema=... has no effect"),
    "a compiled denoiser that is not used": (["task=reconstruct", "compile=true"], "compile=... has no effect"),
    "an average of the VAE": (["run=outputs/vae/faces", "task=reconstruct", "ema=0.1"], "ema=... has no effect"),
    "a guidance that the network has no head for": (["guidance=internal"], "auxiliary_depth"),
    "a weight below none": (["guidance=auto", "guidance.weight=0.5"], "weight=0.5"),
    "a weight of no guidance": (["guidance=none", "guidance.weight=2"], "weight"),
    "an average of no width": (["ema=0.5"], "ema=0.5"),
    "a random sampler run backwards": (["task=invert", "image=me.jpg", "sampler=ddpm"], "sampler=heun"),
    "nothing to be made again": (["task=remake"], "image="),
    "an option that the metadata has": (["task=remake", "image=me.jpg", "seed=3"], "seed=... has no effect with"),
    "a photo that sample.py did not make": (["task=remake", "image=me.jpg"], "image=me.jpg"),
    "a face where none is searched": (
        ["task=edit", "image=me.jpg", "align=false", "task.face=2"],
        "task.face=... has no",
    ),
    "too few faces to judge by": (["task=tune", "num_images=3"], "num_images=3"),
}


@pytest.mark.parametrize("arguments_and_clue", REFUSED.values(), ids=REFUSED.keys())
def test_mistakes_get_one_sentence(
    arguments_and_clue: tuple[list[str], str], home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments, clue = arguments_and_clue
    Image.new("RGB", (16, 16), (200, 150, 120)).save("me.jpg")
    with pytest.raises(SystemExit) as exit_:
        run_command("sample.py", *arguments, "output=pictures")
    said = capfd.readouterr().err
    assert exit_.value.code != 0
    assert clue in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["sampler=ddpm", "guidance=auto", "guidance.weight=2", "ema=0.1"],
        ["task=interpolate", "num_images=3", "task.to_seed=4", "task.animation=none"],
    ],
    ids=["plain", "guided", "row"],
)
def test_a_picture_is_made_again_from_its_own_text(options: list[str], sample: Command) -> None:
    sample("seed=5", "num_images=3", "output=pictures", *options)
    before = pixels("00002.png")
    Path("pictures/00002.png").rename("face.png")
    shutil.rmtree("pictures")
    run_command("sample.py", "task=remake", "image=face.png", "output=pictures")
    again = "00002.png" if "task=interpolate" in options else "00000.png"
    assert np.abs(pixels(again) - before).max() <= 1  # in a batch of another size: the last bit


def test_a_tilde_is_the_home_folder_in_every_path(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    for name in ("me", "hole"):
        Image.new("RGB", (16, 16), "white").save(f"{name}.png")
    paths = ["run='~/outputs/ldm/faces'", "output='~/pictures'", "image='~/me.png'"]
    few = ["num_images=1", "sampler.num_steps=2"]
    run_command("sample.py", *paths, *few, "task=inpaint", "task.mask='~/hole.png'")
    assert (home / "pictures" / "grid.png").exists()
    assert not Path("~").exists()
    (home / "pictures" / "00000.png").rename("edit.png")
    shutil.rmtree("pictures")
    run_command("sample.py", "task=remake", "image='~/edit.png'", "output='~/pictures'")
    shutil.rmtree("pictures")
    run_command("sample.py", *paths, *few, "task=interpolate", "num_images=2", "task.to_image='~/me.png'")
    network = refused("sample.py", "task=tune", "task.features='~/nowhere.pt'", "output=pictures2")
    assert f"task.features={home}/nowhere.pt" in network


def test_names_that_are_not_utf8_are_printed(sample: Command, capsys: pytest.CaptureFixture[str]) -> None:
    sample("num_images=1", "output='caf\udce9'")
    assert capsys.readouterr().out.splitlines()[-1] == "caf\\udce9/grid.png"
    assert Path("caf\udce9/grid.png").exists()


def test_tuning_of_a_run_that_cannot_be_written_keeps_its_result(
    sample: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    tuned = Path("outputs/ldm/faces/tuned.json")
    blocker = tuned.with_name("tuned.json.partial")  # root may write anywhere, but not onto a folder
    blocker.mkdir()
    few = ["num_images=32", "task.weights=[1.5]", "task.emas=[]"]
    few += [f"~task.samplers.{name}" for name in ("fewer_steps", "dpmpp_2m", "ddpm")]
    try:
        sample("task=tune", *few, "output=pictures")
    finally:
        blocker.rmdir()
    printed = capfd.readouterr()
    result = json.loads(Path("pictures/tuned.json").read_text())
    assert f"{tuned} cannot be written" in printed.err
    assert json.dumps(result["guidance"]["_target_"]) in printed.err
    assert "best:" in printed.out
    assert Path("pictures/scores.csv").exists()
    assert not tuned.exists()


def test_guidance_and_average_change_the_faces_and_weight_one_does_not(sample: Command) -> None:
    def face(*options: str) -> np.ndarray:
        sample("num_images=1", "output=pictures", *options)
        result = pixels("00000.png")
        shutil.rmtree("pictures")
        return result

    plain = face("guidance=none")
    assert np.array_equal(face("guidance=auto", "guidance.weight=1"), plain)
    assert not np.array_equal(face("guidance=auto", "guidance.weight=500"), plain)


def test_early_denoiser_is_read_where_it_guides_and_only_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    module = Run.module
    monkeypatch.setattr(Run, "module", lambda self, node, name: seen.append(name) or module(self, node, name))
    pipeline = FacePipeline.load("outputs/ldm/faces", guidance=NoGuidance())
    pipeline.generate(1, seed=0, sampler=EulerSampler(1))
    plain = pipeline.weights
    assert seen == ["best_vae", "best_denoiser"]
    pipeline.guidance = AutoGuidance(1.5)
    assert pipeline.weights.startswith(f"{plain}-")
    assert seen == ["best_vae", "best_denoiser", "guide_denoiser"]


def test_what_tune_found_serves_later_commands(sample: Command, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["num_images=32", "task.weights=[1.5,2.0]", "task.emas=[0.05,0.1]"]
    few += ["task.samplers.fewer_steps.num_steps=3", "task.samplers.ddpm.num_steps=3"]
    sample("task=tune", *few, "output=pictures")
    printed = capsys.readouterr().out
    found = json.loads(Path("outputs/ldm/faces/tuned.json").read_text())
    scores = list(csv.DictReader(Path("pictures/scores.csv").read_text().splitlines()))
    assert float(scores[0]["distance"]) == pytest.approx(found["score"])
    assert min(float(row["distance"]) for row in scores) == pytest.approx(found["score"])
    assert {row["guidance"] for row in scores} == {"none", "auto"}
    assert {row["sampler"] for row in scores} == {"DPMpp2M 2 eta=1.0", "DPMpp2M 3 eta=1.0", "DPMpp2M 20", "DDPM 3"}
    assert scores[0]["sampler"].startswith(found["sampler"]["_target_"].split(".")[-1].removesuffix("Sampler"))
    assert "best:" in printed
    tuned = {"guidance": {"_target_": "latentfaces.diffusion.AutoGuidance", "weight": 1.5, "start": 1.0, "end": 0.0}}
    ddpm = {"_target_": "latentfaces.diffusion.DDPMSampler", "num_steps": 3, "shift": 1.0, "spacing": "auto"}
    best = found | tuned | {"ema": 0.1, "sampler": ddpm}
    Path("outputs/ldm/faces/tuned.json").write_text(json.dumps(best))
    shutil.rmtree("pictures")

    def origin(*options: str) -> dict[str, Any]:
        run_command("sample.py", "num_images=1", "output=pictures", *options)
        text: dict[str, Any] = json.loads(Image.open("pictures/00000.png").text["latentfaces"])  # type: ignore[attr-defined]
        shutil.rmtree("pictures")
        return text

    assert (origin()["guidance"]["weight"], origin()["ema"]) == (1.5, 0.1)
    run_command("sample.py", "num_images=1", "seed=3", "output=pictures")
    by_command = pixels("00000.png")
    shutil.rmtree("pictures")
    by_api = FacePipeline.load("outputs/ldm/faces").generate(1, seed=3)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(by_api, by_command)
    plain = FacePipeline.load("outputs/ldm/faces", guidance=NoGuidance())
    assert (type(plain.guidance), plain.ema) == (NoGuidance, None)  # the tuned average goes with the tuned guidance
    assert "weight" not in origin("guidance=none")["guidance"]
    assert origin("guidance=none")["ema"] is None
    assert origin("guidance=auto", "guidance.weight=3")["guidance"]["weight"] == 3
    assert origin("ema=0.05")["ema"] == 0.05
    assert origin()["settings"]["sampler"] == ddpm
    assert origin("sampler.num_steps=2")["settings"]["sampler"] == ddpm | {"num_steps": 2}
    assert origin("sampler=euler", "sampler.num_steps=2")["settings"]["sampler"]["_target_"].endswith("EulerSampler")
    assert origin("task=interpolate", "num_images=2")["settings"]["sampler"] == ddpm
    for name, colour in (("me.png", "red"), ("you.png", "blue")):
        Image.new("RGB", (16, 16), colour).save(name)
    photos = origin("task=interpolate", "num_images=2", "image=me.png", "task.to_image=you.png", "sampler.num_steps=3")
    heun = {"_target_": "latentfaces.diffusion.HeunSampler", "num_steps": 3, "shift": 1.0, "spacing": "auto"}
    assert photos["settings"]["sampler"] == heun  # which can be run backwards
    plain_guidance = {"_target_": "latentfaces.diffusion.NoGuidance"}
    assert (photos["guidance"], photos["ema"]) == (plain_guidance, None)
    for task in ("invert", "variations"):
        assert origin(f"task={task}", "image=me.png", "sampler.num_steps=2")["guidance"] == plain_guidance
    assert origin("task=invert", "image=me.png", "sampler.num_steps=2", "guidance=auto")["guidance"]["weight"] == 1.5
    with pytest.raises(SystemExit):
        origin("sampler.eta=0.5")
    assert "sampler.eta=... is not an option of DDPMSampler, the run's own sampler" in capsys.readouterr().err
    other_weights = best | {"of": "0123456789ab"}
    Path("outputs/ldm/faces/tuned.json").write_text(json.dumps(other_weights))
    assert origin()["guidance"] == origin("guidance=auto")["guidance"]  # as if nobody had tuned
    untuned = origin()
    assert untuned["ema"] is None
    usual = {"_target_": "latentfaces.diffusion.DPMpp2MSampler", "num_steps": 20, "eta": 1.0}
    assert usual.items() <= untuned["settings"]["sampler"].items()
    Path("outputs/ldm/faces/tuned.json").unlink()
    guide = Path("outputs/ldm/faces/checkpoints/guide_denoiser.pth")
    guide.rename("kept.pth")
    assert origin()["guidance"] == {"_target_": "latentfaces.diffusion.NoGuidance"}
    Path("kept.pth").rename(guide)


def test_compiled_only_when_asked(sample: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    sample("num_images=1", "output=pictures")
    assert compiled == []
    shutil.rmtree("pictures")
    sample("num_images=1", "output=pictures", "compile=true")
    assert [type(part).__name__ for part in compiled] == ["UNet", "UNet"]


def test_faces_as_one_array_are_the_faces(sample: Command) -> None:
    sample("num_images=5", "batch_size=2", "task.npz=true", "output=pictures")
    faces = np.load("pictures/images.npz")["arr_0"]
    assert (faces.shape, faces.dtype) == ((5, 16, 16, 3), np.uint8)
    array = Path("pictures/images.npz")
    recipe = read_recipe(array)
    assert read_source(array) == GENERATED
    assert recipe is not None
    assert recipe["task"] == "generate"
    assert sorted(path.name for path in Path("pictures").iterdir()) == ["grid.png", "images.npz"]
    shutil.rmtree("pictures")
    sample("num_images=5", "batch_size=2", "output=pictures")
    assert all(np.array_equal(faces[i], pixels(f"{i:05d}.png")) for i in range(5))


def test_a_photo_that_has_changed_is_noticed(sample: Command, capfd: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (16, 16), (200, 150, 120)).save("me.png")
    sample("task=edit", "image=me.png", "num_images=1", "output=pictures")
    Path("pictures/00000.png").rename("face.png")
    shutil.rmtree("pictures")
    run_command("sample.py", "task=remake", "image=face.png", "output=pictures")
    assert np.abs(pixels("00000.png") - np.asarray(Image.open("face.png")).astype(int)).max() <= 1
    for change, clue in (
        (lambda: Image.new("RGB", (16, 16)).save("me.png"), "has changed"),
        (lambda: Path("me.png").unlink(), "no longer there"),
    ):
        change()
        with pytest.raises(SystemExit):
            run_command("sample.py", "task=remake", "image=face.png", "output=again")
        assert clue in capfd.readouterr().err


def test_faces_go_on_from_a_number(sample: Command) -> None:
    sample("num_images=3", "output=pictures")
    third = pixels("00002.png")
    shutil.rmtree("pictures")
    sample("num_images=1", "task.first=2", "output=pictures")
    assert np.abs(pixels("00000.png") - third).max() <= 1


def test_vae_page_loads_a_half_of_the_vae_alone(home: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/vae.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "best_decoder" in block]
    names: dict[str, Any] = {}
    exec(block, names)
    latents = torch.randn(2, 4, 4, 4)
    assert torch.equal(names["decoder"](latents), names["vae"].decode(latents))


def test_skips_serve_photos_and_never_new_faces(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_command("train.py", *TINY_VAE, *SHORT, "model.autoencoder.skip_connections=true", "name=skips")
    run_command("sample.py", "run=outputs/vae/skips", "task=reconstruct", "num_images=3", "output=photos")
    printed = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line}
    assert {"psnr", "ssim", "psnr_with_skips", "ssim_with_skips"} <= printed
    width, height = Image.open("photos/grid.png").size
    assert width == height  # three columns of photo, reconstruction, reconstruction with skips
    run_command("train.py", *TINY_LDM, *SHORT, "name=skips")
    seen: list[object] = []
    forward = Decoder.forward

    def spy(self: Decoder, latents: torch.Tensor, skips: Skips | None = None) -> torch.Tensor:
        seen.append(skips)
        return forward(self, latents, skips)

    monkeypatch.setattr(Decoder, "forward", spy)
    for task, output in (("generate", "faces"), ("interpolate", "row")):
        run_command("sample.py", "run=skips", f"task={task}", "num_images=2", f"output={output}", "sampler.num_steps=2")
    assert seen == [None, None]
