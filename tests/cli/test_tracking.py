"""Content of the file that `wandb sync` uploads, read with the tool of W&B."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.commands import SHORT, TINY_LDM, TINY_VAE, Command, trained_in
from PIL import Image
from wandb.util import get_core_path

from latentfaces.training.callbacks.dashboard import histogram

WATCHED = [option for option in SHORT if option != "logger=csv"]
ARTIFACT = "callbacks.dashboard.upload_weights=true"
SECRET = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Record:
    """One .wandb file.

    Args:
        path: the file.
        entries: what is in it.
    """

    path: Path
    entries: list[Mapping[str, Any]]

    @classmethod
    def read(cls, path: Path) -> "Record":
        """With the program behind `wandb leet inspect`, which starts without importing wandb."""
        command = [get_core_path(), "leet", "inspect", "--no-observability", "--json"]
        command += ["--run-file", str(path), str(path.parents[1])]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        return cls(path, [json.loads(line) for line in lines])

    def of(self, kind: str) -> list[Any]:
        """The contents of all entries of a kind."""
        return [entry[kind] for entry in self.entries if entry["type"] == kind]

    @property
    def history(self) -> list[Mapping[str, Any]]:
        """Logged values."""
        return [entry["item"] for entry in self.of("history")]

    @property
    def config(self) -> dict[str, Any]:
        """The config, last words first."""
        merged: dict[str, Any] = {}
        for entry in self.of("config"):
            merged |= entry["update"]
        return merged

    def sections(self) -> dict[str, set[str]]:
        """Names of the panels in each section."""
        names = {name.split("._type")[0] for item in self.history for name in item if "/" in name}
        found: dict[str, set[str]] = {}
        for name in names:
            section, _, rest = name.partition("/")
            found.setdefault(section, set()).add(rest)
        return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages on W&B, offline; the first in two parts."""
    home = tmp_path_factory.mktemp("watched")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_API_KEY", SECRET)
        patch.setenv("WANDB_DATA_DIR", str(home / "staged"))
        return trained_in(
            home,
            [*TINY_VAE, *WATCHED, "name=faces"],
            [*TINY_VAE, *WATCHED, "name=faces", "resume=true", "trainer.max_steps=6", ARTIFACT],
            [*TINY_LDM, *WATCHED, "name=faces"],
        )


@pytest.fixture(scope="module")
def records(home: Path) -> list[Record]:
    """Return the records of the three trainings, in order."""
    paths = [
        path
        for stage in ("vae", "ldm")
        for path in sorted(home.glob(f"outputs/{stage}/faces/wandb/offline-run-*/*.wandb"))
    ]
    assert len(paths) == 3
    return [Record.read(path) for path in paths]


def test_stage_one_has_every_panel_in_its_section(records: list[Record]) -> None:
    sections = records[0].sections()
    assert {"loss", "kl", "reconstruction", "kl_weight", "gradient_norm"} <= sections["train"]
    assert {"loss", "kl", "reconstruction", "psnr", "ssim", "best_loss"} <= sections["val"]
    assert {"active_units", "kl_0", "latent_std_3", "detail_high"} <= sections["health"]
    assert sections["speed"] == {"images_per_second"}
    assert {"encoder.levels", "decoder.levels"} <= sections["weights"] & sections["gradients"]
    assert {"loss", "psnr"} <= sections["test"]


def test_every_validation_has_its_grid(records: list[Record]) -> None:
    for record, name in ((records[0], "reconstructions"), (records[2], "samples")):
        pictures = [item for item in record.history if f"images/{name}.filenames" in item]
        validations = [item for item in record.history if "val/loss" in item]
        assert len(pictures) == len(validations) == 3
        for item in pictures:
            (file,) = item[f"images/{name}.filenames"]
            assert Image.open(record.path.parent / "files" / file).width > 8 * 16


def test_each_log_has_the_speed(records: list[Record]) -> None:
    speeds = [item["speed/images_per_second"] for item in records[0].history if "speed/images_per_second" in item]
    assert len(speeds) == 4
    assert all(0 < speed < 1e6 for speed in speeds)


def test_a_run_has_its_config(records: list[Record], home: Path) -> None:
    stored = yaml.safe_load((home / "outputs/vae/faces/config.yaml").read_text())
    assert records[0].config["model"] == stored["model"]


