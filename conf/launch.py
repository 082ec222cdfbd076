"""Between Hydra and latentfaces: what is checked, looked up and written down before a command starts its work."""

import contextlib
import functools
import inspect
import logging
import netrc
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, get_type_hints

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from latentfaces.errors import UserError
from latentfaces.run import CONFIG, RESULT, Run, find_run

RESUME = ("true", "false", "auto")


def one_sentence(main: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Decorate a command: a person's mistake is printed as one sentence, without a traceback, and exits with 2."""

    @functools.wraps(main)
    def wrapped(cfg: DictConfig) -> Any:
        try:
            return main(cfg)
        except (UserError, InstantiationException, OmegaConfBaseException) as error:
            message = explain(error)
            if message is None:
                raise
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise UserError(message) from error  # the other jobs of the sweep go on
            print(f"error: {message}", file=sys.stderr)
            sys.exit(2)

    return wrapped


def explain(error: BaseException) -> str | None:
    """The sentence for a person's mistake; None for a fault of the program's."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key or 'the config'}: {str(error).splitlines()[0]}"
    cause = error.__cause__
    if isinstance(cause, UserError):
        return str(cause)
    if isinstance(cause, ValueError | TypeError):
        key = str(error).rpartition("full_key: ")[2].splitlines()[0]
        return f"{key}: {cause}"
    if isinstance(error, InstantiationException):
        return " ".join(str(error).split())
    return None


def check_types(node: Any, key: str = "") -> None:
    """Hold each value of each `_target_` in the config against the type that its constructor states.

    Raises:
        UserError: naming key, value and what is expected.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    if isinstance(node, Mapping):
        hints = type_hints(node["_target_"]) if "_target_" in node else {}
        for name, value in node.items():
            here = f"{key}.{name}" if key else str(name)
            if name in hints and not isinstance(value, Mapping):
                try:
                    adapter = TypeAdapter(hints[name], config=ConfigDict(arbitrary_types_allowed=True))
                    adapter.validate_python(value)
                except ValidationError as error:
                    problem = error.errors()[0]["msg"]
                    raise UserError(f"{here}={value} does not fit: {problem[0].lower()}{problem[1:]}") from None
            else:
                check_types(value, here)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for index, value in enumerate(node):
            check_types(value, f"{key}[{index}]")


def type_hints(target: str) -> dict[str, Any]:
    """Types of the arguments of a class of ours, or of a class method that makes one; others state too little."""
    if not target.startswith("latentfaces."):
        return {}
    made = get_object(target)
    hints = get_type_hints(made.__init__ if inspect.isclass(made) else made)
    if inspect.ismethod(made):  # its **options are the constructor's
        hints = get_type_hints(made.__self__.__init__) | hints
    return hints


def check_training(cfg: DictConfig) -> None:
    """What no single key can know.

    Raises:
        UserError: naming the key and the remedy.
    """
    check_types(OmegaConf.to_container(cfg, resolve=True))
    typed = [override.split("=")[0].lstrip("+~") for override in HydraConfig.get().overrides.task]
    for key in typed:
        if key.startswith("annealing."):
            raise UserError(f"{key} has no effect here: type model.kl_weight.{key.removeprefix('annealing.')}=...")
    if cfg.stage == "vae" and cfg.vae is not None:
        raise UserError("vae=... is for model=ldm; with model=vae the VAE is what is trained")
    if cfg.resume.lower() not in RESUME:
        raise UserError(f"resume={cfg.resume} is not one of {', '.join(RESUME)}")
    ModelLimits(cfg).check()
    check_devices(cfg.trainer)


class ModelLimits:
    """Sizes that must divide one another.

    Args:
        cfg: the composed config of a training.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        shape = cfg.model.autoencoder
        self.downsampling = shape.patch_size * 2 ** (len(shape.multipliers) - 1)

    def check(self) -> None:
        """Raise the first that does not fit."""
        resolution = self.cfg.data.resolution
        if resolution % self.downsampling:
            nearest = self.downsampling * max(1, round(resolution / self.downsampling))
            raise UserError(
                f"data.resolution={resolution} is not a multiple of the VAE's factor {self.downsampling}: "
                f"take {nearest}, or another model/autoencoder"
            )
        if self.cfg.stage == "ldm":
            self.check_denoiser(resolution // self.downsampling)

    def check_denoiser(self, latent_side: int) -> None:
        """The denoiser's own factor must divide the latent."""
        network = self.cfg.model.denoiser.network
        factor = network.patch_size if "patch_size" in network else 2 ** (len(network.multipliers) - 1)
        if latent_side % factor:
            raise UserError(
                f"latents of {latent_side}x{latent_side} do not divide by {factor}, as model.denoiser.network needs: "
                "choose another model/denoiser, or another data.resolution for the VAE"
            )


def check_devices(trainer: DictConfig) -> None:
    """Refuse more devices than there are, rather than start as many processes on one CPU."""
    import torch

    try:
        wanted = int(trainer.devices)
    except ValueError:  # "auto", "0,1"
        return
    available = torch.cuda.device_count()
    on_gpu = trainer.accelerator in ("gpu", "cuda") or (trainer.accelerator == "auto" and wanted > 1)
    if on_gpu and wanted > available:
        fewer = f"trainer.devices={available}" if available else "trainer.devices=1"
        raise UserError(
            f"trainer.devices={wanted}, but this machine has {available} GPUs: type {fewer}, or for {wanted} processes "
            f"on the CPU trainer.accelerator=cpu trainer.devices={wanted} strategy=ddp"
        )


def precision_for(trainer: DictConfig) -> str:
    """bf16-mixed where the device multiplies in bfloat16 (four times as fast on such a CPU), else float32."""
    import torch

    if trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if fast else "32-true"


def wandb_is_offline() -> bool:
    """Whether W&B has no account here; says so."""
    try:
        known = netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        known = False
    offline = os.environ.get("WANDB_MODE") in ("offline", "disabled") or not (known or "WANDB_API_KEY" in os.environ)
    if offline and is_main_process():
        os.environ.setdefault("WANDB_SILENT", "true")  # its own ten lines say no more than this one
        print("W&B logs offline into the run's folder; to go online type `wandb login` once")
    return offline


def is_main_process() -> bool:
    """Whether this is the process that a person started, not one that it started for another device."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0 and int(os.environ.get("NODE_RANK", "0")) == 0


def claim_run(cfg: DictConfig) -> Path | None:
    """Decide what the run's folder is for: the checkpoint to go on from, or None for a fresh start.

    Raises:
        UserError: the folder holds a run, and nobody said to go on; or the other way round.
    """
    folder, resume = Path(cfg.run_dir), cfg.resume.lower()
    last = folder / "checkpoints" / "last.ckpt"
    if resume == "true" and not last.exists():
        raise UserError(f"resume=true, but there is no {last} to go on from: check name={cfg.name}, or type resume=auto")
    if resume == "false" and (last.exists() or (folder / RESULT).exists()) and is_main_process():
        raise UserError(f"{folder} holds a run: go on with resume=auto, or give this one another name=...")
    if resume == "auto" and is_main_process():
        print(f"going on from {last}" if last.exists() else f"nothing to go on from in {folder}: a fresh start")
    return last if resume != "false" and last.exists() else None


def add_trained_vae(cfg: DictConfig) -> Run:
    """Give stage 2 the VAE of a run of stage 1 and, unless other data were chosen, that run's data.

    Returns:
        The run of stage 1.
    """
    # The run's own folder keeps a copy of the VAE, so that a resume finds the same one whatever was trained since.
    claimed = Path(cfg.run_dir) / CONFIG
    wanted = OmegaConf.load(claimed).vae if cfg.vae is None and claimed.exists() and cfg.resume != "false" else cfg.vae
    own_data = cfg.data if "_target_" in cfg.data else None

    def suits(run: Run) -> bool:
        data = run.config["data"]
        return own_data is None or all(
            data.get(key) == own_data.get(key) for key in ("root", "num_images", "resolution")
        )

    outputs = Path(cfg.run_dir).parent.parent if HydraConfig.get().mode == RunMode.RUN else Path("outputs")
    run = find_run(wanted or "latest", "vae", outputs, suits)
    if run.stage != "vae":
        raise UserError(f"vae={wanted} is a run of stage 2: name one of stage 1")
    with open_dict(cfg):
        cfg.vae = str(run.folder)
        cfg.model.autoencoder = run.config["model"]["autoencoder"]
        if own_data is None:
            cfg.data = OmegaConf.merge(run.config["data"], cfg.data)
    if is_main_process():
        print(f"VAE: {run.folder}")
    return run


def record(cfg: DictConfig) -> None:
    """Write what was typed (.hydra) and what it came to (config.yaml) into the run's folder."""
    folder = Path(cfg.run_dir)
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    hydra = HydraConfig.get()
    OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
    OmegaConf.save(OmegaConf.create({"hydra": hydra}), folder / ".hydra" / "hydra.yaml")
    OmegaConf.save(list(hydra.overrides.task), folder / ".hydra" / "overrides.yaml")
    OmegaConf.save(cfg, folder / CONFIG, resolve=True)


def drop_if_empty(folder: str | Path) -> None:
    """Take away the folder that Hydra made for a run that was refused."""
    path = Path(folder)
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()


def copy_vae(run: Run, folder: str | Path) -> Path:
    """Copy a VAE's weights into the folder of the run that uses them; the copy's path."""
    target = Path(folder) / "checkpoints" / "best_vae.pth"
    if not target.exists() and is_main_process():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run.folder / "checkpoints" / "best_vae.pth", target)
    return target


