"""Report of a sweep: order of its jobs, varied keys, and failed jobs."""

import json
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from helpers.commands import SHORT, TINY_VAE, Command

from latentfaces.errors import UserError
from latentfaces.report import write_sweep_report
from latentfaces.report.sweep_page import changes_loss, loss_curves, read_jobs


def job(folder: Path, overrides: list[str], result: dict[str, float] | None = None, error: str = "") -> None:
    """Write one job by hand."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    if error:
        (folder / "error.log").write_text(error)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Four jobs: the second is the best, the third failed, the last was pruned."""
    rates = [("1e-3", 0.5), ("2e-3", 0.25), ("4e-3", None), ("8e-3", 0.75)]
    for number, (rate, loss) in enumerate(rates):
        overrides = ["model=vae", f"model.optimizer.lr={rate}", f"annealing={'linear' if number else 'cosine'}"]
        error = "train/loss is nan at step 7\nTraceback" if loss is None else ""
        job(tmp_path / str(number), overrides, loss and {"val/best_loss": loss, "minutes": 2.0 + number}, error)
    (tmp_path / "1" / "report.html").touch()
    (tmp_path / "3" / "pruning.json").write_text('{"validations": [], "stopped": "stopped at 25%"}')
    return tmp_path


def cells(page: str) -> list[list[str]]:
    """The table of a page, as text."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    return [[re.sub("<.*?>", "", cell) for cell in re.findall(r"<t[dh][^>]*>.*?</t[dh]>", row)] for row in rows]


def test_jobs_are_listed_the_best_first_with_what_differs_and_how_they_ended(sweep: Path) -> None:
    page = write_sweep_report(sweep).read_text()
    assert cells(page) == [
        ["job", "state", "annealing", "model.optimizer.lr", "val/best_loss", "minutes"],
        ["1", "finished", "linear", "2e-3", "0.25", "3"],
        ["0", "finished", "cosine", "1e-3", "0.5", "2"],
        ["3", "pruned", "linear", "8e-3", "0.75", "5"],
        ["2", "failed", "linear", "4e-3", "", ""],
    ]
    reasons = [re.sub("<.*?>", "", item) for item in re.findall("<li>.*?</li>", page)]
    assert reasons == ["job 3 stopped at 25%", "job 2 failed: train/loss is nan at step 7"]
    assert "4 jobs, 1 failed" in page
    assert 'href="1/report.html"' in page
    assert 'href="0/report.html"' not in page  # there is none


def test_a_single_job_has_a_column_for_each_of_its_results(tmp_path: Path) -> None:
    job(tmp_path / "0", ["model=vae"], {"val/best_loss": 0.5, "minutes": 2.0})
    assert cells(write_sweep_report(tmp_path).read_text())[0] == ["job", "state", "val/best_loss", "minutes"]


def test_overrides_never_become_markup(tmp_path: Path) -> None:
    job(tmp_path / "0", ["data.root=<script>"], error="<b>no</b>")
    job(tmp_path / "1", ["data.root=photos"])
    page = write_sweep_report(tmp_path).read_text()
    assert "<script>" not in page
    assert "<b>" not in page


def test_links_lead_to_files_whatever_the_folders_are_called(tmp_path: Path) -> None:
    for name in ("javascript:alert(1)", "50% #1?", '"><b>'):
        job(tmp_path / name, ["seed=0"])
        (tmp_path / name / "report.html").touch()
    links = re.findall('href="(.*?)"', write_sweep_report(tmp_path).read_text())
    assert len(links) == 3
    for link in links:
        assert urlsplit(link).scheme == ""
        assert (tmp_path / unquote(urlsplit(link).path)).exists()


def test_losses_that_do_not_compare_rank_nothing(tmp_path: Path) -> None:
    for number, (weight, loss, psnr) in enumerate([("1e-7", 0.1, 30.0), ("1e-4", 0.3, 31.0)]):
        overrides = ["model=vae", f"model.kl_weight.end={weight}"]
        job(tmp_path / str(number), overrides, {"val/best_loss": loss, "test/psnr": psnr})
    page = write_sweep_report(tmp_path).read_text()
    assert [row[0] for row in cells(page)[1:]] == ["1", "0"]  # by PSNR
    assert "as model.kl_weight.end changes its definition" in page


def test_which_keys_change_what_the_loss_is() -> None:
    keys = ["model.kl_weight.end", "model.kl_weight.num_steps", "model.loss.reconstruction", "model/loss", "data"]
    keys += ["data.batch_size", "model.optimizer.lr", "model.denoiser.target", "model.loss.auxiliary_weight", "vae"]
    assert changes_loss(keys) == [keys[0], *keys[2:5], keys[7], keys[9]]


def test_curves_are_those_of_the_jobs_that_have_some(sweep: Path) -> None:
    assert loss_curves(read_jobs(sweep)) is None
    (sweep / "1" / "metrics.csv").write_text("step,val/loss\n2,0.5\n4,0.25\n")
    figure = loss_curves(read_jobs(sweep))
    assert figure is not None
    (line,) = figure.axes[0].lines
    assert (line.get_label(), list(line.get_ydata())) == ("1", [0.5, 0.25])


def test_jobs_without_any_result_make_a_page(tmp_path: Path) -> None:
    for number in (0, 1):
        job(tmp_path / str(number), [f"seed={number}"], error="no")
    assert "2 jobs, 2 failed" in write_sweep_report(tmp_path).read_text()


def test_a_folder_without_jobs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no jobs"):
        write_sweep_report(tmp_path)


def test_a_multirun_ends_with_its_page(train: Command, capsys: pytest.CaptureFixture[str]) -> None:
    train("-m", *TINY_VAE, *SHORT, "annealing=linear,constant", "name=two")
    page = Path("outputs/sweeps/two/report.html")
    assert str(page) in capsys.readouterr().out
    table = cells(page.read_text())
    assert table[0][:3] == ["job", "state", "annealing"]
    assert {row[2] for row in table[1:]} == {"linear", "constant"}
