"""Checkpoints that are damaged, find no room, or would hold no numbers: cases 21, 23, 29, 31."""

import json
import random
import shutil
from collections.abc import Callable
from itertools import chain, repeat
from pathlib import Path

import pytest
import torch
from helpers.commands import SHORT, TINY_LDM, TINY_VAE, refused
from helpers.forked import Forker
from helpers.states import assert_equal, assert_same_end, checkpoint, ema_of, rows_of

from latentfaces.data.datasets import TrainBatches
from latentfaces.data.pack import open_pack
from latentfaces.training import damage

VAE = [*TINY_VAE, *SHORT]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def write_text(path: Path) -> None:
    path.write_text("<html>404 not found</html>")


def flip_a_bit(path: Path) -> None:
    """In the middle of the weights."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGES = [truncate, empty, write_text, flip_a_bit]


@pytest.fixture(scope="module")
def two_saves(warm: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workplace with a run that was killed after the checkpoints of steps 2 and 4."""
    place = tmp_path_factory.mktemp("saved")
    kill = ["+callbacks.kill._target_=helpers.probes.SignalAt", "+callbacks.kill.step=5"]
    options = ["callbacks.last.every_n_train_steps=2", "trainer.max_steps=6", "trainer.val_check_interval=100"]
    status, said = Forker(place).run(*VAE, *options, *kill, "name=killed")
    assert status == -9, said
    return place


@pytest.mark.parametrize("spoil", DAMAGES)
def test_case_31_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    spoil: Callable[[Path], None], two_saves: Path, workplace: Path, fork: Forker
) -> None:
    shutil.copytree(two_saves, workplace, dirs_exist_ok=True)
    last = Path("outputs/vae/killed/checkpoints/last.ckpt")
    spoil(last)
    settings = [*VAE, "trainer.max_steps=6", "trainer.val_check_interval=100", "name=killed"]
    status, said = fork.run(*settings, "resume=true")
    assert status == 2
    assert f"{last.resolve()} is damaged" in said
    assert "last.previous.ckpt with resume=auto" in said
    assert "Traceback" not in said
    status, said = fork.run(*settings, "resume=auto")
    assert status == 0, said
    assert f"{last.resolve()} is damaged" in said
    assert f"Resuming from {last.resolve().with_stem('last.previous')}" in said
    assert checkpoint("vae/killed")["global_step"] == 6


def test_case_31_nothing_is_begun_anew_where_all_checkpoints_are_damaged(
    two_saves: Path, workplace: Path, fork: Forker
) -> None:
    shutil.copytree(two_saves, workplace, dirs_exist_ok=True)
    for path in Path("outputs/vae/killed/checkpoints").glob("*.ckpt"):
        truncate(path)
    status, said = fork.run(*VAE, "trainer.max_steps=6", "trainer.val_check_interval=100", "name=killed", "resume=auto")
    assert status == 2
    assert "start again" in said


def test_case_31_no_flipped_bit_goes_unseen(tmp_path: Path) -> None:
    content = {"weights": torch.randn(10_000), "names": ["a", "b"], "step": 3}
    path = tmp_path / "last.ckpt"
    torch.save(content, path)
    assert damage(path) is None
    whole, draw = path.read_bytes(), random.Random(31)
    unseen = 0
    for place in draw.sample(range(len(whole)), 300):
        spoiled = bytearray(whole)
        spoiled[place] ^= 1 << draw.randrange(8)
        path.write_bytes(spoiled)
        if damage(path) is None:
            unseen += 1
            assert_equal(torch.load(path, weights_only=True), content)  # it was in what only fills up
    assert unseen < 30


def test_case_29_a_full_disk_costs_a_checkpoint_and_not_the_run(fork: Forker) -> None:
    options = ["callbacks.last.every_n_train_steps=3", "trainer.val_check_interval=5", "trainer.max_steps=12"]
    full = ["+callbacks.full._target_=helpers.probes.FullDisk", "+callbacks.full.first=4", "+callbacks.full.last=8"]
    status, said = fork.run(*VAE, *options, *full, "name=full")
    assert status == 0, said
    assert "Traceback" not in said
    folder = Path("outputs/vae/full/checkpoints")
    for name in ("last.ckpt", "best.ckpt", "best_vae.pth"):  # of steps 6, 5 and 5
        assert f"{folder.resolve() / name} was not written: file too large" in said, name
    assert said.count("MB are free there") == 3
    assert checkpoint("vae/full")["global_step"] == 12
    assert (folder / "best_vae.pth").exists()  # of step 10
    assert not list(folder.glob("*.partial"))


def test_case_29_a_full_disk_ends_the_run_if_so_chosen_and_leaves_the_checkpoint_before(fork: Forker) -> None:
    options = ["callbacks.last.every_n_train_steps=3", "trainer.val_check_interval=100", "on_full_disk=fail"]
    full = ["+callbacks.full._target_=helpers.probes.FullDisk", "+callbacks.full.first=4", "+callbacks.full.last=100"]
    status, said = fork.run(*VAE, *options, *full, "trainer.max_steps=12", "name=full")
    assert status == 2, said
    assert "last.ckpt was not written" in said
    assert "Traceback" not in said
    assert checkpoint("vae/full")["global_step"] == 3
    assert not list(Path("outputs").rglob("*.partial"))


