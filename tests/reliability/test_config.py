"""Wrong overrides (cases 1, 2, 4 and 5): one line with key and fix, before anything is written."""

import json
from pathlib import Path

import pytest
from helpers.commands import SHORT, TINY_LDM, TINY_VAE, Command, refused, run_command


def refused_training(*arguments: str) -> str:
    """Type a training that is refused, with nothing left of it; what it says."""
    before = {path for path in Path().rglob("*") if path.is_file()}
    said = refused("train.py", *arguments)
    assert {path for path in Path().rglob("*") if path.is_file()} == before
    return said


UNKNOWN = {
    "data.bath_size=3": "data.batch_size",
    "trainer.device=4": "trainer.devices",
    "model.autoencoder.chanels=8": "model.autoencoder.channels",
    "nmae=faces": "name",
    "resolution=64": "data.resolution",
    "lr=1e-3": "model.optimizer.lr",
    "modle=vae": "model",
    "modle/loss=mse_kl": "model/loss",
    "calbacks=none": "callbacks",
    "loss=mse_kl": "model/loss",
    "model/autoencodr=tiny": "model/autoencoder",
}


@pytest.mark.parametrize("typed", UNKNOWN)
def test_case_01_a_key_that_does_not_exist_is_told_with_the_nearest_that_does(typed: str, workplace: Path) -> None:
    said = refused_training("model=vae", typed)
    assert said.startswith("error: Unknown ")
    assert said.endswith(f"{typed.partition('=')[0]}. Did you mean {UNKNOWN[typed]}?\n")


UNCOMPOSED = {
    "model=vea": "Unknown choice model=vea. Did you mean vae? Choices: fast, ldm, vae.",
    "~callbacks.previws": "Could not delete from config. 'callbacks.previws' does not exist.",
    "+model=3": "+model=3 is not a choice of this group. Leave it out.",
    "+callbacks=[1]": "+callbacks=[1] is not a choice of this group. Leave it out.",
    "experiment=null": "experiment=null is not a choice of this group. Leave it out.",
    "logger=NULL": "logger=NULL is not a choice of this group. Leave it out.",
    "model.autoencoder": "Cannot parse override model.autoencoder. Write KEY=VALUE",
    "data=3": "Unknown choice data=3. Choices: ffhq, folder,",
    "data=synthetic,ffhq": "Ambiguous value for argument 'data=synthetic,ffhq' 1. To use it as a list",
    "name=my, faces=new": "Cannot parse override name=my, faces=new. Write KEY=VALUE, or 'KEY",
    "trainer.max_steps=1e3": "trainer.max_steps=1e3 is invalid: value '1000.0' of type 'float'",
    "data.num_images=9": "Unknown key data.num_images for this choice of data. It belongs to data=synthetic.",
    "model.adversary.weight=1": "Unknown key model.adversary.weight.",
    "hydra.run.dir=/dev/null": "/dev/null: File exists. Choose another folder, or",
    "model/denoiser=tiny": "model/denoiser has no effect with the other choices",
}


@pytest.mark.parametrize("typed", UNCOMPOSED)
def test_case_01_what_makes_no_config_is_told_in_one_sentence_with_the_remedy(typed: str, workplace: Path) -> None:
    said = refused_training("model=vae", typed)
    assert said.startswith(f"error: {UNCOMPOSED[typed]}")
    assert said.count("\n") == 1
    assert list(workplace.iterdir()) == []


def test_case_01_an_option_that_does_not_exist_is_told_with_those_that_do(workplace: Path) -> None:
    said = refused_training("model=vae", "model/autoencoder=kl_f5")
    assert "kl_f5" in said
    assert "kl_f4" in said


