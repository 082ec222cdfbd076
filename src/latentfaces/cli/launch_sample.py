"""Between Hydra and the tasks: what sample.py looks up and builds, and how a picture is made again."""

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from latentfaces.cli.compute import keep_freed_memory
from latentfaces.cli.devices import interactive
from latentfaces.config.overrides import overridden_keys, plain
from latentfaces.config.paths import CONF
from latentfaces.config.schema import Precision, SampleConfig
from latentfaces.config.secrets import refuse_links, refuse_secrets_in
from latentfaces.config.validation import check_keys, check_types
from latentfaces.errors import UserError
from latentfaces.ranks import is_main_process
from latentfaces.run import Run, build, config_of, find_run, open_run

FILE_KEYS, PHOTOS = ("image", "to_image", "mask"), ".photos"
REMAKING = ("task", "image", "run", "output", "compile", "batch_size")
"""What may be typed to make a picture again; its text says all else."""
SHARED = ("generate", "evaluate")
"""Tasks that several processes can share out."""
HEUN = CONF / "sampler" / "heun.yaml"
VERSION = 2
"""Of recipes. 1, which recipes do not name: other noise for a seed, another scale of task.strength, another inpaint."""


@dataclass
class Recipe:
    """All that makes a picture, as it is written into it.

    Args:
        run: the run's folder.
        task: name of the task.
        settings: the task's own config.
        guidance: the config of the guidance.
        ema: length of the weights' average; None for that of the best weights.
        precision: "fp32" or "bf16".
        files: SHA-256 of each file that the settings name, 12 digits, by its key.
        weights: names the weights, where the recipe comes from a picture.
        version: see `VERSION`.
    """

    run: str
    task: str
    settings: dict[str, Any]
    guidance: dict[str, Any]
    ema: float | None = None
    precision: str = Precision.fp32.name
    files: dict[str, str] = field(default_factory=dict)
    weights: str | None = None
    version: int = 1

    def text(self, weights: str) -> dict[str, Any]:
        """Return the metadata that a PNG carries."""
        own = {"version": self.version, "run": self.run, "weights": weights}
        own |= {"precision": self.precision, "task": self.task}
        return {**own, "ema": self.ema, "guidance": self.guidance, "files": self.files, "settings": self.settings}


def prepared_task(cfg: DictConfig) -> tuple[Any, Any, Any]:
    """The task of sample.py, the pipeline of the run it asks for, and the folder for its pictures."""
    keep_freed_memory()
    from latentfaces.ranks import Ranks
    from latentfaces.tasks.output import PictureFolder, new_folder

    refuse_links(cfg)
    refuse_secrets_in(cfg)
    check_keys(cfg, SampleConfig)
    choices = HydraConfig.get().runtime.choices
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and not interactive():
        raise UserError("each task of srun would do all of it: type torchrun ... sample.py, or give srun one task")
    ranks = Ranks.started()
    if ranks.count > 1 and choices["task"] not in SHARED:
        raise UserError(f"task={choices['task']} is work for one process: type python in place of torchrun")
    if choices["task"] == "remake":
        recipe = remembered(cfg)
        task, pipeline = remade(recipe)
    else:
        task, pipeline, recipe = composed(cfg, find_run(cfg.run, "ldm"))
    if cfg.compile:
        pipeline.compile()
    weights = pipeline.weights
    if recipe.weights not in (None, weights):
        raise UserError(
            f"image={cfg.image} was made with the weights {recipe.weights}, and {recipe.run} now has "
            f"{weights}: it cannot be made again"
        )
    default = Path(recipe.run) / "samples" / f"{choices['task']}_{datetime.now():%Y-%m-%d_%H-%M-%S}"
    pictures = PictureFolder(
        cfg.output or (new_folder(default) if ranks.rank == 0 else default), recipe.text(weights), ranks
    )
    return task, pipeline, pictures


