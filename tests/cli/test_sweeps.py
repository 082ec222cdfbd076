"""Sweeps from the command line: rejected ones, resumes, sweepers and launchers."""

import importlib.metadata
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.commands import ROOT, SHORT, TINY_LDM, TINY_VAE, Command, run_command
from helpers.forked import Forker
from omegaconf import OmegaConf

from latentfaces.config.compose import compose_config
from latentfaces.training.callbacks.median_stop import MedianStop, lowest_until


def installed(package: str) -> pytest.MarkDecorator:
    """Skips a test of an extra that is not installed."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return pytest.mark.skip(reason=f"{package} is not installed")
    return pytest.mark.slow


def refusal(arguments: list[str], train: Command, capfd: pytest.CaptureFixture[str]) -> str:
    """Return the error of a rejected command."""
    with pytest.raises(SystemExit) as exit_:
        train(*arguments)
    said = capfd.readouterr().err
    assert exit_.value.code == 2
    assert "Traceback" not in said
    return said


@pytest.fixture
def earlier(workplace: Path) -> Path:
    """A folder that looks like a sweep over two learning rates."""
    folder = workplace / "outputs/sweeps/two"
    (folder / "0" / ".hydra").mkdir(parents=True)
    (folder / "0" / ".hydra" / "overrides.yaml").write_text("[model=vae, model.optimizer.lr=1e-3]")
    task = ["model=vae", "data=synthetic", "model.optimizer.lr=1e-3,2e-3", "name=two", "trainer.max_steps=5"]
    OmegaConf.save({"hydra": {"overrides": {"task": task}, "sweeper": {"params": None}}}, folder / "multirun.yaml")
    return folder


SAME = ["-m", "model=vae", "data=synthetic", "model.optimizer.lr=1e-3,2e-3", "name=two"]


def test_a_folder_that_holds_a_sweep_is_not_written_over(
    earlier: Path, train: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "outputs/sweeps/two already contains a sweep. Use resume=auto" in refusal(SAME, train, capfd)
    assert sorted(path.name for path in earlier.iterdir()) == ["0", "multirun.yaml"]


def test_going_on_with_other_jobs_is_refused(earlier: Path, train: Command, capfd: pytest.CaptureFixture[str]) -> None:
    other = [*SAME[:3], "model.optimizer.lr=1e-3,3e-3", "name=two", "resume=auto"]
    assert "contains a sweep of other jobs" in refusal(other, train, capfd)


WRONG = {
    "pruning without a sweep": (["model=vae", "data=synthetic", "pruning=median"], "Start one with -m"),
    "pruning by losses that do not compare": (
        ["-m", "model=vae", "data=synthetic", "pruning=median", "model.kl_weight.end=1e-6,1e-5"],
        "model.kl_weight.end changes the loss",
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_mistakes_get_one_sentence(mistake: str, train: Command, capfd: pytest.CaptureFixture[str]) -> None:
    arguments, clue = WRONG[mistake]
    assert clue in refusal(arguments, train, capfd)


@pytest.mark.parametrize(("choice", "extra"), [("hydra/sweeper=tpe", "sweep"), ("hydra/launcher=slurm", "slurm")])
def test_an_extra_that_is_not_installed_is_named(
    choice: str, extra: str, train: Command, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def nothing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", nothing)
    said = refusal(["-m", "model=vae", "data=synthetic", choice], train, capfd)
    assert f"{choice} needs an extra. Run `pip install 'latentfaces[{extra}]'`" in said


def test_a_sweep_that_was_stopped_goes_on(train: Command, workplace: Path) -> None:
    arguments = ["-m", *TINY_VAE, *SHORT, "model.optimizer.lr=1e-3,2e-3", "name=parts"]
    train(*arguments, "trainer.max_steps=2")
    train(*arguments, "trainer.max_steps=4", "resume=auto")
    for job in ("0", "1"):
        folder = Path("outputs/sweeps/parts") / job
        assert json.loads((folder / "result.json").read_text())["steps"] == 4


def test_lowest_loss_at_a_share_of_training() -> None:
    record = [[0.2, 5.0], [0.4, 3.0], [0.6, 2.0]]
    assert lowest_until(0.4, record) == 3.0
    assert lowest_until(0.5, record) == 3.0
    assert lowest_until(0.7, record) is None  # it has not come so far
    assert lowest_until(0.1, record) == float("inf")  # nothing was known of it then
    assert lowest_until(0.1, []) is None


def test_a_job_above_the_median_of_those_that_came_as_far_is_behind(tmp_path: Path) -> None:
    for name, losses in {"0": [4, 2], "1": [5, 3], "2": [6, 4], "3": [1]}.items():
        (tmp_path / name).mkdir()
        record = [[0.25 * (n + 1), loss] for n, loss in enumerate(losses)]
        (tmp_path / name / "pruning.json").write_text(json.dumps({"validations": record, "stopped": None}))
    stop = MedianStop(tmp_path / "9", min_jobs=3)
    # At half of training 2, 3 and 4 compare; the fourth job has not come so far, though it leads.
    assert stop.behind(0.5, 3.0) is None
    reason = stop.behind(0.5, 3.1)
    assert reason is not None
    assert "at 50%" in reason
    assert "above 3, the median of 3 other jobs" in reason
    assert stop.behind(0.25, 4.6) is not None  # above the median of 4, 5, 6 and 1
    assert stop.behind(0.25, 4.4) is None
    assert MedianStop(tmp_path / "9", min_jobs=4).behind(0.5, 99.0) is None


def test_a_job_that_falls_behind_is_given_up_and_the_page_says_so(train: Command, workplace: Path) -> None:
    options = ["pruning=median", "trainer.max_steps=8", "model.optimizer.lr=1e-3,2e-3,1e-12", "name=race"]
    train("-m", *TINY_VAE, *SHORT, *options)
    steps = [json.loads(Path(f"outputs/sweeps/race/{job}/result.json").read_text())["steps"] for job in range(3)]
    assert steps == [8, 8, 2]
    stopped = ["model.optimizer.lr=1e-12", "hydra.run.dir=outputs/sweeps/race/2"]
    train(*TINY_VAE, *SHORT, *options[:2], *stopped, "resume=auto")
    assert json.loads(Path("outputs/sweeps/race/2/result.json").read_text())["steps"] == 2
    assert "stopped at 25% of its training" in Path("outputs/sweeps/race/report.html").read_text()


@pytest.fixture(scope="module")
def home_with_vae(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workplace with a finished run of stage 1."""
    return shutil.copytree(trained, tmp_path_factory.mktemp("sweeps") / "home", ignore=shutil.ignore_patterns("ldm"))