WRONG = {
    "model.autoencoder.channels=abc": "model.autoencoder.channels=abc is invalid: input should be a valid integer",
    "trainer.max_steps=abc": "error: trainer.max_steps=abc is invalid: value 'abc' of type 'str' could not",
    "callbacks.early_stopping.patience=0": "callbacks.early_stopping.patience=0 is invalid: input should be greater",
    "data.batch_size=0": "data.batch_size=0 is invalid: input should be greater than or equal to 1",
    "data.num_val_images=0": "data.num_val_images=0 is invalid: input should be greater than or equal to 1",
    "data.resolution=18": "data.resolution=18 is no multiple of the VAE's factor 4. Use 16",
    "seed=-1": "seed=-1 is invalid: input should be greater than or equal to 0",
    "model.optimizer.lr=-1": "model.optimizer.lr=-1 is invalid: input should be greater than 0",
    "model.optimizer.betas=[0.9,1.5]": "model.optimizer.betas=[0.9, 1.5] is invalid: input should be less than 1",
    "model.optimizer.betas=[0.9]": "model.optimizer.betas=[0.9] is invalid: list should have at least 2 items",
    "model.optimizer.betas=0.9": "model.optimizer.betas=0.9 is invalid: input should be a valid list",
    "model.optimizer.lr=null": "model.optimizer.lr=None is invalid: input should be a valid number",
    "model.optimizer.weight_decay=-1": "model.optimizer.weight_decay=-1 is invalid: input should be greater than or",
    "model.optimizer.fused=maybe": "model.optimizer.fused=maybe is invalid: input should be a valid boolean",
    "model.lr_schedule.final=-1": "final=-1",
    "model.kl_weight.end=-1": "model.kl_weight.end=-1 must be from 0 to inf",
    "model.optimizer.lr=0": "model.optimizer.lr=0 is invalid: input should be greater than 0",
    "model.autoencoder.channels=0": "model.autoencoder.channels=0 is invalid: input should be greater than or equal",
    "model.autoencoder.latent_channels=0": "model.autoencoder.latent_channels=0 is invalid: input should be greater",
    "model.autoencoder.decoder_channels=0": "model.autoencoder.decoder_channels=0 is invalid: input should be greater",
    "model.autoencoder.patch_size=0": "model.autoencoder.patch_size=0 is invalid: input should be greater than or",
    "model.autoencoder.multipliers=[]": "model.autoencoder.multipliers=[] is invalid: value should have at least",
    "model.autoencoder.multipliers=[1,0]": "model.autoencoder.multipliers=[1, 0] is invalid: input should be greater",
    "trainer.min_steps=-5": "trainer.min_steps=-5 is invalid: input should be greater than or equal to 1",
    "data.seed=-1": "data.seed=-1 is invalid: input should be greater than or equal to 0",
    "callbacks.status=false": "callbacks.status=False is invalid. Use callbacks.status=null to leave it out.",
    "stage=ldm": "stage=... has no effect, since train.py sets it. Leave it out.",
    "pack=data": "pack=... has no effect, since train.py sets it. Leave it out.",
    "trainer.accumulate_grad_batches=0": "accumulate_grad_batches=0 is invalid: input should be greater than or equal",
    "trainer.precision=7": "trainer.precision=7 is invalid: input should be 'auto', '32-true',",
    "trainer.precision=null": "trainer.precision=None is invalid: input should be 'auto', '32-true',",
    "trainer.max_steps=0": "trainer.max_steps=0 is invalid: input should be -1, or greater than or equal to 1",
    "trainer.max_time=00:00:00:00": "trainer.max_time=00:00:00:00 is invalid: use days:hours:minutes:seconds",
    "trainer.val_check_interval=0": "trainer.val_check_interval=0 is invalid: input should be greater than 0",
    "trainer.val_check_interval=soon": "trainer: Invalid time format",
    "trainer.log_every_n_steps=0": "trainer.log_every_n_steps=0 is invalid: input should be greater than or equal to 1",
    "trainer.gradient_clip_val=nan": "trainer.gradient_clip_val=nan is invalid: input should be a finite number",
    "trainer.deterministic=abc": "trainer.deterministic=abc is invalid: input should be a valid boolean",
    "trainer.fast_dev_run=true": "Unknown key trainer.fast_dev_run",
    "trainer.sync_batchnorm=true": "Unknown key trainer.sync_batchnorm",
    "model.optimizer.lr=fast": "model.optimizer.lr=fast is invalid: input should be a valid number",
    "data.resolution=4": "data.resolution=4 is invalid: input should be greater than or equal to 8",
    "data.val_every=1": "data.val_every=1 is invalid: input should be greater than or equal to 2",
    "+foo=1": "Unknown key foo.",
    "~logger": "logger.csv is missing",
    "resume=auto": "resume=auto finds no earlier run without name=... Add it.",
    "trainer.strategy=fsdp": "trainer.strategy=fsdp is a strategy of Lightning alone. Use strategy=...",
    "logger.wandb.offline=flase": "logger.wandb.offline=flase is invalid: input should be a valid boolean",
    "+trainer.foo=1": "Unknown key trainer.foo.",
    "model.kl_weight=3": "model.kl_weight=3 is invalid: input should be a dictionary or an instance of",
    "data.folder=/dev/null": "/dev/null/synthetic",
    "data.num_images=8": "Add images or lower data.batch_size",
    "model.autoencoder=kl_f8": "model.autoencoder is a group. Use model/autoencoder=kl_f8",
    "name=a/b": "name=a/b must name a folder in outputs/vae",
}


