"""Between Hydra and the tasks: what sample.py looks up and builds, and how a picture is made again."""

import contextlib
import hashlib
import json
import os
import shlex
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from latentfaces.cli.compute import keep_freed_memory
from latentfaces.cli.devices import interactive
from latentfaces.config.overrides import key_of, overridden_keys, plain
from latentfaces.config.paths import CONF
from latentfaces.config.schema import Precision, SampleConfig
from latentfaces.config.secrets import refuse_links, refuse_secrets_in
from latentfaces.config.validation import check_ranges, check_types, refuse_added
from latentfaces.errors import UserError
from latentfaces.ranks import is_main_process
from latentfaces.run import GUIDE, Run, build, find_run, open_run

FILE_KEYS, PHOTOS = ("image", "to_image", "mask"), ".photos"
REMAKING = ("task", "image", "run", "output", "compile", "strips", "batch_size")
"""What may be typed to make a picture again; its text says all else."""
SHARED = ("generate", "evaluate")
"""Tasks that several processes can share out."""
AUTO = CONF / "guidance" / "auto.yaml"
HEUN = CONF / "sampler" / "heun.yaml"
NO_GUIDANCE = {"_target_": "latentfaces.diffusion.NoGuidance"}


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
    """

    run: str
    task: str
    settings: dict[str, Any]
    guidance: dict[str, Any] = field(default_factory=lambda: dict(NO_GUIDANCE))
    ema: float | None = None
    precision: str = Precision.fp32.name
    files: dict[str, str] = field(default_factory=dict)
    weights: str | None = None

    def text(self, weights: str) -> dict[str, Any]:
        """What a picture says of itself."""
        own = {"run": self.run, "weights": weights, "precision": self.precision, "task": self.task}
        return {**own, "ema": self.ema, "guidance": self.guidance, "files": self.files, "settings": self.settings}


def prepared_task(cfg: DictConfig) -> tuple[Any, Any, Any]:
    """The task of sample.py, the pipeline of the run it asks for, and the folder for its pictures."""
    keep_freed_memory()
    from latentfaces.pipeline import FacePipeline
    from latentfaces.ranks import Ranks
    from latentfaces.tasks import PictureFolder

    refuse_links(cfg)
    refuse_secrets_in(cfg)
    check_ranges(cfg)
    refuse_added(cfg, SampleConfig)
    choices = HydraConfig.get().runtime.choices
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and not interactive():
        raise UserError("each task of srun would do all of it: type torchrun ... sample.py, or give srun one task")
    ranks = Ranks.started()
    if ranks.count > 1 and choices["task"] not in SHARED:
        raise UserError(f"task={choices['task']} is work for one process: type python in place of torchrun")
    if choices["task"] == "remake":
        recipe = remembered(cfg)
        run = open_run(recipe.run)
        task, guidance = built(recipe.settings), built(recipe.guidance)
    else:
        run = find_run(cfg.run, "ldm")
        recipe = typed(cfg, run)
        # Under its own key, by which a mistake in it is then told.
        task, guidance = instantiate(cfg.task), instantiate(OmegaConf.create({"guidance": recipe.guidance})).guidance
    pipeline = FacePipeline.load(run, bfloat16=recipe.precision == Precision.bf16.name, ema=recipe.ema)
    pipeline.guidance = guidance
    if cfg.compile:
        pipeline.compile()
    if cfg.strips is not None:
        pipeline.in_strips = cfg.strips
    weights = pipeline.weights
    if recipe.weights not in (None, weights):
        raise UserError(
            f"image={cfg.image} was made with the weights {recipe.weights}, and {recipe.run} now has "
            f"{weights}: it cannot be made again"
        )
    default = run.folder / "samples" / f"{choices['task']}_{datetime.now():%Y-%m-%d_%H-%M-%S}"
    pictures = PictureFolder(cfg.output or default, recipe.text(weights), ranks)
    words = [word for word in HydraConfig.get().overrides.task if key_of(word) not in ("run", "output")]
    pictures.command = shlex.join(["python", "sample.py", f"run={run.folder}", *words])
    return task, pipeline, pictures


def typed(cfg: DictConfig, run: Run) -> Recipe:
    """The recipe that the command asks for."""
    for key, value in {"pack": run.config.get("pack"), "folder": str(run.folder)}.items():
        if key in cfg.task:
            cfg.task[key] = value
    choices = HydraConfig.get().runtime.choices
    tuned = {group for group in ("guidance", "sampler") if choices.get(group) == "tuned"}
    best = (run.tuned() or {}) if tuned else {}
    found = best.get("sampler") if cfg.image is None else plain(OmegaConf.load(HEUN))  # type: ignore[arg-type]
    if "sampler" in tuned and found is not None:
        with open_dict(cfg):
            cfg.sampler = found | typed_of(plain(cfg.sampler), found)
    settings = plain(cfg.task)
    check_types(settings, "task")
    refuse_idle_options(cfg)
    recipe = Recipe(str(run.folder), choices["task"], settings, precision=cfg.precision.name, ema=cfg.ema)
    recipe.files = named_files(settings)
    if cfg.guidance is not None:
        recipe.guidance = plain(cfg.guidance)
        check_types(recipe.guidance, "guidance")
    if "guidance" in tuned:
        if best:
            recipe.guidance = best["guidance"]
            recipe.ema = best["ema"] if cfg.ema is None else cfg.ema
        elif run.has_weights(GUIDE):
            recipe.guidance = plain(OmegaConf.load(AUTO))  # type: ignore[arg-type]
    if tuned and is_main_process():
        print(described(recipe))
    return recipe


def typed_of(sampler: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """What was typed of the sampler that stands in for `sampler=tuned`."""
    typed = {key: value for key, value in sampler.items() if f"sampler.{key}" in overridden_keys()}
    if strange := typed.keys() - found.keys():
        kind = found["_target_"].rpartition(".")[2]
        raise UserError(
            f"sampler.{strange.pop()}=... is no option of {kind}, which sampler=tuned is here: choose another"
        )
    return typed


def refuse_idle_options(cfg: DictConfig) -> None:
    """Name the first option that the task would not use: photos, or what only new faces need."""
    task = HydraConfig.get().runtime.choices["task"]
    if cfg.image is not None and "image" not in cfg.task:
        raise UserError(f"image=... has no effect with task={task}, which takes no photo: leave it out")
    if cfg.image is not None and "task.to_seed" in overridden_keys():
        raise UserError("task.to_seed=... has no effect between photos: leave it out, or leave out image")
    if cfg.ema is not None and task == "tune":
        raise UserError("ema=... has no effect with task=tune, which tries those of task.emas: leave it out")
    for key in ("ema", "guidance", "compile"):
        if "sampler" not in cfg.task and cfg[key] is not None and cfg[key] is not False:
            raise UserError(f"{key}=... has no effect with task={task}, which uses the VAE alone: leave it out")


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
        settings = recipe.settings
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
