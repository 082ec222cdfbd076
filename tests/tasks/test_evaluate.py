"""task=evaluate: metrics of known sets, resuming after a kill, and errors."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import SHORT, TINY_LDM, many_faces, refused, run_command, trained_in
from helpers.forked import Forker
from helpers.several import run_on
from PIL import Image
from torch import Tensor, nn

from latentfaces.autoencoder import VAE
from latentfaces.data.pack import open_pack
from latentfaces.data.synthetic import known_labels
from latentfaces.diffusion import Sampler
from latentfaces.errors import UserError
from latentfaces.evaluation.feature_cache import resumed
from latentfaces.evaluation.features import EncoderFeatures, NetworkFeatures, features_by_name
from latentfaces.evaluation.protocol import METRICS, PROTOCOLS, Protocol
from latentfaces.pipeline import FacePipeline


class MeanColors(nn.Module):
    """Features: mean and std of each color."""

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.float().flatten(2) / 255
        return torch.cat([pixels.mean(2), pixels.std(2)], dim=1)


class SomePixels(nn.Module):
    """Features: every fourth pixel."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, ::4, ::4].float().flatten(1) / 255


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workplace with runs of both stages on 400 drawn faces, 100 held out, and a network of features."""
    folder = trained_in(many_faces(tmp_path_factory), [*TINY_LDM, *SHORT, "name=faces"])
    torch.jit.script(MeanColors()).save(str(folder / "colours.pt"))
    torch.jit.script(SomePixels()).save(str(folder / "pixels.pt"))
    return folder


@pytest.fixture
def home(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    shutil.rmtree("pictures", ignore_errors=True)
    return trained


@pytest.fixture(scope="module")
def labelled(trained: Path) -> Path:
    """The workplace with a run "labelled" of stage 2 that knows glasses and age."""
    rows = [f"drawn-{seed:06d},{known_labels(seed)['glasses']},{seed % 7}" for seed in range(400)]
    (trained / "labels.csv").write_text("\n".join(["name,glasses,age", *rows]))
    return trained_in(trained, [*TINY_LDM, *SHORT, "data.labels=labels.csv", "name=labelled"])


def evaluate(*options: str) -> dict[str, Any]:
    """Return the content of metrics.json."""
    few = ["run=faces", "task=evaluate", "num_images=60", "batch_size=16", "sampler.num_steps=2", "output=pictures"]
    run_command("sample.py", *few, *options)
    told: dict[str, Any] = json.loads(Path("pictures/metrics.json").read_text())
    return told


def give_photos(monkeypatch: pytest.MonkeyPatch, which: np.ndarray, mirrored: bool = False) -> None:
    """Let the pipeline "generate" images of the pack, in turn."""
    images = open_pack(next(Path("data").glob("*-16"))).images
    images = images[..., ::-1].copy() if mirrored else images

    def faces(self: FacePipeline, names: list[tuple[int, int]], sampler: object, batch_size: int) -> Tensor:
        return torch.from_numpy(images[[which[n] for _, n in names]])

    monkeypatch.setattr(FacePipeline, "faces", faces)


def test_training_photos_given_as_new_faces_are_found_out(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = open_pack(next(Path("data").glob("*-16")))
    give_photos(monkeypatch, pack.train_indices)
    told = evaluate("task.features=colours.pt")
    assert told["memorized_fraction"] == 1
    assert {path.name for path in Path("pictures").glob("memorization_*.png")} == {
        f"memorization_{n}.png" for n in (1, 2, 3)
    }
    assert abs(told["kernel_distance"]) < 0.01
    assert told["precision"] > 0.8


def test_mirrored_training_images_are_memorized_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = open_pack(next(Path("data").glob("*-16")))
    give_photos(monkeypatch, pack.train_indices, mirrored=True)
    assert evaluate("task.features=pixels.pt")["memorized_fraction"] == 1
    give_photos(monkeypatch, pack.val_indices)
    shutil.rmtree("pictures")
    assert evaluate("task.features=pixels.pt")["memorized_fraction"] < 0.1


def test_held_out_photos_given_as_new_faces_are_perfect_and_not_memorized(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = open_pack(next(Path("data").glob("*-16")))
    give_photos(monkeypatch, np.resize(pack.test_indices, 60))
    told = evaluate("task.features=colours.pt")
    assert (told["precision"], told["memorized_fraction"]) == (1.0, pytest.approx(0.01, abs=0.03))
    assert told["num_photos"] == 50


def test_one_face_again_and_again_is_duplicates(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give_photos(monkeypatch, np.zeros(60, int))
    told = evaluate("task.features=colours.pt")
    assert told["duplicates"] == 1
    assert told["training_photos"]["recall"] > 0.7  # what real photos score
    assert told["recall"] < 0.2


def test_faces_of_the_run_by_its_own_encoder(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = Path("outputs/ldm/faces/report.html")
    page.unlink(missing_ok=True)
    told = evaluate()
    assert {"frechet_distance", "kernel_distance", "precision", "recall", "memorized_fraction", "duplicates"} <= set(
        told
    )
    assert "fid" not in told  # that name is Inception's
    assert f"kernel_distance {told['kernel_distance']:.4g}" in capsys.readouterr().out
    assert list(Path("data").glob("*/features-encoder-*.npy"))
    assert not page.exists()  # pictures elsewhere say nothing on the run's own


def test_asked_labels_are_found_in_images_that_have_them(
    labelled: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = open_pack(next(Path("data").glob("*-16"))).test_indices
    glasses = torch.tensor([[float(known_labels(int(seed))["glasses"]), torch.inf] for seed in held_out])
    give_photos(monkeypatch, held_out)
    monkeypatch.setattr(FacePipeline, "labels_for", lambda self, names: glasses[: len(names)])
    few = ["run=labelled", "task=evaluate", "num_images=50", "batch_size=16", "task.features=colours.pt"]
    run_command("sample.py", *few)
    (metrics,) = Path("outputs/ldm/labelled/samples").glob("evaluate_*/metrics.json")
    result = json.loads(metrics.read_text())["labels"]
    assert set(result) == {"glasses"}
    found = result["glasses"]
    assert found["found"] == found["accuracy"]  # they are the held-out images themselves
    assert found["balanced_accuracy"] > 0.6
    with_glasses = int(glasses[:, 0].sum())
    assert found["values"]["1"]["num_images"] == found["values"]["1"]["num_photos"] == with_glasses
    assert "too few for a kernel distance" in capsys.readouterr().out
    page = Path("outputs/ldm/labelled/report.html").read_text()
    shutil.rmtree("outputs/ldm/labelled/samples")
    assert f'<td>glasses</td><td>1</td><td class="number">{with_glasses}</td>' in page


def test_labels_that_are_gone_or_have_changed_are_reported_before_sampling(
    labelled: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FacePipeline, "faces", lambda *_: pytest.fail("faces were made"))
    few = ["run=labelled", "task=evaluate", "num_images=50", "task.features=colours.pt", "output=pictures"]
    text = Path("labels.csv").read_text()
    try:
        Path("labels.csv").write_text(text.replace(",1,", ",old,").replace(",0,", ",young,"))
        assert "data.labels=labels.csv has changed since outputs/ldm/labelled" in refused("sample.py", *few)
        Path("labels.csv").unlink()
        assert "data.labels=labels.csv does not exist" in refused("sample.py", *few)
    finally:
        Path("labels.csv").write_text(text)


def test_reconstructions_of_a_run_of_stage_one(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_command("sample.py", "task=evaluate", "output=pictures", "run=outputs/vae/faces", "num_images=500")
    told = json.loads(Path("pictures/metrics.json").read_text())
    assert (told["kind"], told["num_images"]) == ("reconstructions", 50)
    assert "memorized_fraction" not in told
    assert Path("pictures/grid.png").exists()
    assert list(Path("pictures").glob("memorization_*.png")) == []


@pytest.mark.parametrize("idle", ["guidance=auto", "ema=0.1", "compile=true", "sampler=heun", "sampler.num_steps=9"])
def test_options_of_samples_are_rejected_for_a_run_of_stage_one(home: Path, idle: str) -> None:
    error = refused("sample.py", "task=evaluate", "output=pictures", "run=outputs/vae/faces", idle)
    assert f"{idle.partition('=')[0]}=... has no effect on a run of stage 1" in error
    assert not Path("pictures").exists()


def test_run_in_whose_folder_an_evaluation_lies_tells_it_on_its_own_page(home: Path) -> None:
    few = ["run=faces", "task=evaluate", "num_images=60", "batch_size=16", "sampler.num_steps=2"]
    run_command("sample.py", *few, "task.features=colours.pt")
    (metrics,) = Path("outputs/ldm/faces/samples").glob("evaluate_*/metrics.json")
    told = json.loads(metrics.read_text())
    page = Path("outputs/ldm/faces/report.html").read_text()
    shutil.rmtree("outputs/ldm/faces/samples")
    assert "<h2>Evaluation</h2>" in page
    assert told["sampling"]["sampler"] == "DPMpp2MSampler(num_steps=2, shift=auto, spacing=auto, eta=1.0)"
    assert f"sampler {told['sampling']['sampler']}, guidance" in page
    assert f"{told['kernel_distance']:.4g}" in page
    assert f"{told['training_photos']['kernel_distance']:.4g}" in page


def watch_faces(patch: pytest.MonkeyPatch, dies_after: int | None = None) -> list[int]:
    """Record the numbers of samples from now on. After `dies_after` of them, raise KeyboardInterrupt."""
    made: list[int] = []
    faces = FacePipeline.faces

    def watched(self: FacePipeline, names: list[tuple[int, int]], sampler: Sampler, batch_size: int) -> Tensor:
        if dies_after is not None and len(made) >= dies_after:
            raise KeyboardInterrupt
        made.extend(number for _, number in names)
        return faces(self, names, sampler, batch_size)

    patch.setattr(FacePipeline, "faces", watched)
    return made


def test_an_evaluation_that_was_killed_goes_on_also_to_more_faces_in_other_batches(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate("task.features=colours.pt")
    grid = Path("pictures/grid.png").read_bytes()
    shutil.rmtree("pictures")
    with monkeypatch.context() as patch:
        watch_faces(patch, dies_after=32)
        with pytest.raises((KeyboardInterrupt, RuntimeError, SystemExit)):
            evaluate("task.features=colours.pt", "num_images=50")
    with monkeypatch.context() as patch:
        made = watch_faces(patch)
        again = evaluate("task.features=colours.pt", "batch_size=7")
    assert made[:28] == list(range(32, 60))
    assert len(made) <= 28 + 8 + 8 + 32  # also the plotted ones, and those of the grid
    # Batches of another size differ by one level in a few values.
    before, after = (np.asarray(Image.open(file)).astype(int) for file in (io.BytesIO(grid), "pictures/grid.png"))
    assert np.abs(after - before).max() <= 1
    assert again.pop("training_photos") == pytest.approx(whole.pop("training_photos"))
    assert again.pop("sampling") == whole.pop("sampling")
    assert again == pytest.approx(whole, abs=1e-6)


@pytest.mark.ddp
def test_two_processes_find_together_what_one_finds(home: Path) -> None:
    Forker.warm_up()
    fork = Forker(home)
    options = ["task=evaluate", "task.features=colours.pt", "num_images=60", "batch_size=7", "sampler.num_steps=2"]
    left: dict[str, dict[str, bytes]] = {}
    for number in (1, 2):  # 9 batches of faces and 58 of photos: in the last round of faces the second has none
        for path in Path("data").glob("*/features-*"):
            path.unlink()
        shutil.rmtree("pictures", ignore_errors=True)
        if number == 1:
            assert fork.run(*options, "output=pictures", name="sample.py")[0] == 0, fork.started[-1].said
        else:
            run_on(2, fork, *options, "output=pictures", name="sample.py")
        kept = [*Path("pictures").iterdir(), *Path("data").glob("*/features-*")]
        left[str(number)] = {path.name: path.read_bytes() for path in kept}
    assert left["1"].keys() == left["2"].keys()
    assert "metrics.json" in left["1"]
    for name, content in left["1"].items():
        assert content == left["2"][name], name


def test_no_face_is_made_twice_and_features_of_photos_are_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate("task.features=colours.pt")
    shutil.rmtree("pictures")
    seen: list[int] = []
    look = NetworkFeatures.__call__

    def counted(self: NetworkFeatures, images: Tensor) -> Tensor:
        seen.append(len(images))
        return look(self, images)

    made = watch_faces(monkeypatch)
    monkeypatch.setattr(NetworkFeatures, "__call__", counted)
    evaluate("task.features=colours.pt")
    assert made[:60] == list(range(60))
    assert sum(seen) == 60


def test_features_of_other_faces_are_not_gone_on_with(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        watch_faces(patch, dies_after=16)
        with pytest.raises((KeyboardInterrupt, RuntimeError, SystemExit)):
            evaluate("task.features=colours.pt")
    with pytest.raises(SystemExit):
        evaluate("task.features=colours.pt", "seed=1")
    assert "contains features of other images. Choose another output=" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "clue"),
    [
        (["num_images=3"], "num_images=3"),
        (["task.features=nowhere.pt"], "nowhere.pt"),
        (["task.weights=file.pth"], "task.weights=file.pth"),
        (["task.features=inception"], "inception"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is_made(
    options: list[str], clue: str, home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FacePipeline, "faces", lambda *_: pytest.fail("faces were made"))
    with pytest.raises(SystemExit):
        evaluate(*options)
    said = capfd.readouterr().err
    assert clue in said
    assert "Traceback" not in said


def test_features_have_names_that_change_with_what_they_are(home: Path) -> None:
    torch.manual_seed(0)
    first, second = (VAE(2, channels=8, multipliers=(1, 2), num_blocks=1, attention=False).eval() for _ in range(2))
    assert EncoderFeatures(first).key == EncoderFeatures(first).key != EncoderFeatures(second).key
    colours = features_by_name("colours.pt", first)
    assert isinstance(colours, NetworkFeatures)
    assert colours.key.startswith("colours-")
    grey = torch.full((2, 3, 4, 4), 51, dtype=torch.uint8)
    assert torch.allclose(colours(grey), torch.tensor([0.2, 0.2, 0.2, 0, 0, 0]).expand(2, -1), atol=1e-6)
    with pytest.raises(UserError, match="no effect"):
        features_by_name("encoder", first, "file.pth")


def row(*options: str, output: str = "pictures") -> dict[str, Any]:
    """Return the content of protocol.json."""
    few = ["run=faces", "task=evaluate", "batch_size=16", "sampler.num_steps=2", f"output={output}"]
    run_command("sample.py", *few, *options)
    result: dict[str, Any] = json.loads(Path(output, "protocol.json").read_text())
    return result


def test_the_row_of_a_protocol_compares_with_all_images_and_says_why_it_is_not_comparable(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    give_photos(monkeypatch, np.arange(400))
    result = row("task.protocol=fid10k", "task.features=colours.pt", "num_images=400")
    (found,) = result["rows"]
    assert (found["name"], found["num_samples"], found["num_real"]) == ("faces", 400, 400)
    assert found["values"]["colours.pt"] == pytest.approx(
        {"frechet_distance": 0, "kernel_distance": 0, "precision": 1, "recall": 1, "density": 1, "coverage": 1},
        abs=0.01,
    )
    text = Path("pictures/row.md").read_text()
    assert text in capsys.readouterr().out
    assert "| faces | 16 | 400 | 400 (all) | auto |" in text
    for reason in ("images other than the 70,000 of FFHQ", "400 instead of 10,000 samples", "features of colours.pt"):
        assert reason in text
        assert any(reason in listed for listed in result["reasons"])
    assert not Path("pictures/metrics.json").exists()


def test_a_protocol_sets_number_images_and_networks_and_resumes_after_a_kill(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROTOCOLS, "tiny", Protocol("tiny", 60, "train", ("encoder", "colours.pt")))
    shutil.rmtree("killed", ignore_errors=True)
    whole = row("task.protocol=tiny")
    assert (whole["rows"][0]["num_samples"], whole["rows"][0]["num_real"]) == (60, 300)
    assert {name: tuple(values) for name, values in whole["rows"][0]["values"].items()} == {
        "encoder": METRICS,
        "colours.pt": METRICS,
    }
    with monkeypatch.context() as patch:
        watch_faces(patch, dies_after=32)
        with pytest.raises((KeyboardInterrupt, RuntimeError, SystemExit)):
            row("task.protocol=tiny", output="killed")
    with monkeypatch.context() as patch:
        made = watch_faces(patch)
        again = row("task.protocol=tiny", output="killed")
    assert made == [*range(32, 60), *range(32)]  # then those of the grid
    assert again == whole


def test_samples_are_compared_as_the_values_of_their_png(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[Tensor] = []

    def recorded(*arguments: Any) -> Tensor:
        compared.append(resumed(*arguments))
        return compared[-1]

    monkeypatch.setattr("latentfaces.tasks.evaluate.resumed", recorded)
    shutil.rmtree("faces", ignore_errors=True)
    same = ["num_images=50", "batch_size=16", "sampler.num_steps=2"]
    row("task.protocol=fid10k", "task.features=pixels.pt", *same)
    run_command("sample.py", "run=faces", *same, "output=faces")
    pixels = np.stack([np.asarray(Image.open(f"faces/{number:05d}.png")) for number in range(50)])
    assert torch.equal(compared[0], SomePixels()(torch.from_numpy(pixels).permute(0, 3, 1, 2)))
    assert not list(Path("pictures").glob("features-*"))


def test_each_value_of_a_label_has_a_row(labelled: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    glasses = torch.tensor([[float(known_labels(seed)["glasses"]), torch.inf] for seed in range(400)])
    give_photos(monkeypatch, np.arange(400))
    monkeypatch.setattr(FacePipeline, "labels_for", lambda self, names: glasses[: len(names)])
    monkeypatch.setattr("latentfaces.evaluation.protocol.FEWEST", 10)
    few = ["run=labelled", "task.protocol=fid10k", "num_images=400", "task.features=colours.pt", "task.per_label=true"]
    whole, without, with_glasses = row(*few)["rows"]
    assert (whole["name"], without["name"]) == ("labelled", "labelled, glasses=0")
    number = int(glasses[:, 0].sum())
    assert (with_glasses["name"], with_glasses["num_samples"], with_glasses["num_real"]) == (
        "labelled, glasses=1",
        number,
        number,
    )
    assert with_glasses["values"]["colours.pt"]["frechet_distance"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "clue"),
    [
        (["task.protocol=fid5k"], "task.protocol=fid5k is unknown"),
        (["task.reference=all"], "task.reference=all has no effect without task.protocol"),
        (["task.protocol=fid10k", "task.reference=some"], "task.reference=some is invalid"),
        (["task.protocol=fid10k", "task.weights=a.pth"], "is for one network. Add task.features=inception."),
        (["task.protocol=fid10k", "task.per_label=true"], "task.per_label needs a run that was trained with"),
        (["task.protocol=fid10k", "run=outputs/vae/faces"], "This run is of stage 1"),
    ],
)
def test_options_that_do_not_fit_a_protocol_are_rejected(options: list[str], clue: str, home: Path) -> None:
    assert clue in refused("sample.py", "run=faces", "task=evaluate", "output=pictures", *options)
    assert not Path("pictures").exists()