@pytest.mark.parametrize("typed", WRONG)
def test_case_02_a_value_of_the_wrong_type_or_range_is_told_with_its_key_and_what_fits(
    typed: str, workplace: Path
) -> None:
    assert WRONG[typed] in refused_training("model=vae", "model/autoencoder=tiny", "data=synthetic", typed)
    assert list(workplace.iterdir()) == []


ADVERSARIES = ("start_step=-1", "weight=-1", "max_adaptive_weight=0", "discriminator.channels=0")


@pytest.mark.parametrize("value", ADVERSARIES)
def test_case_02_a_value_of_the_adversary_out_of_range_is_rejected_with_its_key(value: str, workplace: Path) -> None:
    said = refused_training("model=vae", "data=synthetic", "model/loss=adversarial", f"model.adversary.{value}")
    assert f"error: model.adversary.{value} is invalid: input should be greater than " in said


LDM_VALUES = {
    "network.width=0": "network.width=0 is invalid: input should be greater than or equal to 1",
    "network.multipliers=[]": "network.multipliers=[] is invalid: value should have at least 1 item",
    "network.num_blocks=0": "network.num_blocks=0 is invalid: input should be greater than or equal to 1",
    "network.head_width=0": "network.head_width=0 is invalid: input should be greater than or equal to 1",
    "network.dropout=1": "network.dropout=1 is invalid: input should be less than 1",
    "network.attention_levels=[7]": "network.attention_levels=[7]: with 2 multipliers levels are 0 to 1",
}


@pytest.mark.parametrize("typed", LDM_VALUES)
@pytest.mark.usefixtures("trained_vae")
def test_case_02_a_value_of_the_denoiser_out_of_range_is_rejected_with_its_key(typed: str) -> None:
    said = refused("train.py", *TINY_LDM, *SHORT, "vae=faces", "name=wrong", f"model.denoiser.{typed}")
    assert f"error: model.denoiser.{LDM_VALUES[typed]}" in said


def test_a_training_without_a_limit_is_warned_about(workplace: Path) -> None:
    said = refused("train.py", *TINY_VAE, *SHORT, "name=wrong", "trainer.max_steps=-1", "data.num_images=8")
    assert "warning: the training has no limit: the learning rate does not decay" in said


def test_unreadable_photos_are_not_an_option_of_alignment(workplace: Path) -> None:
    said = refused("train.py", "model=vae", "data=folder", "data.root=.", "data.align=true", "data.on_bad_image=skip")
    assert "data.on_bad_image has no effect with data.align=true" in said


def test_a_folder_names_a_run_to_resume(workplace: Path) -> None:
    for steps in (2, 4):
        command = [*TINY_VAE, *SHORT, f"trainer.max_steps={steps}", "hydra.run.dir=elsewhere", "resume=auto"]
        run_command("train.py", *command)
    assert json.loads(Path("elsewhere/result.json").read_text())["steps"] == 4


