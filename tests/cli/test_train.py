"""train.py from the command line: files of a run, rejected overrides, and resumes."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.commands import ADVERSARIAL, ROOT, SHORT, TINY_LDM, TINY_VAE, Command, refused, run_command
from helpers.forked import Forker
from helpers.states import assert_equal, checkpoint, ema_of

from latentfaces import __version__
from latentfaces.run import find_run


def test_both_stages_from_photos_to_faces(
    train: Command, sample: Command, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(*TINY_VAE, *SHORT, "name=faces", pictures=True)
    folder = Path("outputs/vae/faces")
    for file in ("config.yaml", ".hydra/overrides.yaml", "metrics.csv", "result.json", "images/losses.png"):
        assert (folder / file).exists(), file
    vae = find_run("latest", "vae").module("autoencoder", "best_vae")
    for part in ("encoder", "decoder"):
        weights = torch.load(folder / "checkpoints" / f"best_{part}.pth", weights_only=True)
        assert_equal(weights, dict(getattr(vae, part).state_dict()))
    assert (vae.latent_std > 0).all()
    assert not torch.equal(vae.latent_std, torch.ones_like(vae.latent_std))
    assert json.loads((folder / "result.json").read_text())["steps"] == 4

    train(*TINY_LDM, *SHORT, "name=faces")
    sample("num_images=3", "output=pictures", "sampler=euler", "sampler.num_steps=2", "batch_size=2")
    assert sorted(path.name for path in Path("pictures").iterdir()) == [
        "00000.png", "00001.png", "00002.png", "grid.png",
    ]  # fmt: skip
    assert capsys.readouterr().out.strip().endswith("pictures/grid.png")
    assert Path("outputs/ldm/faces/checkpoints/best_vae.pth").exists()  # the run can be moved without the other


def test_a_resumed_diffusion_run_goes_on_bit_for_bit(train: Command, trained_vae: None) -> None:
    settings = [*TINY_LDM, *SHORT, "model.lr_schedule.decay_share=0"]
    train(*settings, "trainer.max_steps=11", "name=straight")
    train(*settings, "trainer.max_steps=6", "name=two_parts", "vae=faces")
    more = [*settings, "trainer.max_steps=11", "name=two_parts", "resume=auto"]
    assert "was started with vae=outputs/vae/faces, and not others" in refused("train.py", *more, "vae=others")
    shutil.rmtree("outputs/vae/faces")  # the run has a copy
    train(*more, "vae=faces", "model.sampler.num_steps=3")  # the words of the start, and other previews
    straight, resumed = checkpoint("ldm/straight"), checkpoint("ldm/two_parts")
    assert straight["global_step"] == resumed["global_step"] == 11
    assert_equal(straight["state_dict"], resumed["state_dict"], "weights")
    assert_equal(ema_of(straight), ema_of(resumed), "average")


def test_a_bound_of_no_length_bounds_nothing(train: Command) -> None:
    train(*TINY_VAE, *SHORT, "trainer.gradient_clip_val=0", "name=unbounded")
    train(*TINY_VAE, *SHORT, "trainer.gradient_clip_val=null", "name=none")
    assert_equal(checkpoint("vae/unbounded")["state_dict"], checkpoint("vae/none")["state_dict"])


def test_null_leaves_a_callback_out(train: Command) -> None:
    train(*TINY_VAE, *SHORT, "trainer.max_steps=1", "callbacks.tensor_stats=null", "name=fewer")
    assert Path("outputs/vae/fewer/result.json").exists()
    assert not Path("outputs/vae/fewer/tensors.csv").exists()


def test_one_batch_is_one_and_not_all(train: Command) -> None:
    train(*TINY_VAE, *SHORT, "data.batch_size=2", "trainer.limit_val_batches=1", "name=one")
    assert checkpoint("vae/one")["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["total"]["ready"] == 2


def test_validations_are_due_by_steps_and_not_by_batches(train: Command) -> None:
    train(*TINY_VAE, *SHORT, "data.batch_size=2", "trainer.accumulate_grad_batches=2", "name=complete")
    previews = sorted(path.name for path in Path("outputs/vae/complete/images").glob("step_*.png"))
    assert previews == ["step_0000002.png", "step_0000004.png"]


def test_seeds_of_stage_two_see_the_photos_in_their_own_order(train: Command, trained_vae: None) -> None:
    for seed in (0, 1):
        train(*TINY_LDM, *SHORT, f"seed={seed}", f"name=seed{seed}")
    assert [find_run(f"seed{seed}", "ldm").config["data"]["seed"] for seed in (0, 1)] == [0, 1]


def test_a_new_run_has_the_vae_that_its_config_names(train: Command, workplace: Path, trained_vae: None) -> None:
    left = workplace / "outputs/ldm/new/checkpoints/best_vae.pth"  # of an attempt that was killed at its start
    left.parent.mkdir(parents=True)
    left.write_bytes(b"the VAE of an earlier attempt")
    train(*TINY_LDM, *SHORT, "name=new")
    of_vae = workplace / "outputs/vae/faces/checkpoints/best_vae.pth"
    assert_equal(*(torch.load(path, weights_only=True) for path in (left, of_vae)))


def test_a_name_is_the_folder_as_it_was_given(train: Command, workplace: Path) -> None:
    train(*TINY_VAE, *SHORT, "trainer.max_steps=1", "name=2026_11_29")
    assert [folder.name for folder in (workplace / "outputs/vae").iterdir()] == ["2026_11_29"]
    assert find_run("2026_11_29", "vae").config["version"] == __version__


def test_logged_values_are_those_of_their_step(train: Command) -> None:
    rows = {}
    for every in (1, 3):  # epochs have 4 steps
        steps = ["trainer.max_steps=12", "trainer.val_check_interval=12", f"trainer.log_every_n_steps={every}"]
        train(*TINY_VAE, *SHORT, *steps, f"name=every{every}")
        with Path(f"outputs/vae/every{every}/metrics.csv").open() as file:
            rows[every] = {row["step"]: row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]}
    assert rows[3] == {step: rows[1][step] for step in ("2", "5", "8", "11")}


REFUSED = {
    "skip dropout without skips": (
        ["model=vae", "data=synthetic", "model.skip_dropout.end=0.5"],
        "skip_connections=true",
    ),
    "a weight of nothing": (["model=vae", "data=synthetic", "model.loss.perceptual_weight=2"], "model/loss=perceptual"),
    "pictures too small for the discriminator": (
        ["model=vae", "data=synthetic", "data.resolution=16", "model/loss=adversarial"],
        "data.resolution=24 or more",
    ),
    "odd latents to be halved": (
        ["model=vae", "data=synthetic", "data.resolution=20", "model.loss.equivariance_weight=1"],
        "latents of even size",
    ),
    "blocks for another number of levels": (
        ["model=vae", "data=synthetic", "model.autoencoder.num_blocks=[1,2]"],
        "num_blocks=[1, 2]",
    ),
    "perceptual weights that are not there": (
        ["model=vae", "data=synthetic", "model/loss=perceptual", "model.loss.perceptual.weights=nowhere.pth"],
        "model.loss.perceptual.weights=nowhere.pth",
    ),
    "more devices than there are": ([*TINY_VAE, "trainer.devices=64"], "trainer.devices=64"),
    "annealing without a KL": (["model=ldm", "annealing=cosine"], "annealing"),
    "an annealing key that nothing reads": ([*TINY_VAE, "annealing.end=1"], "model.kl_weight.end"),
    "batches by more than all of them": (
        [*TINY_VAE, "trainer.limit_val_batches=1.5"],
        "trainer.limit_val_batches=1.5 is invalid",
    ),
    "batches by a word": (
        [*TINY_VAE, "trainer.limit_train_batches=half"],
        "trainer.limit_train_batches=half is invalid",
    ),
    "the same batch again, which is another each time": ([*TINY_VAE, "trainer.overfit_batches=1"], "Unknown key"),
    "a VAE for a VAE": ([*TINY_VAE, "vae=latest"], "no effect with model=vae"),
    "a full disk that is to be ignored": ([*TINY_VAE, "on_full_disk=ignore"], "on_full_disk=ignore"),
    "an unknown way to resume": ([*TINY_VAE, "resume=perhaps"], "resume=perhaps"),
    "steps in no number": ([*TINY_VAE, "model.kl_weight.num_steps=0"], "num_steps=0"),
}


@pytest.mark.parametrize("arguments_and_clue", REFUSED.values(), ids=REFUSED.keys())
def test_mistakes_get_one_sentence_and_leave_nothing(
    arguments_and_clue: tuple[list[str], str], train: Command, workplace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments, clue = arguments_and_clue
    with pytest.raises(SystemExit) as exit_:
        train(*arguments)
    said = capfd.readouterr().err
    assert exit_.value.code != 0
    assert clue in said
    assert "Traceback" not in said
    assert not list(Path().glob("outputs/*/*/config.yaml"))


def test_a_finished_run_is_not_overwritten(train: Command, workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(*TINY_VAE, *SHORT, "name=done")
    before = {path: path.read_bytes() for path in Path("outputs/vae/done").rglob("*") if path.is_file()}
    with pytest.raises(SystemExit):
        train(*TINY_VAE, *SHORT, "name=done", "model.optimizer.lr=1")
    assert "resume=auto" in capfd.readouterr().err
    assert {path: path.read_bytes() for path in Path("outputs/vae/done").rglob("*") if path.is_file()} == before


def test_the_adversary_takes_one_step_for_several_batches(train: Command, workplace: Path, squeezenet: Path) -> None:
    weights = f"model.loss.perceptual.weights={squeezenet}"
    train(*TINY_VAE, *SHORT, *ADVERSARIAL, weights, "name=accumulated", "trainer.accumulate_grad_batches=2")
    state = checkpoint("vae/accumulated")
    assert state["global_step"] == 4
    assert max(step["step"] for step in state["adversary"]["optimizer"]["state"].values()) == 2


def test_best_weights_are_of_the_time_with_the_adversary(train: Command, workplace: Path, squeezenet: Path) -> None:
    weights = f"model.loss.perceptual.weights={squeezenet}"
    train(*TINY_VAE, *SHORT, *ADVERSARIAL, weights, "name=sharp", "model.adversary.weight=1000", "trainer.max_steps=6")
    result = json.loads(Path("outputs/vae/sharp/result.json").read_text())
    rows = [row for row in Path("outputs/vae/sharp/metrics.csv").read_text().splitlines() if row]
    column, step = rows[0].split(",").index("val/loss"), rows[0].split(",").index("step")
    losses = {int(row.split(",")[step]): float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]}
    assert result["val/best_loss"] == pytest.approx(min(loss for at, loss in losses.items() if at > 2), rel=1e-4)


PROBE = ["data.batch_size=4", "+callbacks.probe._target_=helpers.probes.GradientProbe", "+callbacks.probe.folder=probe"]


@pytest.mark.ddp
def test_two_processes_share_data_and_agree_on_gradients(fork: Forker) -> None:
    devices = ["trainer.devices=2", "strategy=ddp", "trainer.accelerator=cpu"]  # the second is started by the first
    training = fork.start(*TINY_VAE, *SHORT, *devices, *PROBE, "name=two")
    assert training.wait(250) == 0, training.said
    ranks = [torch.load(f"probe/{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert_equal(ranks[0]["gradients"], ranks[1]["gradients"])
    assert not torch.equal(ranks[0]["images"], ranks[1]["images"])
    assert not torch.equal(ranks[0]["noise"], ranks[1]["noise"])
    assert checkpoint("vae/two")["global_step"] == 4


@pytest.mark.ddp
def test_two_processes_have_one_adversary_and_one_vae(fork: Forker, squeezenet: Path) -> None:
    weights = f"model.loss.perceptual.weights={squeezenet}"
    settings = [*TINY_VAE, *SHORT, *ADVERSARIAL, weights, "model.adversary.start_step=0", "name=two"]
    assert [rank.wait() for rank in fork.start_ranks(*settings, *PROBE)] == [0, 0]
    ranks = [torch.load(f"probe/{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert_equal(ranks[0]["gradients"], ranks[1]["gradients"])
    start, first, second = (
        torch.load(f"probe/adversary_{name}.pt", weights_only=True) for name in ("start_0", "end_0", "end_1")
    )
    assert_equal(first, second)  # they saw different pictures: only averaged gradients keep them equal
    assert not any(torch.equal(first[name], start[name]) for name in start if name.endswith("weight"))
    assert checkpoint("vae/two")["global_step"] == 4


@pytest.mark.ddp
def test_two_processes_make_the_latent_cache_that_one_makes(train: Command, fork: Forker) -> None:
    train(*TINY_VAE, *SHORT, "data.num_images=160", "name=faces")

    def cache() -> bytes:
        (path,) = Path("data").glob("*/latents-*.npy")
        content = path.read_bytes()
        path.unlink()
        return content

    assert [rank.wait() for rank in fork.start_ranks(*TINY_LDM, *SHORT, *PROBE, "name=two")] == [0, 0]
    shared = cache()
    train(*TINY_LDM, *SHORT, "name=one")
    assert shared == cache()


@pytest.mark.slow
def test_a_sweep_runs_every_job(train: Command, workplace: Path) -> None:
    train("-m", *TINY_VAE, *SHORT, "annealing=linear,cyclical", "name=sweep")
    for job, schedule in enumerate(("Linear", "Cyclical")):
        run = find_run(f"outputs/sweeps/sweep/{job}", "vae")
        assert run.finished
        assert run.config["model"]["kl_weight"]["_target_"].endswith(schedule)


def test_help_and_typos_answer_without_importing_torch() -> None:
    code = (
        "import runpy, sys; sys.argv = ['train.py', '--cfg', 'job']; "
        "runpy.run_path('train.py', run_name='__main__'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


CHOICES = {
    "EDM": ["model/schedule=edm", "model/time_sampler=log_normal", "model/weighting=edm"],
    "noise, betas, zero terminal SNR": [
        "model/schedule=vp_linear",
        "model.denoiser.schedule.zero_terminal_snr=true",
        "model.denoiser.target=eps",
        "model/weighting=min_snr",
        "model/time_sampler=uniform",
    ],
    "x0 on a cosine, weighted as v, Muon": [
        "model/schedule=vp_cosine",
        "model.denoiser.target=x0",
        "model/weighting=v",
        "model.loss.time_sampler.mean=0.4",
        "model/optimizer=muon",
    ],
    "augmentation": ["model/augmentation=nonleaky", "model.augmentation.probability=0.5"],
}
DIT = [
    "model/denoiser=tiny",
    "model.denoiser.network.width=32",
    "model.denoiser.network.depth=3",
    "model.denoiser.network.num_heads=2",
    "model.denoiser.network.auxiliary_depth=1",
]
WRONG_FOR_STAGE_TWO = {
    "an auxiliary weight without a head": (["model.loss.auxiliary_weight=0.5"], "auxiliary_depth"),
    "labels without augmentation": (["model.denoiser.network.label_channels=8"], "must be 0"),
    "a part of the augmentation": (
        ["model/augmentation=nonleaky", "model.denoiser.network.label_channels=4"],
        "label_channels=4 must be 8",
    ),
    "a target of no name": (["model.denoiser.target=noise"], "model.denoiser.target=noise"),
    "a width of no distribution": (["model.time_sampler.std=0"], "model.time_sampler"),
    "betas upside down": (["model/schedule=vp_linear", "model.denoiser.schedule.beta_min=30"], "beta_min=30"),
    "an early moment that is none": (["callbacks.guide.share=1.5"], "share=1.5"),
    "tracks without snapshots": (["callbacks.ema.snapshots=0"], "tracks"),
}


@pytest.fixture(scope="module")
def home_with_vae(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workplace with a finished run of stage 1."""
    return shutil.copytree(trained, tmp_path_factory.mktemp("choices") / "home", ignore=shutil.ignore_patterns("ldm"))


