"""Model cards and uploads."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from latentfaces.errors import UserError
from latentfaces.export.card import model_card, without_path
from latentfaces.export.hub import push
from latentfaces.pipeline import FacePipeline
from latentfaces.run import open_run


@pytest.fixture
def home(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to write into."""
    monkeypatch.chdir(shutil.copytree(exported, tmp_path / "home", ignore=shutil.ignore_patterns("*.onnx")))
    return Path()


RUN = "outputs/ldm/faces"


def card(home: Path) -> str:
    return model_card(open_run(RUN), FacePipeline.load(RUN, device="cpu"), ["config.json", "sample_onnx.py"])


def test_a_card_has_the_figures_of_the_run_and_no_others(home: Path) -> None:
    result = json.loads(Path("outputs/ldm/faces/result.json").read_text())
    text = card(home)
    assert "| images | 48, of which 12 were held out |" in text
    assert f"| loss of held-out images | {result['test/loss']:.4g} |" in text
    assert "| steps | 4 |" in text
    assert "## Memorization audit\n\nNot measured." in text
    assert "FID" not in text
    assert "python sample_onnx.py" in text
    evaluation = {
        **{"kind": "new faces", "features": "inception", "num_images": 5000, "num_photos": 50},
        **{"sampling": {"sampler": "EulerSampler(num_steps=5)", "requested labels": "glasses=1"}},
        **{"weights": FacePipeline.load(RUN, device="cpu").weights},
        **{"fid": 12.345, "precision": 0.5, "memorized_fraction": 0.02, "duplicates": 0.01},
    }
    path = Path("outputs/ldm/faces/samples/fid/metrics.json")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(evaluation))
    assert "as reported in papers" not in text
    published = {
        "weights": evaluation["weights"],
        "protocol": {"name": "fid10k"},
        "reasons": [],
        "table": [["model", "FID"], ["faces", "9.5"]],
    }
    path.with_name("protocol.json").write_text(json.dumps(published))
    text = card(home)
    assert "| model | FID |\n| --- | --- |\n| faces | 9.5 |\n\nfid10k: comparable" in text
    assert "| FID | 12.35 |" in text
    assert "| compared | 5,000 new faces with 50 held-out images |" in text
    assert "than 99 % of held-out images have | 0.02 |" in text
    assert "recall" not in text
    assert "| sampler | EulerSampler(num_steps=5) |\n| requested labels | glasses=1 |" in text
    path.write_text(json.dumps(evaluation | {"features": "/home/me/net.pt"}))
    assert "| features | net.pt |" in card(home)
    path.write_text(json.dumps(evaluation | {"of": "earlier weights"}))
    assert "## Memorization audit\n\nNot measured." in card(home)
    path.write_text(json.dumps(evaluation | {"weights": "of-earlier"}))
    assert "## Memorization audit\n\nNot measured." in card(home)


@pytest.mark.parametrize(
    ("licence", "header", "clue"),
    [
        ("CC BY-NC-SA 4.0", "cc-by-nc-sa-4.0", "excludes commercial use. That applies to these weights too."),
        ("for own use", "other", "| license | for own use |"),
        (None, "other", "The terms of the training images are not recorded."),
    ],
)
def test_terms_of_the_images_are_those_of_the_weights(licence: str | None, header: str, clue: str, home: Path) -> None:
    (path,) = Path("data").glob("*/manifest.json")
    manifest = json.loads(path.read_text())
    manifest["source"]["licence"] = licence
    path.write_text(json.dumps(manifest))
    text = card(home)
    assert f"\nlicense: {header}\n" in text
    assert clue in text
    assert ("excludes commercial use" in text) == (header != "other")


def test_terms_of_the_images_of_the_vae_are_named_too(home: Path) -> None:
    (path,) = Path("data").glob("*/manifest.json")
    manifest = json.loads(path.read_text())
    manifest["source"] |= {"name": "ffhq", "licence": "CC BY-NC-SA 4.0"}
    Path("data/ffhq").mkdir()
    Path("data/ffhq/manifest.json").write_text(json.dumps(manifest))
    config = Path("outputs/vae/faces/config.yaml")
    config.write_text(re.sub("(?m)^pack: .*", "pack: data/ffhq", config.read_text()))
    text = card(home)
    assert "\nlicense: cc-by-nc-sa-4.0\n" in text
    assert text.count("| images | 48, of which 12 were held out |") == 2
    assert "| source | ffhq |\n| license | CC BY-NC-SA 4.0 |" in text
    shutil.rmtree("outputs/vae")
    assert "was trained on other images:\n\nNot recorded" in card(home)


@pytest.mark.parametrize(
    ("source", "public"),
    [
        ("taesd:../me/weights#tiny", "taesd:weights#tiny"),
        ("ldm:~/vae.ckpt", "ldm:vae.ckpt"),
        ("diffusers:/home/me at home/vae#sub", "diffusers:vae#sub"),
        *[(f"diffusers:me/faces#vae at {'0' * 40}",) * 2],
    ],
)
def test_folders_of_this_machine_are_not_published(source: str, public: str) -> None:
    assert without_path(source) == public


def test_a_card_without_the_pack_says_so(home: Path) -> None:
    shutil.rmtree("data")
    assert "## Training data\n\nNot recorded" in card(home)


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Hub:
    """In the place of the hub's client."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[Any] = []
        self.error = error

    def create_repo(self, name: str, private: bool, exist_ok: bool) -> str:
        if self.error is not None:
            raise self.error
        self.calls.append((name, private))
        return f"hub/{name}"

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.calls.append((repo_id, files_of(folder_path)))


def test_an_upload_is_private_and_a_dry_run_sends_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    assert push(Path("out"), "me/faces", dry_run=True) == "me/faces is unchanged: dry_run=true"
    assert hub.calls == []
    assert f"vae.safetensors: {Path('out/vae.safetensors').stat().st_size:,} bytes" in capsys.readouterr().out
    assert push(Path("out"), "me/faces", dry_run=False) == "hub/me/faces"
    assert hub.calls == [("me/faces", True), ("me/faces", files_of(Path("out")))]
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: Hub(OSError("Token is\nrequired")))
    with pytest.raises(UserError, match=r"push=me/faces failed \(Token is required\). Run `hf auth login`"):
        push(Path("out"), "me/faces", dry_run=False)