def composed(cfg: DictConfig, run: Run) -> tuple[Any, Any, Recipe]:
    """Build the task and the pipeline that the command asks for, with the recipe of their pictures."""
    from latentfaces.diffusion import NoGuidance
    from latentfaces.pipeline import FacePipeline

    for key, value in {"pack": run.config.get("pack"), "folder": str(run.folder)}.items():
        if key in cfg.task:
            cfg.task[key] = value
    refuse_idle_options(cfg, run.stage)
    choices = HydraConfig.get().runtime.choices
    # Inverted noise is wider than N(0, 1) under guidance, and a random sampler cannot be inverted.
    between_photos = cfg.image is not None and "to_image" in cfg.task
    guidance: Any = NoGuidance() if between_photos or "guidance" not in choices else None
    if cfg.guidance is not None:
        check_types(plain(cfg.guidance), "guidance")
        guidance = instantiate(OmegaConf.create({"guidance": plain(cfg.guidance)})).guidance  # errors then name the key
    own = choices.get("sampler") == "tuned"
    sampler = None if own and not between_photos else build(plain(OmegaConf.load(HEUN)))  # type: ignore[arg-type]
    bfloat16 = cfg.precision is Precision.bf16
    pipeline = FacePipeline.load(run, bfloat16=bfloat16, ema=cfg.ema, guidance=guidance, sampler=sampler)
    if own:
        found = config_of(pipeline.sampler)
        with open_dict(cfg):
            cfg.sampler = found | typed_of(plain(cfg.sampler), found)
    settings = plain(cfg.task)
    check_types(settings, "task")
    recipe = Recipe(str(run.folder), choices["task"], settings, config_of(pipeline.guidance), pipeline.ema)
    recipe.precision, recipe.files, recipe.version = cfg.precision.name, named_files(settings), VERSION
    task = instantiate(cfg.task)
    if (own or guidance is None) and is_main_process():
        print(described(recipe))
    return task, pipeline, recipe


def remade(recipe: Recipe) -> tuple[Any, Any]:
    """Build the task and the pipeline of a picture's recipe."""
    import torch

    from latentfaces.pipeline import FacePipeline

    task, guidance, bfloat16 = built(recipe.settings), built(recipe.guidance), recipe.precision == Precision.bf16.name
    pipeline = FacePipeline.load(open_run(recipe.run), bfloat16=bfloat16, ema=recipe.ema, guidance=guidance)
    if recipe.version == 1:
        pipeline.colliding_seeds = True
        if recipe.task == "edit":
            task.strength = float(pipeline.predictor.schedule.condition(torch.tensor(task.strength)))
    return task, pipeline


