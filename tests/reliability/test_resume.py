"""A killed run is resumed exactly: cases 27, 28, 30, 32 to 35."""

import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from helpers.commands import ADVERSARIAL, SHORT, TINY_LDM, TINY_VAE, refused, run_command
from helpers.forked import Forker
from helpers.states import assert_same_end, checkpoint, ema_of, rows_of, validations

from latentfaces.errors import UserError
from latentfaces.nn import weights_hash
from latentfaces.pipeline import FacePipeline
from latentfaces.run import find_run, open_run

# 36 pictures in batches of 8 are 4 steps an epoch.
STEPS = ["trainer.max_steps=14", "trainer.val_check_interval=5", "callbacks.last.every_n_train_steps=3"]
VAE = [*TINY_VAE, *SHORT, *STEPS, "model.loss.reconstruction=mse"]
RANDOM = random.Random(27)

KILLS: dict[str, list[dict[str, Any]]] = {
    "in the middle of an epoch": [{"step": 7}],
    "twice in one epoch": [{"step": 5}, {"step": 7}],
    "at the end of an epoch": [{"step": 12}],
    "in a validation": [{"step": 5, "hook": "on_validation_batch_start"}],
    "in a validation of a step that was saved": [{"step": 10, "hook": "on_validation_batch_start", "every": 5}],
    "in a validation at the end of an epoch": [{"step": 8, "hook": "on_validation_end", "every": 4, "val": 4}],
    "before the first checkpoint": [{"step": 1}],
    "at random": [{"step": step} for step in sorted(RANDOM.sample(range(1, 14), 3))],
}


def killed(
    step: int, hook: str = "on_train_batch_start", every: int | None = None, val: int | None = None
) -> list[str]:
    """Settings of a run that is killed."""
    kill = [
        "+callbacks.kill._target_=helpers.probes.SignalAt",
        f"+callbacks.kill.step={step}",
        f"+callbacks.kill.hook={hook}",
    ]
    return kill + timing(every, val)


def timing(every: int | None = None, val: int | None = None, **_: object) -> list[str]:
    """Settings of when a run saves and validates, where they are other than `STEPS`."""
    saves = [f"callbacks.last.every_n_train_steps={every}"] if every else []
    return saves + ([f"trainer.val_check_interval={val}"] if val else [])


def kill_and_resume(fork: Forker, settings: Sequence[str], kills: Sequence[dict[str, Any]]) -> None:
    """Train under the name "killed", die each of these deaths, and come to the end."""
    for kill in kills:
        status, said = fork.run(*settings, *killed(**kill), "name=killed", "resume=auto")
        assert status == -9, said
    status, said = fork.run(*settings, *timing(**kills[-1]), "name=killed", "resume=auto")
    assert status == 0, said