def test_stages_of_one_name_are_a_group_and_a_resumed_training_is_the_same_run(records: list[Record]) -> None:
    runs = [record.of("run")[0] for record in records]
    assert [run["run_group"] for run in runs] == ["faces"] * 3
    assert [run["job_type"] for run in runs] == ["vae", "vae", "ldm"]
    assert [run["tags"] for run in runs] == [["vae"], ["vae"], ["ldm"]]
    assert runs[0]["run_id"] == runs[1]["run_id"] != runs[2]["run_id"]
    assert [run.get("resume") for run in runs] == [True] * 3
    first, second = (
        [item["trainer/global_step"] for item in record.history if "train/loss" in item] for record in records[:2]
    )
    assert len(second) == 2
    assert min(second) > max(first)


def test_the_table_of_runs_keeps_the_best_value(records: list[Record]) -> None:
    kept = {entry["name"]: entry["summary"] for entry in records[0].of("metric") if "summary" in entry}
    assert kept["val/loss"] == {"min": True, "last": True}
    assert kept["val/psnr"] == kept["val/ssim"] == {"max": True, "last": True}
    losses = [item["val/loss"] for item in records[0].history if "val/loss" in item]
    best = [item["val/best_loss"] for item in records[0].history if "val/best_loss" in item]
    assert best == pytest.approx(np.minimum.accumulate(losses))


def test_best_weights_and_config_are_an_artifact_when_asked(records: list[Record]) -> None:
    assert records[0].of("artifact") == []
    (artifact,) = records[1].of("artifact")
    files = {entry["path"] for entry in artifact["manifest"]["contents"]}
    assert files == {"best_vae.pth", "best_encoder.pth", "best_decoder.pth", "config.yaml"}
    assert (artifact["name"], artifact["type"]) == ("faces-vae", "model")


def test_no_secret_is_in_any_file_of_a_run(home: Path, records: list[Record]) -> None:
    files = [path for path in home.rglob("*") if path.is_file()]
    assert records[0].path in files
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_jobs_of_a_sweep_are_runs_of_one_group(train: Command, workplace: Path) -> None:
    train("-m", *TINY_VAE, *WATCHED, "trainer.max_steps=2", "annealing=linear,cosine", "name=both")
    paths = sorted(Path("outputs/sweeps/both").glob("*/wandb/offline-run-*/*.wandb"))
    runs = [Record.read(path).of("run")[0] for path in paths]
    assert [run["display_name"] for run in runs] == ["both/0", "both/1"]
    assert [run["run_group"] for run in runs] == ["both"] * 2
    assert [run["tags"] for run in runs] == [["vae", "sweep"]] * 2
    assert runs[0]["run_id"] != runs[1]["run_id"]
    alone = ["name=both", "hydra.run.dir=outputs/sweeps/both/1", "annealing=cosine", "resume=auto"]
    train(*TINY_VAE, *WATCHED, "trainer.max_steps=3", *alone)
    paths = sorted(Path("outputs/sweeps/both/1").glob("wandb/offline-run-*/*.wandb"))
    resumed = [Record.read(path).of("run")[0] for path in paths]
    assert len(resumed) == 2
    assert {run["display_name"] for run in resumed} == {"both/1"}
    assert {run["run_id"] for run in resumed} == {runs[1]["run_id"]}


def test_checkpoints_for_a_server_that_is_not_there_are_refused(
    train: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train(*TINY_VAE, "name=refused", "logger.wandb.log_model=true")
    assert "error: logger.wandb: Providing log_model=True and offline=True" in capfd.readouterr().err


def test_histograms_count_every_finite_value_or_evenly_chosen_ones() -> None:
    counts, edges = histogram([torch.arange(10.0), torch.tensor([float("nan"), 63.0])])
    assert counts.sum() == 11
    assert (edges[0], edges[-1], len(counts)) == (0, 63, 64)
    assert counts[:10].tolist() == [1] * 10
    counts, edges = histogram([torch.linspace(0, 1, 1_000_001)])
    assert counts.sum() == pytest.approx(91_000, rel=0.1)
    assert counts.min() == pytest.approx(counts.max(), rel=0.01)