def typed_of(sampler: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Return the overrides of the run's own sampler."""
    typed = {key: value for key, value in sampler.items() if f"sampler.{key}" in overridden_keys()}
    if strange := typed.keys() - found.keys():
        kind = found["_target_"].rpartition(".")[2]
        raise UserError(
            f"sampler.{strange.pop()}=... is not an option of {kind}, the run's own sampler. Choose another."
        )
    return typed


def refuse_idle_options(cfg: DictConfig, stage: str) -> None:
    """Reject the first option that the task on a run of this stage would not use."""
    task = HydraConfig.get().runtime.choices["task"]
    if cfg.image is not None and "image" not in cfg.task:
        raise UserError(f"image=... has no effect with task={task}, which takes no photo: leave it out")
    if cfg.image is not None and "task.to_seed" in overridden_keys():
        raise UserError("task.to_seed=... has no effect between photos: leave it out, or leave out image")
    if cfg.ema is not None and task == "tune":
        raise UserError("ema=... has no effect with task=tune, which tries those of task.emas: leave it out")
    if stage == "vae" or "sampler" not in cfg.task:
        given = [key for key in ("ema", "guidance", "compile") if cfg[key] is not None and cfg[key] is not False]
        given += [key for key in overridden_keys() if key.partition(".")[0] == "sampler"]
        if given:
            where = f"with task={task}" if "sampler" not in cfg.task else "on a run of stage 1"
            raise UserError(f"{given[0]}=... has no effect {where}, which uses the VAE alone: leave it out")


def described(recipe: Recipe) -> str:
    """Guidance, averaging and sampler in a few words."""
    sampler = recipe.settings["sampler"]
    how, by = (str(config["_target_"]).rpartition(".")[2] for config in (recipe.guidance, sampler))
    weight = f" with weight {recipe.guidance['weight']:.3g}" if "weight" in recipe.guidance else ""
    average = "best weights" if recipe.ema is None else f"ema={recipe.ema:.3g}"
    return f"guidance: {how}{weight}, {average}; {sampler['num_steps']} steps of {by}"


def remembered(cfg: DictConfig) -> Recipe:
    """The recipe that a picture carries in its text; nothing in it is run that is not a part of latentfaces."""
    from PIL import UnidentifiedImageError

    from latentfaces.data.images import open_image

    if cfg.image is None:
        raise UserError("task=remake needs the picture: type image=FACE.png")
    for key in overridden_keys():
        if key not in REMAKING and not key.startswith("hydra"):
            raise UserError(f"{key}=... has no effect with task=remake, for the picture says it all: leave it out")
    path = Path(cfg.image).expanduser()
    try:
        with open_image(path) as picture:
            text = json.loads(getattr(picture, "text", {}).get("latentfaces", "null"))
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise UserError(f"image={cfg.image} cannot be read ({error})") from None
    try:
        index = text.pop("index", None)
        recipe = Recipe(**text)
        if recipe.version > VERSION:
            raise UserError(f"image={cfg.image} was made by a newer version of latentfaces. Update it.")
        settings = recipe.settings
        if recipe.version == 1 and recipe.task == "inpaint":
            raise UserError(f"image={cfg.image} was made by an older version of task=inpaint. It cannot be remade.")
        if recipe.task == "interpolate":
            settings.pop("pack", None)  # of an older version
        if recipe.task == "generate" and index is not None:  # that face alone
            settings |= {"first": settings.get("first", 0) + index, "num_images": 1}
        check_types(settings, "task")
        if "batch_size" in overridden_keys():  # of no account for what comes out, but for memory
            settings["batch_size"] = cfg.batch_size
        now = named_files(settings)
        if strange := [key for key in now if key not in recipe.files]:  # in another order than now
            photos = settings[strange[0].removesuffix(PHOTOS)]
            raise UserError(f"image={cfg.image} was made by an older version, from the photos of {photos}")
        for key, digest in recipe.files.items():
            if now.get(key) != digest:
                state = "has changed since" if key in now else "is no longer there"
                raise UserError(f"image={cfg.image} was made from {settings[key.removesuffix(PHOTOS)]}, which {state}")
    except (AttributeError, KeyError, TypeError):
        raise UserError(f"image={cfg.image} does not say how it was made: it is no PNG of sample.py") from None
    if cfg.run != "latest":
        recipe.run = str(find_run(cfg.run, "ldm").folder)  # the run has moved; its weights are compared
    return recipe


def named_files(settings: dict[str, Any]) -> dict[str, str]:
    """The hash of each file among a task's photos and masks; of a folder or .zip of photos, that of names and sizes."""
    from latentfaces.data.sources import Photos

    paths = {key: Path(settings[key]).expanduser() for key in FILE_KEYS if settings.get(key) is not None}
    hashes = {key: hashlib.sha256(path.read_bytes()).hexdigest() for key, path in paths.items() if path.is_file()}
    for key, path in paths.items():
        if path.is_dir() or path.suffix.lower() == ".zip":
            with contextlib.suppress(UserError):  # the task says what is wrong with it, by its key
                hashes[key if path.is_dir() else key + PHOTOS] = Photos(path).fingerprint
    return {key: digest[:12] for key, digest in hashes.items()}


def built(settings: dict[str, Any]) -> Any:
    """The object that a picture's text describes."""
    try:
        return build(settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"the picture's text does not describe what this version can make ({error})") from error
