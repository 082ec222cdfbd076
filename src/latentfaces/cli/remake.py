"""`task=remake`: the recipe in an image, and the task and the pipeline that it describes."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from latentfaces.cli.idle_options import allow_only
from latentfaces.cli.recipe import VERSION, Recipe, named_files
from latentfaces.config.overrides import overridden_keys
from latentfaces.config.type_checks import check_types
from latentfaces.diffusion import NoGuidance, Sampler
from latentfaces.diffusion.guidance import Extrapolation
from latentfaces.errors import UserError
from latentfaces.model_folder import find_model
from latentfaces.pipeline import FacePipeline
from latentfaces.run import DIRECTIONS, build, check_targets

REMAKE_KEYS = ("task", "image", "run", "output", "compile", "batch_size", "mark", "mark_certificate", "mark_key")
"""Overrides of task=remake. The metadata of the image has everything else."""


def rebuild_task(cfg: DictConfig) -> tuple[Any, Any, Recipe]:
    """Build the task and the pipeline of an image, and return them with its recipe."""
    from latentfaces.tasks.base import Task

    recipe = stored_recipe(cfg)
    try:
        task, guidance = build(recipe.settings), build(recipe.guidance)
        is_task = isinstance(task, Task) and isinstance(getattr(task, "sampler", None), Sampler | None)
        if not is_task or not isinstance(guidance, NoGuidance | Extrapolation):
            raise TypeError("no task, sampler or guidance")
    except (TypeError, ValueError) as error:
        raise UserError(f"The metadata of the image do not fit this version of latentfaces ({error}).") from error
    bfloat16 = recipe.precision == "bf16"
    pipeline = FacePipeline.load(find_model(recipe.run), bfloat16=bfloat16, ema=recipe.ema, guidance=guidance)
    pipeline.ask(recipe.labels)
    if recipe.weights not in (None, pipeline.weights):
        raise UserError(
            f"image={cfg.image} was made with the weights {recipe.weights}, but {recipe.run} has {pipeline.weights}. "
            "It cannot be remade."
        )
    return task, pipeline, recipe


def stored_recipe(cfg: DictConfig) -> Recipe:
    """Return the recipe in the metadata of an image. `build` later rejects what is not a part of latentfaces."""
    from pydantic import TypeAdapter, ValidationError

    from latentfaces.tasks.identify import read_recipe
    from latentfaces.tasks.output import OWN_LABELS

    if cfg.image is None:
        raise UserError("task=remake needs an image. Give image=FACE.png.")
    allow_only(REMAKE_KEYS, "with task=remake, which reads it from the image")
    try:
        text = read_recipe(Path(cfg.image)) or {}
    except (OSError, ValueError) as error:
        raise UserError(f"image={cfg.image} cannot be read ({error}). Give another file.") from None
    try:
        index = text.pop("index", None)
        text.pop(OWN_LABELS, None)  # they follow from the rest
        if text["version"] != VERSION:
            raise UserError(f"image={cfg.image} was made by another version of latentfaces. Use that version.")
        recipe = TypeAdapter(Recipe).validate_python(text)
        settings = recipe.settings
        if cfg.run != "latest":  # the run has moved; its weights are compared
            recipe.run = str(find_model(cfg.run).folder)
            if recipe.task == "slide":
                settings["directions"] = str(Path(recipe.run) / DIRECTIONS)
        if recipe.task == "generate" and index is not None:  # this image alone
            settings |= {"first": settings.get("first", 0) + index, "num_images": 1}
        check_targets(settings)
        check_types(settings, "task")
        if "batch_size" in overridden_keys():  # changes memory, not the image
            settings["batch_size"] = cfg.batch_size
        now = named_files(settings)
        for key, digest in recipe.files.items():
            if now.get(key) != digest:
                state = "has changed since" if key in now else "is no longer there"
                raise UserError(f"image={cfg.image} was made from {settings[key]}, which {state}. Restore it.")
    except (AttributeError, KeyError, TypeError, ValidationError):
        raise UserError(f"image={cfg.image} has no complete metadata of this version. Choose another file.") from None
    return recipe