def test_wandb_can_be_left_out_alone(workplace: Path) -> None:
    run_command("train.py", *TINY_VAE, *SHORT, "name=faces", "logger=wandb", "logger.wandb=null")
    assert (workplace / "outputs" / "vae" / "faces" / "result.json").exists()


def test_a_limit_below_one_batch_is_one_line(workplace: Path) -> None:
    said = refused("train.py", *TINY_VAE, *SHORT, "name=wrong", "trainer.limit_train_batches=0.01")
    assert "error: You requested to check 0.01 of the `train_dataloader`" in said
    assert said.count("\n") == 1


def test_a_monitor_that_is_not_logged_is_one_line(workplace: Path) -> None:
    said = refused("train.py", *TINY_VAE, *SHORT, "name=wrong", "callbacks.early_stopping.monitor=val/los")
    assert "error: callbacks.early_stopping.monitor: Early stopping conditioned on metric `val/los`" in said


def test_a_group_of_a_part_is_named_with_its_package(workplace: Path) -> None:
    said = refused("train.py", *TINY_LDM, "sampler=euler")
    assert said == "error: Could not override 'sampler'. Did you mean to override sampler@model.sampler?\n"


def test_the_report_of_a_profiler_is_printed(workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_command("train.py", *TINY_VAE, *SHORT, "name=profiled", "trainer.profiler=simple")
    assert "FIT Profiler Report" in capfd.readouterr().out


def test_case_02_an_adversary_that_never_begins_is_rejected(workplace: Path) -> None:
    said = refused_training("model=vae", "data=synthetic", "model/loss=adversarial", "trainer.max_steps=5000")
    assert "model.adversary.start_step=5000 is never reached with trainer.max_steps=5000" in said


def test_case_02_an_experiment_of_another_model_is_rejected(workplace: Path) -> None:
    said = refused_training("model=vae", "data=synthetic", "experiment=sweep_ldm_lr", "hydra.mode=RUN")
    assert "experiment=sweep_ldm_lr is for model=ldm. Use that, or leave it out." in said


def test_case_02_an_option_that_the_chosen_annealing_does_not_look_at_is_refused(workplace: Path) -> None:
    said = refused_training("model=vae", "data=synthetic", "annealing=constant", "model.kl_weight.num_steps=5")
    assert "Unknown key model.kl_weight.num_steps" in said


def test_case_02_a_queue_of_slurm_is_refused_where_there_is_none(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    said = refused_training("model=vae", "data=synthetic", "requeue=true", "resume=auto")
    assert "requeue=true needs a SLURM job" in said


def test_case_02_a_word_that_is_none_of_the_choices_is_told_with_them(workplace: Path) -> None:
    said = refused_training("model=vae", "data=folder", "data.root=.", "data.on_bad_image=ignore")
    assert "data.on_bad_image=ignore is invalid" in said
    assert "'fail' or 'skip'" in said


def test_case_04_stage_2_without_a_trained_vae_is_told_the_command_that_makes_one(workplace: Path) -> None:
    said = refused_training("model=ldm")
    assert "train.py model=vae" in said
    assert "vae=FOLDER" in said


@pytest.mark.parametrize(
    ("typed", "clues"),
    [
        ("model.denoiser.network.channels=3", ["model.denoiser.network.channels=3", "have 4 channels"]),
        ("model.denoiser.network.multipliers=[1,2,2,2]", ["Latents of 4x4", "multiple of 8", "model/denoiser=dit_s"]),
    ],
)
def test_case_05_latents_that_the_denoiser_cannot_take_are_told_with_both_sizes(
    typed: str, clues: list[str], trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    said = refused_training(*TINY_LDM, *SHORT, "name=wrong", typed)
    assert all(clue in said for clue in clues), said


def test_a_resolution_that_no_denoiser_of_stage_2_takes_is_reported_before_stage_1(
    workplace: Path, train: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    train(*TINY_VAE, *SHORT, "data.resolution=36", "trainer.max_steps=1", "name=odd")
    assert "data.resolution=36 gives 9. Use 32 or 40." in capfd.readouterr().err
