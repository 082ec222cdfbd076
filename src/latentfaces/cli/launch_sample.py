"""Tasks of sample.py: build what a command asks for."""

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from latentfaces.cli.compute import keep_freed_memory
from latentfaces.cli.devices import interactive, variable
from latentfaces.cli.idle_options import allow_only, refuse_idle_options, refuse_varied_labels
from latentfaces.cli.recipe import Recipe, describe, named_files
from latentfaces.cli.remake import rebuild_task
from latentfaces.config.overrides import overridden_keys, plain
from latentfaces.config.schema import SampleConfig
from latentfaces.config.secrets import refuse_unsafe
from latentfaces.config.type_checks import check_keys, check_types
from latentfaces.diffusion import HeunSampler, NoGuidance
from latentfaces.errors import UserError
from latentfaces.model_folder import find_model
from latentfaces.pipeline import FacePipeline
from latentfaces.ranks import Ranks, is_main_process
from latentfaces.run import DIRECTIONS, Run, config_of

SHARED = ("generate", "evaluate")
"""Tasks that several ranks can share."""
HOOKED = ("directions", "slide")
"""Tasks that hook a layer of the network, which a compiled network may ignore."""


def prepared_task(cfg: DictConfig) -> tuple[Any, Any, Any]:
    """Return the task, the pipeline of its run and the folder of its images."""
    keep_freed_memory()
    refuse_unsafe(cfg)
    check_keys(cfg, SampleConfig)
    task_name = HydraConfig.get().runtime.choices["task"]
    if variable("SLURM_STEP_NUM_TASKS") > 1 and not interactive():
        raise UserError("Each task of srun would do all work. Use torchrun ... sample.py, or give srun one task.")
    ranks = Ranks.started()
    if ranks.count > 1 and task_name not in SHARED:
        raise UserError(f"task={task_name} runs in one process. Use python instead of torchrun.")
    credentials = credentials_of(cfg)
    if task_name == "remake":
        task, pipeline, recipe = rebuild_task(cfg)
    else:
        task, pipeline, recipe = build_task(cfg, find_model(cfg.run))
    from latentfaces.tasks.output import PictureFolder, new_folder

    if cfg.compile and recipe.task in HOOKED:
        raise UserError(f"compile=true has no effect with task={recipe.task}. Leave it out.")
    if cfg.compile:
        pipeline.compile()
    recipe.weights = pipeline.weights
    default = Path(recipe.run) / "samples" / f"{task_name}_{datetime.now():%Y-%m-%d_%H-%M-%S}"
    folder = cfg.output or (new_folder(default) if ranks.rank == 0 else default)
    return task, pipeline, PictureFolder(folder, asdict(recipe), ranks, credentials)


def build_task(cfg: DictConfig, run: Run) -> tuple[Any, Any, Recipe]:
    """Build the task and the pipeline of a command, and the recipe of their images."""
    fill_in(cfg, run)
    refuse_idle_options(cfg, run.stage, run.is_fast)
    if "align" in cfg.task:
        cfg.task.align = resolved_alignment(cfg)
    choices, labels = HydraConfig.get().runtime.choices, plain(cfg.labels)
    kind = choices.get("sampler")  # None for a task that uses the VAE alone
    from_noise = cfg.image is not None and choices["task"] in ("interpolate", "slide")
    guidance = chosen_guidance(cfg, from_noise)
    pipeline = FacePipeline.load(
        run,
        bfloat16=cfg.precision == "bf16",
        ema=cfg.ema,
        guidance=guidance,
        sampler=HeunSampler(18) if from_noise else None,  # a random sampler cannot be inverted
    )
    pipeline.ask(labels)
    own_sampler = kind == "tuned" or (kind is not None and run.is_fast and "sampler" not in overridden_keys())
    if own_sampler:
        defaults = config_of(pipeline.sampler)
        with open_dict(cfg):
            cfg.sampler = defaults | sampler_overrides(plain(cfg.sampler), defaults)
    settings = plain(cfg.task)
    check_types(settings, "task", shared=cfg)
    refuse_varied_labels(settings, labels)
    recipe = Recipe(
        str(run.folder),
        choices["task"],
        settings,
        config_of(pipeline.guidance),
        pipeline.ema,
        cfg.precision,
        named_files(settings),
        labels,
    )
    task = instantiate(cfg.task)
    if (own_sampler or guidance is None) and pipeline.denoiser is not None and is_main_process():
        print(describe(recipe))
    return task, pipeline, recipe


def fill_in(cfg: DictConfig, run: Run) -> None:
    """Set what the protocol and the run determine: the number of images, the pack and the folder."""
    from latentfaces.evaluation.protocol import protocol_named

    if cfg.task.get("protocol") is not None and "num_images" not in overridden_keys():
        cfg.num_images = protocol_named(cfg.task.protocol).num_samples
    paths = {"pack": run.config.get("pack"), "folder": str(run.folder), "directions": str(run.folder / DIRECTIONS)}
    for key in paths.keys() & cfg.task.keys():
        cfg.task[key] = paths[key]


def chosen_guidance(cfg: DictConfig, from_noise: bool) -> Any:
    """Return the guidance of the command; None for the run's own.

    Args:
        cfg: the config.
        from_noise: whether the task inverts photos. The noise of a photo is wider than N(0, 1) under guidance.
    """
    if cfg.guidance is not None:
        check_types(plain(cfg.guidance), "guidance")
        return instantiate(OmegaConf.create({"guidance": plain(cfg.guidance)})).guidance  # errors then name the key
    choices = HydraConfig.get().runtime.choices
    by_labels = choices["task"] == "edit" and bool(cfg.labels)
    return NoGuidance() if from_noise or by_labels or "guidance" not in choices else None


def resolved_alignment(cfg: DictConfig) -> str:
    """Return the value of `align` for the recipe. "auto" aligns only where the extra `align` is installed."""
    from latentfaces.data.align import has_detector

    value = cfg.align.lower()
    if cfg.image is None or (value == "auto" and not has_detector()):
        value = "false"
    if value == "false" and "task.face" in overridden_keys():
        raise UserError("task.face=... has no effect without alignment. Give image=..., and use align=true.")
    return value


def sampler_overrides(sampler: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return the overrides of the run's own sampler."""
    overrides = {key: value for key, value in sampler.items() if f"sampler.{key}" in overridden_keys()}
    if unknown := overrides.keys() - defaults.keys():
        kind = defaults["_target_"].rpartition(".")[2]
        raise UserError(
            f"sampler.{unknown.pop()}=... is not an option of {kind}, the run's own sampler. Choose another sampler=..."
        )
    return overrides


def credentials_of(cfg: DictConfig) -> Any:
    """Return the signer of mark=c2pa, or None."""
    from latentfaces.export.credentials import Credentials

    given = [cfg.mark_certificate, cfg.mark_key]
    if cfg.mark is None:
        if any(given):
            raise UserError("mark_certificate and mark_key have no effect without mark=c2pa. Add it.")
        return None
    if not all(given):
        raise UserError("mark=c2pa needs a certificate. Give mark_certificate=CHAIN.pem mark_key=KEY.pem.")
    return Credentials(*given)


def identify(cfg: DictConfig) -> list[str]:
    """Return what task=identify prints."""
    from latentfaces.tasks.identify import identify

    refuse_unsafe(cfg)
    allow_only(("task", "image"), "with task=identify")
    return identify(cfg.image)
