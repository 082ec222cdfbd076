"""Runs that a signal stops: cases 25, 26, 37."""

import os
import shlex
import signal
import time
from pathlib import Path

import pytest
from helpers.commands import SHORT, TINY_VAE
from helpers.forked import Forker, Running
from helpers.states import assert_same_end, checkpoint

from latentfaces.signals import Stopped, handle_signals
from latentfaces.training.callbacks import GracefulStop

# 36 pictures in batches of 8 are 4 steps an epoch. Only a stop makes checkpoints.
STEPS = ["trainer.max_steps=14", "trainer.val_check_interval=5", "callbacks.last.every_n_train_steps=100"]
VAE = [*TINY_VAE, *SHORT, *STEPS, "model.loss.reconstruction=mse"]
STATUS = {"SIGINT": 130, "SIGUSR1": 138, "SIGUSR2": 140, "SIGTERM": 143}


def stopped(step: int, signal: str = "SIGTERM", hook: str = "on_train_batch_start", rank: int = 0) -> list[str]:
    """Settings of a run that gets a signal."""
    options = {"step": step, "signal": signal, "hook": hook, "rank": rank}
    return [
        "+callbacks.stop._target_=helpers.probes.SignalAt",
        *(f"+callbacks.stop.{k}={v}" for k, v in options.items()),
    ]


def line_to_go_on(said: str) -> list[str]:
    """Return the arguments of the command that a stopped run prints."""
    (line,) = [line for line in said.splitlines() if line.startswith("python ")]
    _, script, *arguments = shlex.split(line)
    assert script.endswith("train.py")
    return arguments