@pytest.mark.parametrize("choice", CHOICES)
def test_each_choice_of_stage_two_trains_samples_and_resumes_bit_for_bit(
    choice: str, home_with_vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home_with_vae)
    name = choice.split()[0].strip(",")
    options = [*TINY_LDM, *SHORT, "model.lr_schedule.decay_share=0", *CHOICES[choice]]
    run_command("train.py", *options, "trainer.max_steps=5", f"name={name}")
    run_command("train.py", *options, "trainer.max_steps=2", f"name={name}-parts")
    run_command("train.py", *options, "trainer.max_steps=5", f"name={name}-parts", "resume=true")
    straight, resumed = checkpoint(f"ldm/{name}"), checkpoint(f"ldm/{name}-parts")
    assert_equal(straight["state_dict"], resumed["state_dict"], "weights")
    assert_equal(straight["optimizer_states"], resumed["optimizer_states"], "optimiser")
    run_command("sample.py", f"run={name}", "num_images=2", "sampler.num_steps=3", f"output={name}-faces")
    assert Path(f"{name}-faces/00001.png").exists()


def test_a_dit_with_a_second_head_is_guided_by_it(home_with_vae: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home_with_vae)
    options = [option for option in TINY_LDM if not option.startswith("model.denoiser") and "/denoiser" not in option]
    run_command("train.py", *options, *DIT, *SHORT, "name=two-heads")
    assert "train/auxiliary_loss" in (home_with_vae / "outputs/ldm/two-heads/metrics.csv").read_text()
    run_command(
        "sample.py", "run=two-heads", "guidance=internal", "num_images=2", "sampler.num_steps=2", "output=guided"
    )
    assert (home_with_vae / "guided" / "grid.png").exists()