SHIPPED = {
    "sweep_vae_kl": ([*TINY_VAE, "model.autoencoder.latent_channels=4"], "model.kl_weight.end=1e-6,1e-4"),
    "sweep_ldm_lr": ([*TINY_LDM, "vae=faces"], "model.optimizer.lr=1e-3,4e-3"),
}
SIZED_BY_THE_RECIPE = ("model/autoencoder=", "model/denoiser=")


@pytest.mark.parametrize("name", SHIPPED)
def test_each_shipped_sweep_runs(name: str, home_with_vae: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home_with_vae)
    tiny, values = SHIPPED[name]
    tiny = [word for word in tiny if not word.startswith(SIZED_BY_THE_RECIPE)]
    run_command("train.py", f"experiment={name}", *tiny, *SHORT, values, f"name={name}")  # also without -m
    jobs = sorted(path.parent.name for path in Path(f"outputs/sweeps/{name}").glob("*/result.json"))
    assert jobs == ["0", "1"]
    page = Path(f"outputs/sweeps/{name}/report.html").read_text()
    key = values.partition("=")[0]
    assert f"<th>{key}</th>" in page
    assert (f"{key} changes its definition" in page) == (name == "sweep_vae_kl")


def shipped(name: str) -> Mapping[str, Any]:
    """The values of a shipped sweep."""
    return yaml.safe_load((ROOT / f"conf/experiment/{name}.yaml").read_text())["hydra"]["sweeper"]["params"]


def test_values_of_shipped_sweeps_surround_the_defaults() -> None:
    for name, stage, key in (
        ("sweep_vae_kl", "vae", "model.kl_weight.end"),
        ("sweep_ldm_lr", "ldm", "model.optimizer.lr"),
    ):
        values = [float(value) for value in shipped(name)[key].split(",")]
        cfg = compose_config("train", [f"model={stage}", "experiment=faces64_cpu"])
        assert min(values) < OmegaConf.select(cfg, key) < max(values)
        assert OmegaConf.select(cfg, key) in values