@contextlib.contextmanager
def prepared_training(cfg: DictConfig) -> Iterator[tuple[Any, Any, Any, Path | None]]:
    """Check the config, claim the run's folder, and build data module, module, trainer; the checkpoint to go on from."""
    try:
        vae_run = add_trained_vae(cfg) if cfg.stage == "ldm" else None
        check_training(cfg)
        checkpoint = claim_run(cfg)
        cfg.trainer.precision = precision_for(cfg.trainer) if cfg.trainer.precision == "auto" else cfg.trainer.precision
        parts = build_training(cfg, vae_run)
    except BaseException:
        drop_if_empty(cfg.run_dir)
        raise
    try:
        yield *parts, checkpoint
    finally:
        if "wandb" in sys.modules:
            sys.modules["wandb"].finish()  # or the next job of a sweep would write into this job's run


def quiet_libraries() -> None:
    """Hold back what the libraries say at every start and nobody can act on."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*isinstance.treespec, LeafSpec.*",  # the library's own deprecation
        ".*Previous log files in this directory will be deleted.*",  # not with ResumableCSVLogger
        ".*is smaller than the logging interval.*",
        ".*dataloader is not resumable.*",  # the data module is
        ".*does not have many workers.*",  # packed data is fastest without
        ".*The anonymous setting has no effect.*",
        ".*exists and is not empty.*",
        ".*Mismatch dtype between input and weight.*",
    ):
        warnings.filterwarnings("ignore", message)


def build_training(cfg: DictConfig, vae_run: Run | None) -> tuple[Any, Any, Any]:
    """Data module, module and trainer of a checked config, which is written into the run's folder."""
    from lightning.pytorch import seed_everything

    from latentfaces.nn import weights_hash
    from latentfaces.training import AtomicCheckpointIO

    quiet_libraries()
    seed_everything(cfg.seed, workers=True, verbose=False)
    data = instantiate(cfg.data)
    with open_dict(cfg):
        cfg.pack = str(data.folder)
        if "wandb" in cfg.logger:
            cfg.logger.wandb.offline = wandb_is_offline() if cfg.logger.wandb.offline == "auto" else cfg.logger.wandb.offline
    if is_main_process():
        record(cfg)
    module = instantiate(cfg.model)
    if vae_run is not None:
        module.autoencoder.load_state_dict(vae_run.module("autoencoder", "best_vae").state_dict())
        copy_vae(vae_run, cfg.run_dir)
        data.use_latents(weights_hash(module.autoencoder), module.encode)
    trainer = instantiate(
        cfg.trainer,
        callbacks=list(instantiate(cfg.callbacks).values()),
        logger=list(instantiate(cfg.logger).values()),
        plugins=[AtomicCheckpointIO()],
        default_root_dir=cfg.run_dir,
    )
    return data, module, trainer


def prepared_task(cfg: DictConfig) -> tuple[Any, Any, Any]:
    """The task of sample.py, the pipeline of the run it asks for, and the folder for its pictures."""
    from latentfaces.pipeline import FacePipeline
    from latentfaces.tasks import PictureFolder

    run = find_run(cfg.run, "ldm")
    if "pack" in cfg.task:
        cfg.task.pack = run.config["pack"]
    settings = OmegaConf.to_container(cfg.task, resolve=True)
    check_types(settings, "task")
    task = instantiate(cfg.task)
    pipeline = FacePipeline.load(run)
    name = HydraConfig.get().runtime.choices.task
    default = run.folder / "samples" / f"{name}_{datetime.now():%Y-%m-%d_%H-%M-%S}"
    origin = {"run": str(run.folder), "weights": pipeline.weights, **settings, "task": name}
    return task, pipeline, PictureFolder(cfg.output or default, origin)