@pytest.mark.parametrize(
    ("stage", "experiment", "choice"),
    [
        ("ldm", "faces64_cpu", "model/denoiser=unet_b"),
        ("ldm", "faces64_cpu", "model/denoiser=dit_b"),
        ("vae", "sweep_vae_kl", "model/autoencoder=kl_f8"),
    ],
)
def test_a_network_beside_a_recipe_that_sizes_its_own_is_refused(
    stage: str, experiment: str, choice: str, home_with_vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home_with_vae)
    data = ["data=synthetic"] if stage == "vae" else []
    options = [f"model={stage}", *data, f"experiment={experiment}", "hydra.mode=RUN", choice, "name=wrong"]
    assert f"{choice} conflicts with experiment={experiment}" in refused("train.py", *options)


@pytest.mark.parametrize(
    "options",
    [
        ["model=vae", "data=synthetic", "experiment=faces64_cpu", "model/autoencoder=skip_f8"],
        ["model=ldm", "experiment=faces64_10min", "model/denoiser=dit_s"],
    ],
)
def test_a_network_beside_a_recipe_counts_where_the_recipe_leaves_a_part_of_it_open(
    options: list[str], home_with_vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home_with_vae)
    said = refused("train.py", *options, "trainer.max_steps=0", "name=open")  # and no word of the network
    assert "trainer.max_steps=0 is invalid" in said


@pytest.mark.parametrize("mistake", WRONG_FOR_STAGE_TWO)
def test_mistakes_of_stage_two_get_one_sentence(
    mistake: str, home_with_vae: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home_with_vae)
    arguments, clue = WRONG_FOR_STAGE_TWO[mistake]
    with pytest.raises(SystemExit) as exit_:
        run_command("train.py", *TINY_LDM, *SHORT, *arguments, "name=wrong")
    said = capfd.readouterr().err
    assert exit_.value.code != 0
    assert clue in said
    assert "Traceback" not in said
    assert not (home_with_vae / "outputs/ldm/wrong/config.yaml").exists()
