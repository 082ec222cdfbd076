"""Tasks of sample.py: build what a command asks for, or what the metadata of an image describes."""

import contextlib
import hashlib
import json
import os
from collections.abc import MutableMapping, Sequence
from dataclasses import asdict, dataclass, field
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
from latentfaces.model_folder import find_model
from latentfaces.ranks import is_main_process
from latentfaces.run import DIRECTIONS, Run, build, config_of

FILE_KEYS, PHOTOS = ("image", "to_image", "mask", "directions"), ".photos"
PATH_KEYS = (
    *(*FILE_KEYS, "run", "output", "features", "weights", "feature_weights", "recognizer"),
    *("mark_certificate", "mark_key"),
)
REMAKE_KEYS = ("task", "image", "run", "output", "compile", "batch_size", "mark", "mark_certificate", "mark_key")
"""Overrides of task=remake. The metadata of the image has everything else."""
SHARED = ("generate", "evaluate")
"""Tasks that several ranks can share."""
UNLABELED = ("reconstruct", "tune")
"""Tasks without requested labels: they use the VAE alone, or compare with images of all labels."""
FROM_IMAGES = ("edit", "inpaint", "invert", "variations")
"""Tasks that start from images, where labels that are not requested are unknown."""
AUDITS = ("dataset", "evaluate", "neighbours", "tune")
"""Tasks that compare samples with the run's training or held-out images."""
HOOKED = ("directions", "slide")
"""Tasks that hook a layer of the network, which a compiled network may ignore."""
HEUN = CONF / "sampler" / "heun.yaml"
VERSION = 2
"""Version of recipes. Recipes of version 1 do not name it: other noise for a seed, raw task.strength, other inpaint."""


@dataclass
class Recipe:
    """Everything that determines an image, as its PNG metadata has it.

    Args:
        run: the run's folder.
        task: name of the task.
        settings: config of the task.
        guidance: config of the guidance.
        ema: width of the weights' average; None for that of the best weights.
        precision: "fp32" or "bf16".
        files: the first 12 digits of the SHA-256 of each file in the settings, by its key.
        labels: requested labels.
        weights: hashes of the weights; None before they are loaded.
        version: see `VERSION`.
    """

    run: str
    task: str
    settings: dict[str, Any]
    guidance: dict[str, Any]
    ema: float | None = None
    precision: str = Precision.fp32.name
    files: dict[str, str] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    version: int = 1


def expand_home(node: MutableMapping[Any, Any]) -> None:
    """Replace `~` in the paths of a config. Shells do so only in some positions."""
    for key in PATH_KEYS:
        if key in node and str(node[key]).startswith("~"):
            with contextlib.suppress(RuntimeError):  # an unknown user: the path is then reported as missing
                node[key] = str(Path(node[key]).expanduser())


def prepared_task(cfg: DictConfig) -> tuple[Any, Any, Any]:
    """Return the task, the pipeline of its run and the folder of its images."""
    keep_freed_memory()
    from latentfaces.ranks import Ranks

    refuse_links(cfg)
    refuse_secrets_in(cfg)
    check_keys(cfg, SampleConfig)
    for node in (cfg, cfg.task):
        expand_home(node)
    task_name = HydraConfig.get().runtime.choices["task"]
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and not interactive():
        raise UserError("Each task of srun would do all work. Use torchrun ... sample.py, or give srun one task.")
    ranks = Ranks.started()
    if ranks.count > 1 and task_name not in SHARED:
        raise UserError(f"task={task_name} runs in one process. Use python instead of torchrun.")
    credentials = credentials_of(cfg)
    if task_name == "remake":
        recipe = remembered(cfg)
        task, pipeline = remade(recipe)
    else:
        task, pipeline, recipe = composed(cfg, find_model(cfg.run))
    from latentfaces.tasks.output import PictureFolder, new_folder

    if cfg.compile and recipe.task in HOOKED:
        raise UserError(f"compile=true has no effect with task={recipe.task}. Leave it out.")
    if cfg.compile:
        pipeline.compile()
    weights = pipeline.weights
    if recipe.weights not in (None, weights):
        raise UserError(
            f"image={cfg.image} was made with the weights {recipe.weights}, but {recipe.run} has {weights}. It cannot "
            "be remade."
        )
    recipe.weights = weights
    default = Path(recipe.run) / "samples" / f"{task_name}_{datetime.now():%Y-%m-%d_%H-%M-%S}"
    folder = cfg.output or (new_folder(default) if ranks.rank == 0 else default)
    return task, pipeline, PictureFolder(folder, asdict(recipe), ranks, credentials)


