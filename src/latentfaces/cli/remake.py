"""`task=remake`: the recipe in an image, and the task and the pipeline that it describes."""

import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from latentfaces.cli.idle_options import allow_only
from latentfaces.cli.recipe import PHOTOS, VERSION, Recipe, named_files
from latentfaces.config.overrides import overridden_keys
from latentfaces.config.schema import Precision
from latentfaces.config.validation import check_types
from latentfaces.diffusion import NoGuidance
from latentfaces.diffusion.guidance import Extrapolation
from latentfaces.errors import UserError
from latentfaces.model_folder import find_model
from latentfaces.pipeline import FacePipeline
from latentfaces.run import DIRECTIONS, build

REMAKE_KEYS = ("task", "image", "run", "output", "compile", "batch_size", "mark", "mark_certificate", "mark_key")
"""Overrides of task=remake. The metadata of the image has everything else."""


def remade(cfg: DictConfig) -> tuple[Any, Any, Recipe]:
    """Build the task and the pipeline of an image, and return them with its recipe."""
    recipe = remembered(cfg)
    try:
        task, guidance = build(recipe.settings), build(recipe.guidance)
        if not isinstance(guidance, NoGuidance | Extrapolation):
            raise TypeError("no guidance")
    except (TypeError, ValueError) as error:
        raise UserError(f"The metadata of the image do not fit this version of latentfaces ({error}).") from error
    bfloat16 = recipe.precision == Precision.bf16.name
    pipeline = FacePipeline.load(find_model(recipe.run), bfloat16=bfloat16, ema=recipe.ema, guidance=guidance)
    pipeline.ask(recipe.labels)
    if recipe.version == 1:
        pipeline.colliding_seeds = True
        if recipe.task == "edit":
            task.strength = float(pipeline.predictor.schedule.condition(torch.tensor(task.strength)))
    if recipe.weights not in (None, pipeline.weights):
        raise UserError(
            f"image={cfg.image} was made with the weights {recipe.weights}, but {recipe.run} has {pipeline.weights}. "
            "It cannot be remade."
        )
    return task, pipeline, recipe


def remembered(cfg: DictConfig) -> Recipe:
    """Return the recipe in the metadata of an image. `build` later rejects what is not a part of latentfaces."""
    from PIL import UnidentifiedImageError
    from pydantic import TypeAdapter, ValidationError

    from latentfaces.data.images import open_image
    from latentfaces.tasks.output import OWN_LABELS

    if cfg.image is None:
        raise UserError("task=remake needs an image. Give image=FACE.png.")
    allow_only(REMAKE_KEYS, "with task=remake, which reads it from the image")
    try:
        with open_image(Path(cfg.image)) as picture:
            text = json.loads(getattr(picture, "text", {}).get("latentfaces", "null"))
    except (OSError, RecursionError, UnidentifiedImageError, ValueError) as error:
        raise UserError(f"image={cfg.image} cannot be read ({error})") from None
    try:
        index = text.pop("index", None)
        text.pop(OWN_LABELS, None)  # they follow from the rest
        recipe = TypeAdapter(Recipe).validate_python(text)
        if recipe.version > VERSION:
            raise UserError(f"image={cfg.image} was made by a newer version of latentfaces. Update it.")
        if recipe.version == 1 and recipe.task == "inpaint":
            raise UserError(f"image={cfg.image} was made by an older version of task=inpaint. It cannot be remade.")
        settings = recipe.settings
        if cfg.run != "latest":  # the run has moved; its weights are compared
            recipe.run = str(find_model(cfg.run).folder)
            if recipe.task == "slide":
                settings["directions"] = str(Path(recipe.run) / DIRECTIONS)
        if recipe.task == "interpolate":
            settings.pop("pack", None)  # of an older version
        if recipe.task == "generate" and index is not None:  # this image alone
            settings |= {"first": settings.get("first", 0) + index, "num_images": 1}
        check_types(settings, "task")
        if "batch_size" in overridden_keys():  # changes memory, not the image
            settings["batch_size"] = cfg.batch_size
        now = named_files(settings)
        if unknown := [key for key in now if key not in recipe.files]:  # sorted in another order since
            photos = settings[unknown[0].removesuffix(PHOTOS)]
            raise UserError(f"image={cfg.image} was made by an older version, from the photos of {photos}")
        for key, digest in recipe.files.items():
            if now.get(key) != digest:
                state = "has changed since" if key in now else "is no longer there"
                raise UserError(f"image={cfg.image} was made from {settings[key.removesuffix(PHOTOS)]}, which {state}")
    except (AttributeError, KeyError, TypeError, ValidationError):
        raise UserError(f"image={cfg.image} is not a PNG of sample.py: it has no complete metadata") from None
    return recipe
