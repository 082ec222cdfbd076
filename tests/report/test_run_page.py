"""The page of a run: all that is there is on it, nothing is fetched, nothing typed becomes markup."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from latentfaces.errors import UserError
from latentfaces.evaluation import track_tensor_values
from latentfaces.report import write_report

METRICS = "epoch,step,train/loss,val/loss\n0,9,2.0,\n0,10,,1.5\n1,19,1.0,\n1,20,,0.5\n"


class Page(HTMLParser):
    """Text, pictures and addresses of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.pictures = "", dict[str, Image.Image]()
        self.tags, self.addresses = list[str](), list[str]()
        self.source = path.read_text()
        self.feed(self.source)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href"):
                assert value is not None
                self.addresses.append(value[:30])
                data = base64.b64decode(value.removeprefix("data:image/png;base64,"))
                self.pictures[str(dict(attrs)["alt"])] = Image.open(io.BytesIO(data))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of stage 1, by hand."""
    folder = tmp_path / "faces"
    (folder / ".hydra").mkdir(parents=True)
    (folder / "images").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(["model=vae", "name=my faces"]))
    (folder / "config.yaml").write_text(yaml.safe_dump({"stage": "vae", "note": "<script>alert(1)</script>"}))
    (folder / "metrics.csv").write_text(METRICS)
    for step in (1, 2, 3, 4, 5):
        Image.new("RGB", (8, 8), (50 * step, 0, 0)).save(folder / "images" / f"step_{step:07d}.png")
    track_tensor_values({"decoder.stem.weight": torch.ones(3)}).write(folder / "tensors.csv")
    result = {
        "test/psnr": 29.25,
        "steps": 20,
        "health/active_units": 0.75,
        "verdict": "posterior collapse in 1 of 4",
        "healthy": False,
    }
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_page_holds_all_there_is(run: Path) -> None:
    page = Page(write_report(run))
    for part in ("stage 1, a VAE", "finished", "29.25", "active_units", "0.75", "posterior collapse in 1 of 4"):
        assert part in page.text
    assert "python train.py model=vae 'name=my faces'" in page.text
    assert "decoder.stem.weight" in page.text
    assert f"python train.py model=ldm vae={run}" in page.text
    assert 'class="verdict bad"' in page.source
    shown = [name for name in page.pictures if name.startswith("step")]
    assert shown == ["step 0000001", "step 0000003", "step 0000005"]
    assert page.pictures["step 0000003"].getpixel((0, 0)) == (150, 0, 0)
    assert page.pictures["every logged value over the steps"].size[0] > 300


def test_page_fetches_nothing_and_runs_nothing(run: Path) -> None:
    page = Page(write_report(run))
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not re.search(r"https?://", page.source)
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in page.text  # shown, not run


def test_healthy_verdict_is_not_red(run: Path) -> None:
    (run / "result.json").write_text(json.dumps({"verdict": "latents are healthy", "healthy": True}))
    assert 'class="verdict"' in Page(write_report(run)).source


def test_page_of_a_run_that_has_not_ended_says_how_to_go_on(run: Path) -> None:
    for name in ("result.json", "metrics.csv", "tensors.csv"):
        (run / name).unlink()
    page = Page(write_report(run))
    assert "not finished" in page.text
    assert "python train.py model=vae 'name=my faces' resume=true" in page.text
    assert "Curves" not in page.text


def test_page_is_made_anew(run: Path) -> None:
    write_report(run)
    (run / "result.json").write_text(json.dumps({"test/psnr": 31.0}))
    assert "31" in Page(write_report(run)).text
    assert list(run.glob("*.partial")) == []


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run"):
        write_report(tmp_path)