def composed(cfg: DictConfig, run: Run) -> tuple[Any, Any, Recipe]:
    """Build the task and the pipeline of a command, and the recipe of their images."""
    from latentfaces.diffusion import NoGuidance
    from latentfaces.evaluation.protocol import protocol_named
    from latentfaces.pipeline import FacePipeline

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
    own = choices.get("sampler") == "tuned"
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
    check_types(settings, "task")
    recipe = Recipe(
        str(run.folder),
        choices["task"],
        settings,
        config_of(pipeline.guidance),
        pipeline.ema,
        cfg.precision.name,
        named_files(settings),
        labels,
        version=VERSION,
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


def remade(recipe: Recipe) -> tuple[Any, Any]:
    """Build the task and the pipeline of an image's recipe."""
    import torch

    from latentfaces.diffusion import NoGuidance
    from latentfaces.diffusion.guidance import Extrapolation
    from latentfaces.pipeline import FacePipeline

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
    return task, pipeline


def sampler_overrides(sampler: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return the overrides of the run's own sampler."""
    overrides = {key: value for key, value in sampler.items() if f"sampler.{key}" in overridden_keys()}
    if unknown := overrides.keys() - defaults.keys():
        kind = defaults["_target_"].rpartition(".")[2]
        raise UserError(
            f"sampler.{unknown.pop()}=... is not an option of {kind}, the run's own sampler. Choose another sampler=..."
        )
    return overrides


def refuse_idle_options(cfg: DictConfig, stage: str) -> None:
    """Reject the first option that the task on a run of this stage would not use."""
    task = HydraConfig.get().runtime.choices["task"]
    if task in AUDITS and cfg.task.pack is None:
        raise UserError(f"task={task} needs the training images, which a model folder does not have. Give run=RUN.")
    if cfg.image is not None and "image" not in cfg.task:
        raise UserError(f"image=... has no effect with task={task}. Leave it out.")
    if cfg.direction is not None and "direction" not in cfg.task:
        raise UserError(f"direction=... has no effect with task={task}. Leave it out.")
    if "align" in overridden_keys() and (cfg.image is None or "align" not in cfg.task):
        raise UserError("align=... has no effect without a photo. Give image=... to a task that takes one.")
    if cfg.image is not None and "task.to_seed" in overridden_keys():
        raise UserError("task.to_seed=... has no effect between photos. Leave it out, or leave out image.")
    if cfg.labels and task in UNLABELED:
        raise UserError(f"labels.{next(iter(cfg.labels))}=... has no effect with task={task}. Leave it out.")
    from_images = task in FROM_IMAGES or (task in ("interpolate", "slide") and cfg.image is not None)
    if from_images and not cfg.labels and HydraConfig.get().runtime.choices.get("guidance") == "labels":
        raise UserError(f"guidance=labels has no effect with task={task} without labels.NAME=... Add it.")
    if task == "directions" and cfg.task.names:
        allow_only(("run", "output", "task", "task.names"), "with task.names, which only renames")
    if task == "edit":
        idle = ("num_images", "task.strength", "task.skips") if cfg.labels else ("task.photo_labels", "task.mask")
        if given := [key for key in idle if key in overridden_keys()]:
            where = "in an edit by labels" if cfg.labels else "without labels.NAME=..."
            raise UserError(f"{given[0]}=... has no effect {where}. Leave it out.")
    if cfg.ema is not None and task == "tune":
        raise UserError("ema=... has no effect with task=tune, which tries those of task.emas. Leave it out.")
    if stage == "vae" or "sampler" not in cfg.task:
        given = [key for key in ("ema", "guidance", "compile") if cfg[key] is not None and cfg[key] is not False]
        given += [key for key in overridden_keys() if key.partition(".")[0] == "sampler"]
        if given:
            where = f"with task={task}" if "sampler" not in cfg.task else "on a run of stage 1"
            raise UserError(f"{given[0]}=... has no effect {where}, which uses the VAE alone. Leave it out.")


def allow_only(keys: Sequence[str], where: str) -> None:
    """Reject an override of any other key."""
    for key in overridden_keys():
        if key not in keys and not key.startswith("hydra"):
            raise UserError(f"{key}=... has no effect {where}. Leave it out.")


def described(recipe: Recipe) -> str:
    """Return guidance, average and sampler as text."""
    sampler = recipe.settings["sampler"]
    guidance, solver = (str(config["_target_"]).rpartition(".")[2] for config in (recipe.guidance, sampler))
    weight = f" with weight {recipe.guidance['weight']:.3g}" if "weight" in recipe.guidance else ""
    average = "best weights" if recipe.ema is None else f"ema={recipe.ema:.3g}"
    noise = f" with eta={sampler['eta']:g}" if "eta" in sampler else ""
    return f"guidance: {guidance}{weight}, {average}; {sampler['num_steps']} steps of {solver}{noise}"


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
        expand_home(settings)
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


def named_files(settings: dict[str, Any]) -> dict[str, str]:
    """Return the hash of each photo and mask in the settings; for a folder or .zip also that of names and sizes."""
    from latentfaces.data.sources import Photos

    paths = {key: Path(settings[key]) for key in FILE_KEYS if settings.get(key) is not None}
    hashes = {key: hashlib.sha256(path.read_bytes()).hexdigest() for key, path in paths.items() if path.is_file()}
    for key, path in paths.items():
        if path.is_dir() or path.suffix.lower() == ".zip":
            with contextlib.suppress(UserError):  # the task reports it with its key
                hashes[key if path.is_dir() else key + PHOTOS] = Photos(path).fingerprint
    return {key: digest[:12] for key, digest in hashes.items()}


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
    from latentfaces.tasks import Identify

    refuse_links(cfg)
    expand_home(cfg)
    allow_only(("task", "image"), "with task=identify")
    return Identify(cfg.image)()
