"""The page of a sweep: its jobs in order, what differs between them, and those that came to nothing."""

import json
import re
from pathlib import Path

import pytest
import yaml
from commands import SHORT, TINY_VAE, Command

from latentfaces.errors import UserError
from latentfaces.report import write_sweep_report
from latentfaces.report.sweep_page import parallel_coordinates, read_jobs


def job(folder: Path, told: list[str], result: dict[str, float] | None) -> None:
    """Write one job by hand."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(told))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three jobs, the second the best, the third without a result."""
    for number, (rate, loss) in enumerate([("1e-3", 0.5), ("2e-3", 0.25), ("4e-3", None)]):
        told = ["model=vae", f"model.optimizer.lr={rate}", f"annealing={'linear' if number else 'cosine'}"]
        job(tmp_path / str(number), told, None if loss is None else {"val/best_loss": loss, "minutes": 2.0 + number})
    return tmp_path


def cells(page: str) -> list[list[str]]:
    """The table of a page."""
    return [re.findall(r"<t[dh]>(.*?)</t[dh]>", row) for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)]


def test_jobs_are_listed_the_best_first_with_what_differs(sweep: Path) -> None:
    table = cells(write_sweep_report(sweep).read_text())
    assert table == [
        ["job", "annealing", "model.optimizer.lr", "val/best_loss", "minutes"],
        ["1", "linear", "2e-3", "0.25", "3"],
        ["0", "cosine", "1e-3", "0.5", "2"],
        ["2", "linear", "4e-3", "none", "none"],
    ]


def test_page_counts_jobs_without_a_result(sweep: Path) -> None:
    assert "3 jobs, 1 of them without a result" in write_sweep_report(sweep).read_text()


def test_lines_go_through_words_and_numbers(sweep: Path) -> None:
    jobs = [job for job in read_jobs(sweep) if job.result]
    (axes,) = parallel_coordinates(jobs, ["annealing", "model.optimizer.lr"], ["val/best_loss"]).axes
    lines = {str(line.get_label()): list(line.get_ydata()) for line in axes.lines if len(line.get_xdata()) == 3}
    assert lines == {"1": [1.0, 1.0, 0.0], "0": [0.0, 0.0, 1.0]}
    letters = {text.get_text() for text in axes.texts}
    assert {"cosine", "linear", "0.001", "0.002", "0.25", "0.5"} <= letters


def test_a_folder_without_jobs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no jobs"):
        write_sweep_report(tmp_path)


def test_a_multirun_ends_with_its_page(train: Command, capsys: pytest.CaptureFixture[str]) -> None:
    train("-m", *TINY_VAE, *SHORT, "annealing=linear,constant", "name=two")
    page = Path("outputs/sweeps/two/report.html")
    assert str(page) in capsys.readouterr().out
    table = cells(page.read_text())
    assert table[0][:2] == ["job", "annealing"]
    assert {row[1] for row in table[1:]} == {"linear", "constant"}