def test_the_sweep_for_agents_has_keys_that_exist() -> None:
    sweep = yaml.safe_load((ROOT / "conf/wandb_sweep.yaml").read_text())
    typed = [item for item in sweep["command"] if "=" in item]
    assert sweep["command"][-1] == "${args_no_hyphens}"
    first = {key: spec.get("min", spec.get("values", [None])[0]) for key, spec in sweep["parameters"].items()}
    cfg = compose_config("train", [*typed, *(f"{key}={value}" for key, value in first.items())])
    assert all(OmegaConf.select(cfg, key) == value for key, value in first.items())


@installed("hydra-optuna-sweeper")
def test_optuna_finds_the_best_of_what_it_tried_and_survives_a_failed_job(train: Command, workplace: Path) -> None:
    search = ["hydra/sweeper=tpe", "hydra.sweeper.n_trials=4", "model.optimizer.lr=tag(log,interval(1e-6,1e-2))"]
    fault = ["+callbacks.fault._target_=helpers.probes.Fault", "+callbacks.fault.step=choice(1,99)"]
    with pytest.raises(SystemExit) as exit_:
        train("-m", *TINY_VAE, *SHORT, *search, *fault, "name=search", "seed=1")
    assert exit_.value.code == 1
    sweep = Path("outputs/sweeps/search")
    results = [json.loads(path.read_text())["val/best_loss"] for path in sweep.glob("*/result.json")]
    assert 0 < len(results) < 4
    best = yaml.safe_load((sweep / "optimization_results.yaml").read_text())
    assert best["best_value"] == min(results)


@installed("hydra-submitit-launcher")
def test_slurm_starts_a_process_for_each_gpu() -> None:
    options = ["model=vae", "hydra/launcher=slurm", "hydra.launcher.gpus_per_node=4", "trainer.num_nodes=2"]
    cfg = compose_config("train", options)
    launcher = cfg.hydra.launcher
    assert (launcher.nodes, launcher.tasks_per_node) == (2, 4)
    assert cfg.trainer.devices == "auto"


@installed("hydra-submitit-launcher")
@pytest.mark.timeout(900)
def test_submitit_starts_jobs_in_processes_of_their_own(fork: Forker) -> None:
    options = ["hydra/launcher=submitit_local", "annealing=linear,cosine", "name=apart"]
    sweep = fork.start("-m", *TINY_VAE, *SHORT, *options)
    assert sweep.wait(800) == 0, sweep.said
    assert len(list(Path("outputs/sweeps/apart").glob("*/result.json"))) == 2
    assert len(list(Path("outputs/sweeps/apart/.submitit").glob("*/*_log.out"))) == 2


@pytest.mark.ddp
@pytest.mark.timeout(600)
def test_each_job_of_a_sweep_trains_on_two_processes(fork: Forker) -> None:
    devices = ["trainer.devices=2", "strategy=ddp", "trainer.accelerator=cpu", "data.batch_size=4"]
    probe = ["+callbacks.probe._target_=helpers.probes.GradientProbe", "+callbacks.probe.folder=${run_dir}/probe"]
    options = [*devices, *probe, "model.optimizer.lr=1e-3,2e-3", "name=pairs"]
    sweep = fork.start("-m", *TINY_VAE, *SHORT, *options)
    assert sweep.wait(500) == 0, sweep.said
    assert [path.name for path in Path("outputs").glob("*/*")] == ["pairs"]
    for job in ("0", "1"):
        folder = Path("outputs/sweeps/pairs") / job
        ranks = [torch.load(folder / "probe" / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
        assert all(torch.equal(a, b) for a, b in zip(ranks[0]["gradients"], ranks[1]["gradients"], strict=True))
        assert not torch.equal(ranks[0]["images"], ranks[1]["images"])
        assert json.loads((folder / "result.json").read_text())["steps"] == 4
    lrs = {
        yaml.safe_load(Path(f"outputs/sweeps/pairs/{job}/config.yaml").read_text())["model"]["optimizer"]["lr"]
        for job in (0, 1)
    }
    assert lrs == {1e-3, 2e-3}


def test_a_sweep_has_one_name(train: Command, capfd: pytest.CaptureFixture[str]) -> None:
    assert "A sweep has one name" in refusal(["-m", "model=vae", "data=synthetic", "name=a,b"], train, capfd)


def test_a_page_that_cannot_be_written_fails_the_sweep(
    train: Command, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentfaces.cli.sweeps.write_page", lambda config: 1 / 0)
    with pytest.raises(SystemExit) as exit_:
        train("-m", *TINY_VAE, *SHORT, "trainer.max_steps=1", "seed=0,1", "name=two")
    assert exit_.value.code == 1
    assert "ZeroDivisionError" in capfd.readouterr().err