@pytest.fixture(scope="module")
def straight(warm: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing has interrupted."""
    place = tmp_path_factory.mktemp("straight")
    status, said = Forker(place).run(*VAE, "name=straight")
    assert status == 0, said
    return place / "outputs/vae/straight"


@pytest.mark.parametrize("name", STATUS)
def test_case_25_a_signal_in_a_step_saves_it_and_tells_how_to_go_on(name: str, straight: Path, fork: Forker) -> None:
    status, said = fork.run(*VAE, *stopped(step=6, signal=name), "name=a b")
    assert status == STATUS[name], said
    assert "Traceback" not in said
    assert checkpoint("vae/a b")["global_step"] == 7  # the step that it came in was taken
    arguments = line_to_go_on(said)
    assert [argument for argument in arguments if "resume" in argument] == ["resume=auto"]
    if name == "SIGTERM":
        status, said = fork.run(*[argument for argument in arguments if "callbacks.stop" not in argument])
        assert status == 0, said
        assert_same_end("vae/a b", straight)


@pytest.mark.parametrize("hook", ["on_validation_batch_start", "on_validation_end", "on_validation_start"])
def test_case_26_a_signal_in_a_validation_saves_the_weights_and_not_their_average(
    hook: str, straight: Path, fork: Forker
) -> None:
    status, said = fork.run(*VAE, *stopped(step=5, hook=hook), "name=stopped")
    assert status == 143, said
    assert checkpoint("vae/stopped")["global_step"] == (6 if hook == "on_validation_end" else 5)
    status, said = fork.run(*VAE, "name=stopped", "resume=true")
    assert status == 0, said
    assert_same_end("vae/stopped", straight)


@pytest.mark.parametrize("hook", ["on_sanity_check_start", "on_test_batch_start"])
def test_case_26_a_signal_outside_training_has_nothing_to_save(hook: str, straight: Path, fork: Forker) -> None:
    settings = [*VAE, "trainer.num_sanity_val_steps=1"]
    step = 14 if "test" in hook else 0
    status, said = fork.run(*settings, *stopped(step, hook=hook), "name=stopped")
    assert status == 143, said
    assert Path("outputs/vae/stopped/checkpoints/last.ckpt").exists() == (step == 14)
    status, said = fork.run(*settings, "name=stopped", "resume=auto")
    assert status == 0, said
    assert Path("outputs/vae/stopped/result.json").exists()
    assert_same_end("vae/stopped", straight)


def test_case_25_a_signal_before_training_ends_at_once_and_handlers_are_given_back(tmp_path: Path) -> None:
    stop = GracefulStop(tmp_path / "last.ckpt")
    before = {name: signal.getsignal(getattr(signal, name)) for name in STATUS}
    with pytest.raises(Stopped) as stopped, handle_signals(stop.note):  # noqa: PT012
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(5)
        pytest.fail("the signal was ignored")
    assert stopped.value.code == 138
    assert {name: signal.getsignal(getattr(signal, name)) for name in STATUS} == before


def test_case_25_no_callbacks_do_not_cost_a_stopped_run(fork: Forker) -> None:
    settings = [option for option in VAE if not option.startswith("callbacks.")]
    status, said = fork.run(*settings, "callbacks=none", *stopped(step=6), "name=bare")
    assert status == 143, said
    assert checkpoint("vae/bare")["global_step"] == 7
    status, said = fork.run(*settings, "callbacks=none", "name=bare", "resume=true")
    assert status == 0, said


def test_case_25_a_second_interrupt_ends_at_once(fork: Forker) -> None:
    run = fork.start(*VAE, "+callbacks.sleep._target_=helpers.probes.Sleep", "name=stuck")
    run.wait_for(Path("asleep").exists)
    run.send(signal.SIGINT)
    run.wait_for(lambda: "Ctrl-C ends at once" in run.said)
    started = time.monotonic()
    run.send(signal.SIGINT)
    assert run.wait() == -signal.SIGINT
    assert time.monotonic() - started < 5


def test_case_25_a_stop_in_the_middle_of_an_accumulated_step_waits_for_its_end(fork: Forker) -> None:
    settings = [*VAE, "trainer.accumulate_grad_batches=2", "trainer.max_steps=6"]
    assert fork.run(*settings, "name=straight")[0] == 0
    status, said = fork.run(*settings, *stopped(step=3), "name=stopped")  # in the first of two batches
    assert status == 143, said
    assert checkpoint("vae/stopped")["global_step"] == 4
    assert fork.run(*settings, "name=stopped", "resume=true")[0] == 0
    assert_same_end("vae/stopped", "vae/straight")


def test_case_25_a_stopped_job_stops_its_sweep(fork: Forker) -> None:
    status, said = fork.run("-m", *VAE, *stopped(step=6), "name=sweep", "annealing=linear,cyclical")
    assert status == 143, said
    assert not Path("outputs/sweeps/sweep/1").exists()
    arguments = line_to_go_on(said)
    status, said = fork.run(*[argument for argument in arguments if "callbacks.stop" not in argument])
    assert status == 0, said
    assert Path("outputs/sweeps/sweep/0/result.json").exists()


def test_case_25_slurm_takes_a_stopped_job_back(fork: Forker, tmp_path: Path) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "77", "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    settings = [*VAE, "name=queued", "requeue=true", "resume=auto"]
    for step, sent in ((3, "SIGUSR1"), (6, "SIGTERM")):  # SIGTERM is the end of the job
        status, said = fork.run(*settings, *stopped(step, signal=sent), **slurm)
        assert status == STATUS[sent], said
        assert (tmp_path / "asked").read_text() == "requeue 77\n"
        assert checkpoint("vae/queued")["global_step"] == step + 1
    status, said = fork.run(*VAE, "name=queued", "requeue=true")
    assert status == 2
    assert "resume=auto" in said


@pytest.mark.ddp
@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_validation_batch_start"])
def test_case_37_a_signal_to_one_process_ends_both_with_one_checkpoint(hook: str, fork: Forker) -> None:
    settings = [*VAE, "data.batch_size=4", "trainer.max_steps=8"]

    def ends(ranks: list[Running]) -> list[int]:
        return [rank.wait() for rank in ranks]

    ranks = fork.start_ranks(*settings, *stopped(step=5, hook=hook, rank=1), "name=stopped")
    assert ends(ranks) == [143, 143], ranks[0].said + ranks[1].said
    assert "resume=auto" in ranks[0].said
    assert "resume=auto" not in ranks[1].said
    assert checkpoint("vae/stopped")["global_step"] == (6 if "train" in hook else 5)
    assert ends(fork.start_ranks(*settings, "name=stopped", "resume=true")) == [0, 0]
    assert ends(fork.start_ranks(*settings, "name=straight")) == [0, 0]
    assert_same_end("vae/stopped", "vae/straight")