def full_disk(first: int, last: int) -> list[str]:
    """Return the overrides of a run that cannot write any file from step `first` until step `last`."""
    options = {"_target_": "helpers.probes.FullDisk", "first": first, "last": last, "size": 0}
    return [f"+callbacks.full.{key}={value}" for key, value in options.items()]


def written(run: str) -> dict[str, bytes]:
    """Return previews, tensors.csv and the rows of metrics.csv of a run, without the order of its columns."""
    folder = Path("outputs") / run
    rows = [sorted((key, value) for key, value in row.items() if value) for row in rows_of(run)]
    files = [folder / "tensors.csv", *folder.glob("images/step_*.png")]
    return {path.name: path.read_bytes() for path in files} | {"metrics.csv": repr(rows).encode()}


@pytest.mark.parametrize("stage", ["vae", "ldm"])
def test_case_29_every_write_of_a_training_survives_a_full_disk(stage: str, fork: Forker, trained_vae: None) -> None:
    options = [*(VAE if stage == "vae" else [*TINY_LDM, *SHORT, "callbacks.ema.snapshots=6"]), "trainer.max_steps=12"]
    options += ["callbacks.last.every_n_train_steps=3", "trainer.val_check_interval=4", "resume=auto"]
    options += ["callbacks.tensor_stats.every_n_steps=3", "callbacks.report.every_n_minutes=0"]
    assert fork.run(*options, "name=straight")[0] == 0

    # Rows wait until there is room again.
    status, said = fork.run(*options, *full_disk(5, 10), "name=roomy")
    assert status == 0, said
    assert "Traceback" not in said
    assert_same_end(f"{stage}/roomy", f"{stage}/straight")
    rows, expected = (written(f"{stage}/{name}")["metrics.csv"] for name in ("roomy", "straight"))
    assert rows == expected

    # A run that ends on a full disk, which cannot take its messages either, is resumed.
    assert fork.run(*options, *full_disk(5, 100), "name=full")[0] != 0
    assert not Path(f"outputs/{stage}/full/result.json").exists()
    assert checkpoint(f"{stage}/full")["global_step"] == 3
    status, said = fork.run(*options, "name=full")
    assert status == 0, said
    assert_same_end(f"{stage}/full", f"{stage}/straight")
    assert written(f"{stage}/full") == written(f"{stage}/straight")


def poison(step: int, what: str = "gradient", rank: int = 0, name: str = "poison") -> list[str]:
    """Settings of a run in which something is NaN in one step."""
    options = {"_target_": "helpers.probes.Poison", "step": step, "what": what, "rank": rank}
    return [f"+callbacks.{name}.{key}={value}" for key, value in options.items()]


def photos_at(step: int, rank: int = 0, num_ranks: int = 1, batch_size: int = 8) -> list[str]:
    """Return the names of the images of a step: of 36 of the 48 drawn faces, in an uninterrupted run of seed 0."""
    pack = open_pack(Path("data/synthetic-48-16"))
    batches = TrainBatches(36, batch_size, seed=0, mirror=True, rank=rank, num_ranks=num_ranks)
    *_, items = (draws.items for _, draws in zip(range(step + 1), chain.from_iterable(repeat(batches)), strict=False))
    return [pack.manifest["names"][row] for row in pack.train_indices[items]]


@pytest.mark.parametrize("clip", ["1.0", "null"])
def test_case_21_a_gradient_that_is_no_number_stops_training_before_its_step(clip: str, fork: Forker) -> None:
    last = "callbacks.last.every_n_train_steps=1"
    options = [last, f"trainer.gradient_clip_val={clip}", "trainer.log_every_n_steps=50", "trainer.max_steps=20"]
    status, said = fork.run(*VAE, *poison(step=5), *options, "name=bad")
    assert status == 2
    assert f"the gradient's norm is nan at step 5, in a batch of {', '.join(photos_at(5))}: training stops" in said
    assert "on_nonfinite=skip" in said
    assert "Traceback" not in said
    kept = checkpoint("vae/bad")
    assert kept["global_step"] == 5
    assert all(value.isfinite().all() for value in kept["state_dict"].values())
    assert all(value.isfinite().all() for value in ema_of(kept)["average"])


