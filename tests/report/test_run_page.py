"""The page of a run: all that is there is on it, nothing is fetched, nothing typed becomes markup."""

import base64
import io
import json
import os
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import yaml
from helpers.browser import check_page, needs_browser
from helpers.commands import SHORT, TINY_VAE, Command
from PIL import Image

from latentfaces.errors import UserError
from latentfaces.evaluation import track_tensor_values
from latentfaces.report import format_number, write_report
from latentfaces.report.run_page import next_commands
from latentfaces.run import open_run, resume_command
from latentfaces.training import VAEModule
from latentfaces.training.step_log import StepLog

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


def suggested(run: Path, title: str) -> str:
    """Return the command with this title on the page of a run."""
    return dict(next_commands(open_run(run), ended=title != "Resume"))[title]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of stage 1, by hand."""
    folder = tmp_path / "outputs" / "vae" / "my faces"
    (folder / ".hydra").mkdir(parents=True)
    (folder / "images").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(["model=vae", "name=my faces"]))
    (folder / "config.yaml").write_text(yaml.safe_dump({"stage": "vae", "note": "<script>alert(1)</script>"}))
    (folder / "metrics.csv").write_text(METRICS)
    for step in (1, 2, 3, 4, 5):
        Image.new("RGB", (8, 8), (50 * step, 0, 0)).save(folder / "images" / f"step_{step:07d}.png")
    tensors = StepLog(folder / "tensors.csv")
    tensors.add(0, *track_tensor_values({"decoder.stem.weight": torch.ones(3)}).rows)
    tensors.save()
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
    assert f"python train.py model=ldm vae='{run}'" in page.text
    assert 'class="verdict bad"' in page.source
    shown = [name for name in page.pictures if name.startswith("step")]
    assert shown == ["step 1", "step 3", "step 5"]
    assert page.pictures["step 3"].getpixel((0, 0)) == (150, 0, 0)
    assert page.pictures["loss over the steps"].size[0] > 300
    assert page.pictures["weights, mean over the steps"].size[0] > 300
    assert "best 0.5 at step 20, epoch 1" in page.text


def test_page_grows_while_training_goes_on_and_is_there_when_it_fails(
    train: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages: list[str] = []
    seen = VAEModule.training_step

    def failing(self: VAEModule, images: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if (page := Path("outputs/vae/a/report.html")).exists():
            pages.append(Page(page).text)
        if self.global_step == 3:
            raise RuntimeError("the power went out")
        return seen(self, images, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(VAEModule, "training_step", failing)
        patch.setattr("latentfaces.report.run_page.drawn", lambda *_: [])  # the last page has figures
        patch.setattr("latentfaces.report.run_page.tensor_values", lambda _: None)
        with pytest.raises((RuntimeError, SystemExit)):
            train(
                *TINY_VAE,
                *SHORT,
                "callbacks.report.every_n_minutes=0",
                "callbacks.last.every_n_train_steps=2",
                "name=a",
                pictures=True,
            )
    assert len(pages) == 2
    assert "not finished" in pages[0]
    left = Page(Path("outputs/vae/a/report.html"))
    assert "not finished" in left.text
    assert "name=a resume=auto" in left.text
    train(*TINY_VAE, *SHORT, "name=a", "resume=auto", pictures=True)
    page = Page(Path("outputs/vae/a/report.html"))
    assert "not finished" not in page.text
    assert "resume=auto trainer.max_steps=8" in page.text


def test_evaluations_in_the_runs_folder_are_told(run: Path) -> None:
    folder = run / "samples" / "evaluate_1"
    folder.mkdir(parents=True)
    told: dict[str, object] = {
        "kind": "new faces",
        "features": "inception",
        "num_images": 50000,
        "num_photos": 7000,
        "fid": 12.25,
    }
    told["training_photos"] = {"fid": 11.5}
    (folder / "metrics.json").write_text(json.dumps(told))
    text = Page(write_report(run)).text
    for part in ("50,000 new faces", "inception", "12.25", "11.5", "images in samples/evaluate_1"):
        assert part in text
    (run / "checkpoints" / "best_vae.pth").parent.mkdir(exist_ok=True)
    (run / "checkpoints" / "best_vae.pth").touch()
    (folder / "metrics.json").write_text(json.dumps(told | {"of": "earlier weights"}))
    assert "50,000 new faces" not in Page(write_report(run)).text


def test_the_newest_row_of_a_protocol_is_on_the_page(run: Path) -> None:
    assert "as reported in papers" not in Page(write_report(run)).text
    for number, fid in enumerate(("77.25", "8.25")):
        result = {
            "protocol": {"name": "fid10k"},
            "reasons": ["48 of 70,000 images"],
            "table": [["model", "FID"], ["<b>faces", fid]],
        }
        path = run / "samples" / f"fid_{number}" / "protocol.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(result))
        os.utime(path, (number, number))
    text = Page(write_report(run)).text
    for part in ("FID", "<b>faces", "8.25", "fid10k: not comparable with published rows of FFHQ: 48 of 70,000 images"):
        assert part in text
    assert "77.25" not in text


@needs_browser
def test_page_looks_right_in_a_browser_on_a_desktop_and_on_a_telephone(run: Path, tmp_path: Path) -> None:
    config = {"stage": "vae", "a" * 90: "b" * 200, "note": "<script>alert(1)</script>"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    check_page(write_report(run), tmp_path)


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
    assert "python train.py model=vae 'name=my faces' resume=auto" in page.text
    assert "Curves" not in page.text


def test_page_of_a_run_that_is_trained_further_says_how_to_resume_it(run: Path) -> None:
    (run / "result.json").write_text(json.dumps({"test/psnr": 29.25, "steps": 10}))  # of 20 in metrics.csv
    page = Page(write_report(run))
    assert "not finished" in page.text
    assert "python train.py model=vae 'name=my faces' resume=auto" in page.text


def test_counts_are_in_full() -> None:
    assert [format_number(value) for value in (123456, 0.123456)] == ["123,456", "0.1235"]


def test_a_run_whose_name_was_not_typed_goes_on_by_its_folder(run: Path) -> None:
    job = run.with_name("3")  # of a sweep, or a name that was made up
    run.rename(job)
    told = suggested(job, "Train for longer")
    again = [
        "python",
        "train.py",
        "model=vae",
        "name=my faces",
        f"hydra.run.dir={job}",
        "hydra.mode=RUN",
        "resume=auto",
    ]
    assert shlex.split(told) == [*again, "trainer.max_steps=40"]


def test_a_run_that_was_put_elsewhere_goes_on_there(run: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "scratch" / run.name
    elsewhere.parent.mkdir()
    run.rename(elsewhere)
    assert f"hydra.run.dir={elsewhere}" in shlex.split(suggested(elsewhere, "Train for longer"))


def test_a_run_at_the_root_of_a_disk_goes_on_there() -> None:
    assert "hydra.run.dir=/faces" in shlex.split(resume_command(["python", "train.py"], ["name=faces"], Path("/faces")))


def test_a_console_script_resumes_by_its_own_name(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/latentfaces-train", "model=vae"])
    assert suggested(run, "Resume") == "latentfaces-train model=vae 'name=my faces' resume=auto"
    assert suggested(run, "Reconstruct held-out images") == f"latentfaces-sample run='{run}' task=reconstruct"


def test_what_another_limit_ended_is_trained_longer_by_steps(run: Path) -> None:
    config = {"stage": "vae", "trainer": {"max_time": "00:13:45:30", "max_epochs": 200}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    longer = suggested(run, "Train for longer")
    assert longer.endswith("resume=auto trainer.max_steps=40 trainer.max_time=null trainer.max_epochs=-1")


def test_page_is_made_anew(run: Path) -> None:
    write_report(run)
    (run / "result.json").write_text(json.dumps({"test/psnr": 31.0}))
    assert "31" in Page(write_report(run)).text
    assert list(run.glob("*.partial")) == []


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run"):
        write_report(tmp_path)
