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
from latentfaces.cli.recipe import Recipe, described, named_files
from latentfaces.cli.remake import remade
from latentfaces.config.overrides import overridden_keys, plain
from latentfaces.config.paths import CONF
from latentfaces.config.schema import Precision, SampleConfig
from latentfaces.config.secrets import refuse_unsafe
from latentfaces.config.type_checks import check_keys, check_types
from latentfaces.diffusion import NoGuidance
from latentfaces.errors import UserError
from latentfaces.model_folder import find_model
from latentfaces.pipeline import FacePipeline
from latentfaces.ranks import Ranks, is_main_process
from latentfaces.run import DIRECTIONS, Run, build, config_of

SHARED = ("generate", "evaluate")
"""Tasks that several ranks can share."""
HOOKED = ("directions", "slide")
"""Tasks that hook a layer of the network, which a compiled network may ignore."""
HEUN = CONF / "sampler" / "heun.yaml"


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
        task, pipeline, recipe = remade(cfg)
    else:
        task, pipeline, recipe = composed(cfg, find_model(cfg.run))
    from latentfaces.tasks.output import PictureFolder, new_folder

    if cfg.compile and recipe.task in HOOKED:
        raise UserError(f"compile=true has no effect with task={recipe.task}. Leave it out.")
    if cfg.compile:
        pipeline.compile()
    recipe.weights = pipeline.weights
    default = Path(recipe.run) / "samples" / f"{task_name}_{datetime.now():%Y-%m-%d_%H-%M-%S}"
    folder = cfg.output or (new_folder(default) if ranks.rank == 0 else default)
    return task, pipeline, PictureFolder(folder, asdict(recipe), ranks, credentials)


def composed(cfg: DictConfig, run: Run) -> tuple[Any, Any, Recipe]:
    """Build the task and the pipeline of a command, and the recipe of their images."""
    from latentfaces.evaluation.protocol import protocol_named

    if cfg.task.get("protocol") is not None and "num_images" not in overridden_keys():
        cfg.num_images = protocol_named(cfg.task.protocol).num_samples
    paths = {"folder": str(run.folder), "directions": str(run.folder / DIRECTIONS)}
    for key, value in ({"pack": run.config.get("pack")} | paths).items():
        if key in cfg.task:
            cfg.task[key] = value
    refuse_idle_options(cfg, run.stage)
    if "align" in cfg.task:
        cfg.task.align = resolved_alignment(cfg)
    choices = HydraConfig.get().runtime.choices
    # Inverted noise is wider than N(0, 1) under guidance, and a random sampler cannot be inverted.
    from_noise = cfg.image is not None and choices["task"] in ("interpolate", "slide")
    by_labels = choices["task"] == "edit" and bool(cfg.labels)
    guidance: Any = NoGuidance() if from_noise or by_labels or "guidance" not in choices else None
    if cfg.guidance is not None:
        check_types(plain(cfg.guidance), "guidance")
        guidance = instantiate(OmegaConf.create({"guidance": plain(cfg.guidance)})).guidance  # errors then name the key
    kind = choices.get("sampler")
    own = kind == "tuned" or (kind is not None and run.is_fast and "sampler" not in overridden_keys())
    sampler = None if own and not from_noise else build(plain(OmegaConf.load(HEUN)))  # type: ignore[arg-type]
    bfloat16 = cfg.precision is Precision.bf16
    pipeline = FacePipeline.load(run, bfloat16=bfloat16, ema=cfg.ema, guidance=guidance, sampler=sampler)
    labels = plain(cfg.labels)
    pipeline.ask(labels)
    if own:
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
        cfg.precision.name,
        named_files(settings),
        labels,
    )
    task = instantiate(cfg.task)
    if (own or guidance is None) and pipeline.denoiser is not None and is_main_process():
        print(described(recipe))
    return task, pipeline, recipe


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


def identified(cfg: DictConfig) -> list[str]:
    """Return what task=identify prints."""
    from latentfaces.tasks.identify import identify

    refuse_unsafe(cfg)
    allow_only(("task", "image"), "with task=identify")
    return identify(cfg.image)