@pytest.fixture(scope="module")
def straight(warm: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`straight(settings)`: the folder of a run that nothing has interrupted, trained once."""
    runs: dict[tuple[str, ...], Path] = {}

    def train(*settings: str) -> Path:
        if settings not in runs:
            place = tmp_path_factory.mktemp("straight")
            status, said = Forker(place).run(*settings, "name=straight")
            assert status == 0, said
            runs[settings] = place / "outputs/vae/straight"
        return runs[settings]

    return train


@pytest.mark.parametrize("where", KILLS)
def test_case_27_a_killed_run_goes_on_bit_for_bit(where: str, straight: Callable[..., Path], fork: Forker) -> None:
    kills = KILLS[where]
    kill_and_resume(fork, VAE, kills)
    assert_same_end("vae/killed", straight(*VAE, *timing(**kills[-1])))


def test_case_27_a_killed_adversarial_run_goes_on_bit_for_bit(fork: Forker, squeezenet: Path) -> None:
    settings = [*TINY_VAE, *SHORT, *ADVERSARIAL, f"model.loss.perceptual.weights={squeezenet}", "trainer.max_steps=6"]
    settings.append("callbacks.last.every_n_train_steps=1")
    assert fork.run(*settings, "name=straight")[0] == 0
    kill_and_resume(fork, settings, [{"step": 5}])
    assert_same_end("vae/killed", "vae/straight")
    state = checkpoint("vae/killed")
    assert state["global_step"] == 6  # steps of the VAE, not of both optimisers
    assert max(step["step"] for step in state["adversary"]["optimizer"]["state"].values()) == 4  # steps 2 to 5


def test_case_27_a_killed_diffusion_run_leaves_the_averages_and_the_guide_of_an_uninterrupted_one(
    fork: Forker, trained_vae: None
) -> None:
    settings = [*TINY_LDM, *SHORT, "trainer.max_steps=12", "callbacks.last.every_n_train_steps=4"]
    settings += ["callbacks.ema.sigma_rel=0.07", "callbacks.ema.snapshots=4", "callbacks.guide.share=0.75"]
    assert fork.run(*settings, "name=straight")[0] == 0
    # Killed after snapshot and guide of step 9, it resumes from step 8 and writes both again.
    status, said = fork.run(*settings, *killed(step=11), "name=killed")
    assert status == -9, said
    assert checkpoint("ldm/killed")["global_step"] == 8
    assert Path("outputs/ldm/killed/checkpoints/guide_denoiser.pth").exists()
    status, said = fork.run(*settings, "name=killed", "resume=true")
    assert status == 0, said
    assert_same_end("ldm/straight", "ldm/killed")
    folders = [Path(f"outputs/ldm/{name}/checkpoints") for name in ("straight", "killed")]
    assert sorted(path.name for path in (folders[0] / "ema").iterdir()) == [
        "step_0000003.pth", "step_0000006.pth", "step_0000009.pth", "step_0000012.pth",
    ]  # fmt: skip
    whole, resumed = (
        {path.name: path.read_bytes() for path in [*(folder / "ema").iterdir(), folder / "guide_denoiser.pth"]}
        for folder in folders
    )
    assert whole == resumed

    run = find_run("killed", "ldm")
    rebuilt = run.averaged("denoiser", 0.07)  # which was kept as well, though not in the snapshots
    names = [name for name, _ in rebuilt.named_parameters()]
    for name, value in zip(names, ema_of(checkpoint("ldm/killed"))["average"], strict=True):
        torch.testing.assert_close(rebuilt.get_parameter(name), value, rtol=2**-9, atol=2e-4, msg=name)
    pipeline = FacePipeline.load(run, ema=0.07)
    assert pipeline.guide is not None
    assert pipeline.denoiser is not None
    assert weights_hash(pipeline.denoiser) == weights_hash(rebuilt)
    with pytest.raises(UserError, match=r"ema=0\.07 has no effect on a run of stage 1"):
        FacePipeline.load("outputs/vae/faces", ema=0.07)


@pytest.mark.ddp
def test_case_27_two_killed_processes_go_on_bit_for_bit(fork: Forker) -> None:
    settings = [*VAE, "data.batch_size=4"]
    straight = fork.start_ranks(*settings, "name=straight")
    assert [rank.wait() for rank in straight] == [0, 0]
    assert "sync_dist" not in straight[0].said
    ranks = fork.start_ranks(*settings, *killed(step=7), "+callbacks.kill.rank=1", "name=killed")
    assert ranks[1].wait() == -9
    assert ranks[0].wait() != 0  # it cannot continue alone
    assert checkpoint("vae/killed")["global_step"] == 6
    assert [rank.wait() for rank in fork.start_ranks(*settings, "name=killed", "resume=true")] == [0, 0]
    assert_same_end("vae/killed", "vae/straight")


def test_case_28_a_kill_in_the_middle_of_a_save_leaves_the_checkpoint_before_it(
    straight: Callable[..., Path], fork: Forker, tmp_path: Path
) -> None:
    kill = ["+callbacks.kill._target_=helpers.probes.KillInSave", "+callbacks.kill.step=5"]
    elsewhere = tmp_path / "tmp"
    elsewhere.mkdir()
    status, said = fork.run(*VAE, *kill, "name=killed", TMPDIR=str(elsewhere))
    assert status == -9, said
    folder = Path("outputs/vae/killed/checkpoints")
    assert (folder / "last.ckpt.partial").exists()
    assert checkpoint("vae/killed")["global_step"] == 3
    status, said = fork.run(*VAE, "name=killed", "resume=true")
    assert status == 0, said
    assert not list(folder.glob("*.partial"))
    assert not list(elsewhere.glob("*.ckpt*"))
    assert_same_end("vae/killed", straight(*VAE))


def test_case_30_last_is_the_last_and_best_the_best(fork: Forker) -> None:
    # With next to no learning rate nothing gets better, so that the first is the best.
    status, said = fork.run(*VAE, "name=run", "model.optimizer.lr=1e-30", "trainer.val_check_interval=4")
    assert status == 0, said
    losses = {int(step): float(loss) for step, loss in validations("vae/run")}
    assert min(losses, key=lambda step: losses[step]) == 3  # counted from 0
    assert checkpoint("vae/run", "best")["global_step"] == 4
    assert checkpoint("vae/run")["global_step"] == 14


def test_case_32_going_on_from_nothing_is_an_error_or_said(fork: Forker) -> None:
    status, said = fork.run(*TINY_VAE, *SHORT, "name=new", "resume=true")
    assert status == 2
    assert "last.ckpt to resume from" in said
    assert "resume=auto" in said
    assert not Path("outputs/vae/new").exists()
    status, said = fork.run(*TINY_VAE, *SHORT, "name=new", "resume=auto")
    assert status == 0, said
    assert "starting from scratch" in said


@pytest.fixture(scope="module")
def done(warm: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workplace with a finished run."""
    place = tmp_path_factory.mktemp("done")
    status, said = Forker(place).run(*VAE, "name=done")
    assert status == 0, said
    return place


@pytest.fixture
def copied(done: Path, workplace: Path) -> Path:
    """Return a copy of that folder, to resume in."""
    shutil.copytree(done, workplace, dirs_exist_ok=True)
    return workplace


def best_of(state: dict[str, Any]) -> dict[str, Any]:
    """Return the best score in a checkpoint."""
    return next(value for value in state["callbacks"].values() if value.get("monitor") == "val/loss")


def test_case_33_a_run_that_was_moved_keeps_its_best(copied: Path, fork: Forker) -> None:
    Path("outputs/vae/done").rename("moved")
    folder = Path("moved/checkpoints")
    state = checkpoint(Path("moved"))
    best = best_of(state)
    best["best_model_score"] = torch.tensor(0.0)  # which nothing can beat
    best["best_k_models"] = dict.fromkeys(best["best_k_models"], torch.tensor(0.0))
    torch.save(state, folder / "last.ckpt")
    result = Path("moved/result.json")  # its loss is of a validation that is later than the checkpoint
    result.write_text(json.dumps(json.loads(result.read_text()) | {"val/best_loss": 0.0}))
    before = [(folder / name).read_bytes() for name in ("best.ckpt", "best_vae.pth")]
    status, said = fork.run(*VAE, "name=done", "resume=true", "hydra.run.dir=moved", "trainer.max_steps=16")
    assert status == 0, said
    after = best_of(checkpoint(Path("moved")))
    assert after["best_model_score"] == 0
    assert [(folder / name).read_bytes() for name in ("best.ckpt", "best_vae.pth")] == before


def test_case_33_a_run_that_goes_on_is_the_same_run_of_wandb(fork: Forker) -> None:
    for limit in (2, 4):
        status, said = fork.run(
            *TINY_VAE, *SHORT, "logger=wandb", "name=logged", "resume=auto", f"trainer.max_steps={limit}"
        )
        assert status == 0, said
    runs = list(Path("outputs/vae/logged/wandb").glob("offline-run-*"))
    assert len(runs) == 2
    assert len({run.name.rpartition("-")[2] for run in runs}) == 1


def test_case_34_a_changed_config_is_told_and_what_changes_the_outcome_must_be_forced(
    copied: Path, fork: Forker
) -> None:
    harmful = ["model.optimizer.lr=0.002", "data.batch_size=4", "seed=5", "trainer.max_steps=15"]
    for resume in ("auto", "true"):
        status, said = fork.run(*VAE, *harmful, "name=done", f"resume={resume}")
        assert status == 2
        assert "(data.batch_size: 8 -> 4; model.optimizer.lr: 0.0006 -> 0.002; seed: 0 -> 5)" in said
        assert "resume=force" in said
    config = Path("outputs/vae/done/config.yaml")
    before = config.read_bytes()
    status, said = fork.run(*VAE, "model.autoencoder.channels=16", "name=done", "resume=force")
    assert (status, "does not fit the network" in said, config.read_bytes() == before) == (2, True, True)
    status, said = fork.run(*VAE, "model.optimizer._target_=torch.optim.Adam", "name=done", "resume=force")
    assert (status, "torch.optim.AdamW -> torch.optim.Adam). Restore" in said, "use resume=force" in said) == (
        2, True, False,
    )  # fmt: skip
    assert checkpoint("vae/done")["global_step"] == 14
    harmless = ["trainer.max_steps=15", "callbacks.last.every_n_train_steps=4"]
    status, said = fork.run(*VAE, *harmless, "name=done", "resume=true")
    assert status == 0, said
    assert "trainer.max_steps: 14 -> 15" in said
    assert "callbacks.last.every_n_train_steps: 3 -> 4" in said
    assert checkpoint("vae/done")["global_step"] == 15
    status, said = fork.run(*VAE, *harmful[:1], "trainer.max_steps=16", "name=done", "resume=force")
    assert status == 0, said
    state = checkpoint("vae/done")
    assert state["global_step"] == 16
    (group,), (schedule,) = state["optimizer_states"][0]["param_groups"], state["lr_schedulers"]
    assert group["initial_lr"] == schedule["base_lrs"][0] == 0.002
    assert group["lr"] == pytest.approx(schedule["_last_lr"][0])


NEW_MEANINGS = {
    "vae": (["model.loss.reconstruction=mse"], ["model.loss.reconstruction=l1"], "loss.reconstruction: mse -> l1"),
    "ldm": (["model/weighting=min_snr"], [], "model.loss.weighting._target_: latentfaces.diffusion.MinSNRWeighting"),
    "held out": (["data.num_val_images=1"], ["data.num_val_images=9"], "data.num_val_images: 1 -> 9"),
}


@pytest.mark.parametrize(("before", "after", "change"), NEW_MEANINGS.values(), ids=NEW_MEANINGS.keys())
def test_case_34_a_new_meaning_of_the_loss_resets_best_weights_and_patience(
    before: list[str], after: list[str], change: str, fork: Forker, trained_vae: None
) -> None:
    stage = "ldm" if "model/weighting=min_snr" in before else "vae"
    settings = [*(TINY_LDM if stage == "ldm" else TINY_VAE), *SHORT, "name=run"]
    assert fork.run(*settings, *before)[0] == 0
    path = Path(f"outputs/{stage}/run/checkpoints/last.ckpt")
    state = torch.load(path, weights_only=True)
    for values in state["callbacks"].values():  # scores of the old meaning that nothing can beat
        for name in values.keys() & {"best", "best_score", "best_model_score"}:
            values[name] = torch.tensor(-9.0) if isinstance(values[name], torch.Tensor) else -9.0
        if "wait_count" in values:
            values["wait_count"] = 19
    torch.save(state, path)
    status, said = fork.run(*settings, *after, "trainer.max_steps=8", "resume=true")
    assert status == 2
    assert change in said
    status, said = fork.run(*settings, *after, "trainer.max_steps=8", *killed(step=5), "resume=force")
    assert status == -9, said  # before it could save anything
    status, said = fork.run(*settings, *after, "trainer.max_steps=8", "resume=true")
    assert status == 0, said
    assert "val/loss has a new meaning (" in said
    assert change in said
    state = checkpoint(f"{stage}/run")
    assert state["global_step"] == 8
    lowest = min(float(loss) for step, loss in validations(f"{stage}/run") if int(step) >= 4)
    assert best_of(state)["best_model_score"].item() == pytest.approx(lowest)
    assert json.loads(path.parents[1].joinpath("result.json").read_text())["val/best_loss"] == pytest.approx(lowest)


def test_case_34_what_is_forced_is_what_the_optimisers_learn_by(fork: Forker, squeezenet: Path) -> None:
    settings = [*TINY_VAE, *SHORT, *ADVERSARIAL, f"model.loss.perceptual.weights={squeezenet}", "name=forced"]
    settings += ["model.lr_schedule.warmup_steps=0", "model.lr_schedule.decay_share=0"]
    status, said = fork.run(*settings)
    assert status == 0, said
    parts = ("model.optimizer", "model.adversary.optimizer")
    changed = [f"{part}.{value}" for part in parts for value in ("lr=0.003", "betas=[0.5,0.6]", "weight_decay=0.25")]
    status, said = fork.run(*settings, *changed, "trainer.max_steps=6", "resume=force")
    assert status == 0, said
    state = checkpoint("vae/forced")
    for optimizer in (state["optimizer_states"][0], state["adversary"]["optimizer"]):
        (group,) = optimizer["param_groups"]
        assert (group["lr"], list(group["betas"]), group["weight_decay"]) == (0.003, [0.5, 0.6], 0.25)


def test_case_35_two_trainings_never_share_a_folder(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentfaces.cli.resume.PATIENCE", 0.1)
    folder = workplace / "outputs/vae/taken"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        for _ in range(2):  # the first leaves the lock where it is
            said = refused("train.py", *TINY_VAE, *SHORT, "name=taken", "resume=auto")
            assert f"Another process trains in {folder}" in said
    run_command("train.py", *TINY_VAE, *SHORT, "name=taken", "resume=auto")  # it has ended


def test_case_35_a_run_that_its_time_has_ended_says_so(fork: Forker) -> None:
    settings = [*TINY_VAE, *SHORT, "trainer.max_steps=-1", "trainer.max_time=00:00:00:02", "name=timed", "resume=auto"]
    for _ in range(2):
        status, said = fork.run(*settings)
        assert status == 0, said
    assert "timed is finished" in said
    assert "raise trainer.max_time" in said


def test_case_35_a_finished_run_is_left_as_it_is(copied: Path, fork: Forker) -> None:
    result = Path("outputs/vae/done/result.json")
    before = result.read_bytes()
    status, said = fork.run(*VAE, "name=done", "resume=auto")
    assert status == 0, said
    assert "raise trainer.max_steps" in said
    assert result.read_bytes() == before
    result.write_bytes(before[: len(before) // 2])
    assert not open_run(result.parent).finished
    result.write_text('{"steps": 7}')  # its limit was raised, and it was killed before its test
    status, said = fork.run(*VAE, "name=done", "resume=auto")
    assert status == 0, said
    assert json.loads(result.read_text())["steps"] == 14
    for path in result.parent.glob("checkpoints/*.ckpt"):
        path.unlink()
    status, said = fork.run(*VAE, "name=done", "resume=auto")
    assert status == 2
    assert "is finished and has no checkpoint to resume from" in said


def test_case_35_a_finished_run_that_is_trained_further_is_logged_and_timed_as_one(fork: Forker) -> None:
    result, log_all = Path("outputs/vae/further/result.json"), "trainer.log_every_n_steps=1"
    for limit in (4, 8):  # validations are due at both
        status, said = fork.run(*TINY_VAE, *SHORT, log_all, "name=further", "resume=auto", f"trainer.max_steps={limit}")
        assert status == 0, said
        if limit == 4:
            state = checkpoint("vae/further")
            state["callbacks"]["TimeLimit"]["time_elapsed"]["train"] = 6000.0
            torch.save(state, "outputs/vae/further/checkpoints/last.ckpt")
    for name in ("train/loss", "lr-AdamW"):
        assert [row["step"] for row in rows_of("vae/further") if row[name]] == [str(step) for step in range(8)], name
    (rate,) = [float(row["lr-AdamW"]) for row in rows_of("vae/further") if row["step"] == "4" and row["lr-AdamW"]]
    assert rate == pytest.approx(6e-4 * 5 / 201)  # in the warm-up of 200 steps; at the first limit it was 0
    assert 100 < json.loads(result.read_text())["minutes"] < 105


def test_case_35_patience_survives_a_kill_and_an_early_stop_a_resume(fork: Forker) -> None:
    # With next to no learning rate nothing gets better.
    settings = [*VAE, "model.optimizer.lr=1e-30", "callbacks.early_stopping.patience=3", "trainer.val_check_interval=2"]
    kill_and_resume(fork, settings, [{"step": 7, "every": 1}])
    assert checkpoint("vae/killed")["global_step"] == 8  # the lowest loss at step 2, then three that are not lower
    status, said = fork.run(*settings, "name=killed", "resume=auto")
    assert status == 0
    assert "callbacks.early_stopping.patience=6" in said
    assert checkpoint("vae/killed")["global_step"] == 8
    status, said = fork.run(*settings, "name=killed", "resume=auto", "callbacks.early_stopping.patience=5")
    assert checkpoint("vae/killed")["global_step"] == 12
