"""Several processes come to what one comes to, whichever strategy shares the work out."""

import csv
import multiprocessing
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.commands import SHORT, TINY_LDM, TINY_VAE, Command, made_once
from helpers.forked import Forker
from helpers.several import ON_CPU, run_on, slurm_environment, torchrun_environment, under_torchrun
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from latentfaces.cli.compute import device_choices
from latentfaces.cli.devices import check_strategy, launcher_of_this_process
from latentfaces.config.compose import compose_config
from latentfaces.nn import DeviceChoices
from latentfaces.ranks import full_tensor, is_main_process, local_tensor
from latentfaces.training.distributed.sharding import placed_like

FULL = [*SHORT, *ON_CPU, "data.batch_size=4", "callbacks.tensor_stats.every_n_steps=1"]
STAGES = {
    "vae": [*TINY_VAE, *FULL, "model.loss.equivariance_weight=0.1", "model.autoencoder.skip_connections=true"],
    "ldm": [*TINY_LDM, *FULL, "callbacks.ema.snapshots=4", "callbacks.guide.share=0.5"],
}
GPU = DeviceChoices("32-true", None, None, channels_last=True, compile=False)
WATCH = ["+callbacks.probe._target_=helpers.device_probes.Weights"]


def train_both(folder: Path) -> None:
    """Train both stages on two processes, by each strategy, under its name."""
    fork = Forker(folder)
    for stage, settings in STAGES.items():
        for strategy in ("ddp", "fsdp"):
            probe = [*WATCH, f"+callbacks.probe.folder=seen/{stage}_{strategy}"]
            vae = ["vae=outputs/vae/ddp"] if stage == "ldm" else []
            run_on(2, fork, *settings, *vae, *probe, f"strategy={strategy}", f"name={strategy}")


@pytest.fixture(scope="module")
def place(warm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    """A folder with the runs of `train_both`."""
    fork = Forker(made_once("strategies", train_both, tmp_path_factory))
    yield fork
    fork.end()


@pytest.fixture
def runs(place: Forker, monkeypatch: pytest.MonkeyPatch) -> Forker:
    """Working folder with the runs."""
    monkeypatch.chdir(place.folder)
    return place


def columns(path: Path) -> dict[str, list[float]]:
    """The numbers of a CSV by column, empty cells left out."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {key: [float(row[key]) for row in rows if row[key] not in ("", None)] for key in rows[0] if key != "tensor"}


def assert_close(one: Any, other: Any, where: str = "") -> None:
    """Equal but for the order of summation, all the way down."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_close(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, Tensor) and one.is_floating_point():
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-4, msg=lambda text: f"{where}: {text}")
    else:
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other, where


@pytest.mark.ddp
@pytest.mark.parametrize("stage", ["vae", "ldm"])
def test_fsdp_trains_as_ddp_does(stage: str, runs: Forker) -> None:
    folders = [Path(f"outputs/{stage}/{strategy}") for strategy in ("ddp", "fsdp")]
    logs = [columns(folder / "metrics.csv") for folder in folders]
    assert len(logs[0]["train/loss"]) == 4
    for key in ("train/loss", "train/gradient_norm", "val/loss"):
        assert logs[1][key] == pytest.approx(logs[0][key], rel=1e-4), key
    stats = [columns(folder / "tensors.csv") for folder in folders]  # of weights, gradients, activations
    assert stats[1].keys() == stats[0].keys()
    for key in stats[0]:
        assert stats[1][key] == pytest.approx(stats[0][key], rel=1e-2, abs=1e-3), key
    seen = [torch.load(f"seen/{stage}_{strategy}/end.pt", weights_only=True) for strategy in ("ddp", "fsdp")]
    assert any(name.startswith("average") for name in seen[0])
    assert any(name.startswith("exp_avg_sq") for name in seen[0])
    assert_close(*seen)


@pytest.mark.ddp
@pytest.mark.parametrize("stage", ["vae", "ldm"])
def test_fsdp_leaves_the_files_that_ddp_leaves(stage: str, runs: Forker) -> None:
    folders = [Path(f"outputs/{stage}/{strategy}/checkpoints") for strategy in ("ddp", "fsdp")]
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*.pth")) for folder in folders]
    assert names[0] == names[1]
    assert {"vae": "best_decoder.pth", "ldm": "guide_denoiser.pth"}[stage] in names[0]
    assert sum(name.startswith("ema") for name in names[0]) == (4 if stage == "ldm" else 0)
    for name in names[0]:
        assert_close(*(torch.load(folder / name, weights_only=True) for folder in folders), name)
    pictures = [sorted(path.name for path in (folder.parent / "images").iterdir()) for folder in folders]
    assert pictures[0] == pictures[1]