@pytest.mark.parametrize("log_every", [1, 50])  # where terms are looked at for the log, and where they are not
def test_case_21_a_loss_that_is_no_number_is_told_with_its_terms_and_photos(log_every: int, fork: Forker) -> None:
    options = ["callbacks.last.every_n_train_steps=1", f"trainer.log_every_n_steps={log_every}", "trainer.max_steps=20"]
    status, said = fork.run(*VAE, *poison(step=5, what="picture"), *options, "data.batch_size=12", "name=bad")
    assert status == 2
    assert "Traceback" not in said
    photos = ", ".join(photos_at(5, batch_size=12)[:8])
    terms = "train/loss is nan and train/reconstruction is nan and train/kl is nan"
    assert f"{terms} at step 5, in a batch of {photos} and 4 more: training stops" in said
    assert checkpoint("vae/bad")["global_step"] == 5


SKIP = ["on_nonfinite=skip", "trainer.val_check_interval=4"]


def test_case_21_a_step_that_is_left_out_changes_nothing_and_a_kill_after_it_neither(fork: Forker) -> None:
    options = [*SKIP, "callbacks.last.every_n_train_steps=1", "trainer.max_steps=9", *poison(step=5, what="picture")]
    status, said = fork.run(
        *VAE, *options, "+callbacks.kill._target_=helpers.probes.SignalAt", "+callbacks.kill.step=6"
    )
    assert status == -9, said
    assert f"in a batch of {', '.join(photos_at(5))}: the step is skipped (1 of at most max_skipped_steps=10)" in said
    (folder,) = Path("outputs/vae").iterdir()
    before, after = checkpoint(folder, "last.previous"), checkpoint(folder)
    assert [state["global_step"] for state in (before, after)] == [5, 6]
    assert_equal(before["state_dict"], after["state_dict"])
    assert_equal(before["optimizer_states"][0]["state"], after["optimizer_states"][0]["state"])
    assert_equal(ema_of(before)["average"], ema_of(after)["average"])

    status, said = fork.run(*VAE, *options, f"name={folder.name}", "resume=true")
    assert status == 0, said
    status, said = fork.run(*VAE, *options, "name=straight")
    assert status == 0, said
    assert_same_end(folder, "vae/straight")
    assert checkpoint(folder)["num_skipped"] == 1
    assert json.loads((folder / "result.json").read_text())["skipped_steps"] == 1
    rows = [row for row in rows_of("vae/straight") if row["train/loss"]]
    assert [row["train/skipped_steps"] for row in rows] == [""] * 6 + ["1.0"] * 3
    for name in ("train/loss", "train/gradient_norm"):
        assert [row[name] == "nan" for row in rows] == [step == 5 for step in range(9)]


def test_case_21_more_steps_left_out_than_allowed_end_training(fork: Forker) -> None:
    twice = [*poison(step=2), *poison(step=4, name="again")]
    last = "callbacks.last.every_n_train_steps=1"
    status, said = fork.run(*VAE, *SKIP, *twice, "max_skipped_steps=1", last, "trainer.max_steps=9", "name=bad")
    assert status == 2
    assert "the gradient's norm is nan at step 2" in said
    assert "is nan at step 4" in said
    assert "after max_skipped_steps=1 skipped steps: training stops" in said
    assert checkpoint("vae/bad")["global_step"] == 4


@pytest.mark.ddp
def test_case_21_two_processes_agree_on_a_step_that_is_left_out(fork: Forker) -> None:
    settings = [*VAE, *SKIP, *poison(step=5, what="picture", rank=1), "data.batch_size=4", "trainer.max_steps=8"]
    ranks = fork.start_ranks(*settings, "trainer.log_every_n_steps=50", "name=both")
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].said + ranks[1].said
    photos = ", ".join(photos_at(5, rank=1, num_ranks=2, batch_size=4))
    assert f"train/kl is nan at step 5, in a batch of {photos}: the step is skipped" in ranks[0].said
    assert "is skipped" not in ranks[1].said
    kept = checkpoint("vae/both")
    assert (kept["global_step"], kept["num_skipped"]) == (8, 1)
    assert all(value.isfinite().all() for value in kept["state_dict"].values())
    (steps,) = {int(state["step"]) for state in kept["optimizer_states"][0]["state"].values()}
    assert steps == 7


def test_case_21_leaving_out_is_refused_where_it_would_do_nothing(workplace: Path) -> None:
    assert "max_skipped_steps has no effect without" in refused("train.py", *VAE, "max_skipped_steps=3")
    assert "on_nonfinite=ignore is invalid: input should be 'skip' or 'fail'" in refused(
        "train.py", *VAE, "on_nonfinite=ignore"
    )
    assert "max_skipped_steps=0 is invalid: input should be greater than or equal to 1" in refused(
        "train.py", *VAE, "on_nonfinite=skip", "max_skipped_steps=0"
    )


def test_case_23_a_validation_that_gives_no_number_stops_training_and_is_never_the_best(fork: Forker) -> None:
    spoil = ["+callbacks.spoil._target_=helpers.probes.SpoilValidation", "+callbacks.spoil.step=4"]
    status, said = fork.run(*VAE, *spoil, "trainer.max_steps=8", "name=bad")
    assert status == 2
    assert "val/loss is nan at step 4" in said
    assert "Traceback" not in said
    assert checkpoint("vae/bad", "best")["global_step"] == 2
