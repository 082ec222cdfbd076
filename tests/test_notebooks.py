"""The notebooks, executed on drawn faces at a size that tests can afford."""

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from helpers.commands import ROOT, SHORT, TINY_LDM, TINY_VAE
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

NOTEBOOKS = ROOT / "notebooks"


RUN = f"""
def run(script: str, *options: str) -> None:
    import sys

    sys.path.insert(0, {str(ROOT / "tests")!r})
    from helpers.commands import run_command

    run_command(script, *options, pictures=True)
"""
"""Runs a command in the kernel, where torch is imported already."""


def cells_of(name: str, parameters: dict[str, Any]) -> list[Any]:
    """Return the cells of a notebook with other parameters."""
    cells = nbformat.read(NOTEBOOKS / name, as_version=4).cells
    for cell in cells:
        cell.id = f"{Path(name).stem}-{cell.id}"  # unique where notebooks are joined
    (cell,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    assert {line.split(" = ")[0] for line in cell.source.splitlines() if line[0].isupper()} == set(parameters)
    cell.source = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    return cells


def printed_by(cells: list[Any]) -> str:
    """Return what executed cells printed, and how many pictures they show."""
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    pictures = sum("image/png" in output.get("data", {}) or "image/gif" in output.get("data", {}) for output in outputs)
    return "".join(output.get("text", "") for output in outputs) + f"\n{pictures} pictures"


@pytest.mark.slow
def test_both_notebooks_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    data = [option for option in TINY_VAE if option.startswith("data")]
    options = [option for option in TINY_VAE if not option.startswith(("data", "model=vae"))]
    first = cells_of(
        "train_vae.ipynb",
        {"NAME": "notebook", "DATA": data, "OPTIONS": [*options, *SHORT], "WORK": str(tmp_path)},
    )
    options = [option for option in TINY_LDM if option != "model=ldm"]
    second = cells_of(
        "train_ldm.ipynb",
        {
            "NAME": "notebook",
            "VAE": "notebook",
            "OPTIONS": [*options, *SHORT, "data.labels=auto"],
            "SAMPLING": ["num_images=4", "sampler.num_steps=2"],
            "COMPARE": "{smile: [0, 1]}",
            "WORK": str(tmp_path),
        },
    )
    setups = [next(cell for cell in cells if "def run(" in cell.source) for cells in (first, second)]
    assert len({cell.source.partition("def run(")[2] for cell in setups}) == 1  # so the first one is enough to test
    second.insert(second.index(setups[1]) + 1, new_code_cell(RUN))
    between = new_code_cell(f"%reset -f\n%cd -q {NOTEBOOKS}")  # as a kernel of its own
    notebook = new_notebook(cells=[*first, between, *second])
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()

    printed = printed_by(first)
    assert (tmp_path / "outputs/vae/notebook/report.html").exists()
    assert "'psnr'" in printed
    assert "saturated" in printed
    assert "2 pictures" in printed
    printed = printed_by(second)
    assert (tmp_path / "notebook-neighbours/neighbours.json").exists()
    assert "median_distance" in printed
    assert "7 pictures" in printed


@pytest.mark.parametrize("name", ["train_vae.ipynb", "train_ldm.ipynb"])
def test_notebooks_are_kept_without_output(name: str) -> None:
    notebook = json.loads((NOTEBOOKS / name).read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