@pytest.mark.ddp
@pytest.mark.parametrize("strategy", ["fsdp", "auto"])
def test_a_checkpoint_of_fsdp_resumes_on_one_device_under_any_strategy(strategy: str, runs: Forker) -> None:
    probe = [*WATCH, f"+callbacks.probe.folder=seen/one_{strategy}"]
    run = Path("outputs/ldm/fsdp")
    copy = Path(f"outputs/ldm/one_{strategy}")
    if not copy.exists():
        shutil.copytree(run, copy)
        (copy / "result.json").unlink()
    settings = [*STAGES["ldm"], "data.batch_size=8", "vae=outputs/vae/ddp", "trainer.max_steps=6"]
    run_on(1, runs, *settings, *probe, f"strategy={strategy}", f"name=one_{strategy}", "resume=force")
    before = torch.load("seen/ldm_fsdp/end.pt", weights_only=True)
    after = torch.load(f"seen/one_{strategy}/start.pt", weights_only=True)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    assert (copy / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.ddp
def test_a_checkpoint_of_ddp_goes_on_under_fsdp(runs: Forker) -> None:
    settings = [*STAGES["vae"], "trainer.max_steps=5", *WATCH, "+callbacks.probe.folder=seen/went_on"]
    run_on(2, runs, *settings, "strategy=fsdp", "name=ddp", "resume=true")
    before = torch.load("seen/vae_ddp/end.pt", weights_only=True)
    after = torch.load("seen/went_on/start.pt", weights_only=True)
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    assert Path("outputs/vae/ddp/checkpoints/last.ckpt").is_file()


@pytest.mark.ddp
def test_ranks_that_share_the_weights_measure_faces_together(runs: Forker) -> None:
    data = ["data=synthetic", "data.num_images=256", "data.resolution=16", "data.val_every=4", "data.batch_size=4"]
    measure = ["callbacks=measured", "callbacks.face_metrics.num_images=32", "callbacks.face_metrics.every_n_minutes=0"]
    run_on(2, runs, *STAGES["ldm"], *data, *measure, "vae=outputs/vae/ddp", "strategy=fsdp", "name=measured")
    assert len(columns(Path("outputs/ldm/measured/metrics.csv"))["val/feature_distance"]) == 2


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """Device mesh of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_a_tensor_is_placed_as_another_is(mesh: DeviceMesh) -> None:
    other = distribute_tensor(torch.zeros(3, 2), mesh, [Shard(0)])
    tensor = torch.randn(3, 2)
    placed = placed_like(tensor, other)
    assert placed.placements == other.placements  # type: ignore[attr-defined]
    assert torch.equal(full_tensor(placed), tensor)
    assert placed_like(tensor, torch.zeros(3, 2)) is tensor


def test_a_tensor_of_another_memory_format_is_placed(mesh: DeviceMesh) -> None:
    kernel = torch.randn(4, 3, 2, 2)
    stored = kernel.to(memory_format=torch.channels_last)
    shard = placed_like(stored, distribute_tensor(torch.zeros(4, 3, 2, 2), mesh, [Shard(0)]))
    assert local_tensor(shard).is_contiguous()
    for tensor, other in ((stored, kernel), (kernel, stored)):
        placed = placed_like(tensor, other)
        assert placed.stride() == other.stride()
        assert torch.equal(placed, kernel)


def test_fsdp_turns_off_channels_last_which_gpus_have_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeviceChoices, "fastest", lambda device: GPU)
    for strategy, channels_last in (("ddp", True), ("fsdp", False)):
        cfg = compose_config("train", [*TINY_VAE, f"strategy={strategy}"])
        check_strategy(cfg)
        assert device_choices(cfg).channels_last is channels_last


REFUSED = {
    "an adversary in parts": (
        ["strategy=fsdp", "data.resolution=32", "model/loss=adversarial", "model.adversary.start_step=1"],
        "strategy=ddp",
    ),
    "matrices in parts": (
        ["strategy=fsdp", "model.optimizer._target_=latentfaces.training.MuonAdamW"],
        "model/optimizer=muon needs complete matrices",
    ),
    "validation by the clock on two ranks": (
        [*ON_CPU, "trainer.devices=2", 'trainer.val_check_interval="00:00:01:00"'],
        "trainer.val_check_interval=00:00:01:00 needs one device",
    ),
    "a strategy of no name": (["strategy=horovod"], "fsdp"),
    "no time": (["strategy=fsdp", "trainer.strategy.timeout_minutes=-1", *ON_CPU], "timeout_minutes=-1 is invalid"),
    "no device": (["trainer.devices=0"], "trainer.devices=0"),
    "no number of devices": (["trainer.devices=two"], "trainer.devices=two"),
    "indices as text": (["trainer.devices='0,2'"], "indices, e.g. [0,2]"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_strategy_cannot_do_is_refused(what: str, train: Command, capfd: pytest.CaptureFixture[str]) -> None:
    arguments, clue = REFUSED[what]
    with pytest.raises(SystemExit) as exit_:
        train(*TINY_VAE, *SHORT, *arguments)
    said = capfd.readouterr().err
    assert exit_.value.code != 0
    assert clue in said
    assert "Traceback" not in said


def test_who_started_a_process_is_known_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launcher_of_this_process() is None
    assert is_main_process()
    with monkeypatch.context() as patch:
        for name, value in slurm_environment(1, 2, "1").items():
            patch.setenv(name, value)
        assert launcher_of_this_process() == ("srun", 1, 2)
        assert not is_main_process()
        patch.setenv("SLURM_JOB_NAME", "interactive")
        assert launcher_of_this_process() is None
    for name, value in torchrun_environment(1, 4, "1").items():
        monkeypatch.setenv(name, value)
    assert launcher_of_this_process() == ("torchrun", 4, 1)
    assert not is_main_process()


@pytest.mark.parametrize(
    ("arguments", "clue"),
    [
        ([], "The processes of torchrun need one folder. Give the run a name=..."),
        (["name=x", "trainer.devices=3"], "trainer.devices=3, but torchrun started 2"),
        (["name=x", "trainer.num_nodes=2"], "trainer.num_nodes=2, but torchrun started 1"),
    ],
)
def test_what_contradicts_torchrun_is_refused(
    arguments: list[str], clue: str, train: Command, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in torchrun_environment(0, 2, "1").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        train(*TINY_VAE, *SHORT, *arguments)
    assert clue in capfd.readouterr().err


@pytest.mark.ddp
def test_srun_trains_over_several_nodes(runs: Forker) -> None:
    said = run_on(2, runs, *TINY_VAE, *SHORT, *ON_CPU, "name=slurm", environment=slurm_environment)
    assert "a step takes 16 images (data.batch_size=8 x 2 devices" in said
    assert "model.optimizer.lr=0.0006 is not scaled" in said
    assert Path("outputs/vae/slurm/result.json").exists()


@pytest.mark.ddp
def test_torchrun_trains_and_makes_the_faces_that_one_process_makes(runs: Forker) -> None:
    train = ["train.py", *TINY_VAE, *SHORT, "data.batch_size=4", "trainer.accumulate_grad_batches=2", "name=elastic"]
    faces = ["sample.py", "run=ddp", "num_images=5", "batch_size=2", "sampler.num_steps=2"]
    log = runs.folder.parent / "torchrun.log"
    commands = [train, [*faces, "output=shared"], [*faces, "task.npz=true", "output=shared_array"]]
    process = multiprocessing.get_context("forkserver").Process(
        target=under_torchrun, args=(runs.folder, 2, log, commands)
    )
    process.start()
    process.join(150)
    assert process.exitcode == 0, log.read_text()
    said = log.read_text()
    assert said.count("a step takes 16 images (data.batch_size=") == 1
    assert Path("outputs/vae/elastic/result.json").exists()
    assert runs.run(*faces[1:], "output=alone", name="sample.py")[0] == 0
    assert runs.run(*faces[1:], "task.npz=true", "output=alone_array", name="sample.py")[0] == 0
    for kind in ("", "_array"):
        alone, shared = Path(f"alone{kind}"), Path(f"shared{kind}")
        assert sorted(path.name for path in alone.iterdir()) == sorted(path.name for path in shared.iterdir())
        for path in alone.iterdir():
            assert path.read_bytes() == (shared / path.name).read_bytes(), path
