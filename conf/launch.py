"""Between Hydra and training: what train.py looks up, writes down and builds before it starts its work."""

import contextlib
import logging
import netrc
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from conf.checks import check_training
from latentfaces.errors import UserError
from latentfaces.files import written_whole
from latentfaces.run import CONFIG, RESULT, Run, find_run, open_run


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
        raise UserError(
            f"resume=true, but there is no {last} to go on from: check name={cfg.name}, or type resume=auto"
        )
    if resume == "false" and (last.exists() or (folder / RESULT).exists()) and is_main_process():
        raise UserError(f"{folder} holds a run: go on with resume=auto, or give this one another name=...")
    if resume == "auto" and is_main_process():
        print(f"going on from {last}" if last.exists() else f"nothing to go on from in {folder}: a fresh start")
    return last if resume != "false" and last.exists() else None


def add_trained_vae(cfg: DictConfig) -> Run:
    """Give stage 2 the VAE of a run of stage 1 and, unless other data were chosen, that run's data.

    Returns:
        The run that has the VAE: one of stage 1, or the run itself when it goes on, from its own copy.
    """
    own_data = cfg.data if "_target_" in cfg.data else None

    def suits(run: Run) -> bool:
        keys = ("root", "num_images", "resolution")
        return own_data is None or all(run.config["data"].get(key) == own_data.get(key) for key in keys)

    if cfg.resume.lower() != "false" and (Path(cfg.run_dir) / CONFIG).exists():
        run = open_run(cfg.run_dir)
        if cfg.vae is not None and cfg.vae != run.config["vae"]:
            raise UserError(f"{cfg.run_dir} goes on with its own VAE, of {run.config['vae']}: leave out vae={cfg.vae}")
        trained = run.config["vae"]
    else:
        run = find_run(cfg.vae or "latest", "vae", suits=suits)
        if run.stage != "vae":
            raise UserError(f"vae={cfg.vae} is a run of stage 2: name one of stage 1")
        trained = str(run.folder)
    with open_dict(cfg):
        cfg.vae = trained
        cfg.model.autoencoder = run.config["model"]["autoencoder"]
        if own_data is None:
            cfg.data = OmegaConf.merge(run.config["data"], cfg.data)
    if is_main_process():
        print(f"VAE: {trained}")
    return run


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain containers, every reference resolved."""
    container: Any = OmegaConf.to_container(cfg, resolve=True)
    return container


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
        with written_whole(target) as file:
            file.write((run.folder / "checkpoints" / "best_vae.pth").read_bytes())
    return target


@contextlib.contextmanager
def one_job() -> Iterator[None]:
    """Within a sweep, let the processes that Lightning starts for further devices run this job, not the sweep again.

    They are started with this process's own command line and environment (Lightning issue 11300): here that line is
    the job's, and afterwards nothing of the job is left in the environment.
    """
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        yield
        return
    argv, environment = sys.argv, dict(os.environ)
    hydra: Any = HydraConfig.get()
    OmegaConf.set_readonly(hydra, False)
    hydra.run.dir = hydra.runtime.output_dir
    sys.argv = [argv[0], *hydra.overrides.task]
    try:
        yield
    finally:
        sys.argv = argv
        for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            if name not in environment:
                os.environ.pop(name, None)
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


@contextlib.contextmanager
def prepared_training(cfg: DictConfig) -> Iterator[tuple[Any, Any, Any, Path | None]]:
    """Check the config, claim the run's folder; data module, module, trainer and the checkpoint to go on from."""
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
        with one_job():
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
        ".*exists and is not empty.*",
        ".*Mismatch dtype between input and weight.*",
    ):
        warnings.filterwarnings("ignore", message)


def build_training(cfg: DictConfig, vae_run: Run | None) -> tuple[Any, Any, Any]:
    """Data module, module and trainer of a checked config, which is written into the run's folder."""
    from lightning.pytorch import seed_everything
    from lightning.pytorch.loggers import WandbLogger

    from latentfaces.nn import weights_hash
    from latentfaces.training import AtomicCheckpointIO

    quiet_libraries()
    seed_everything(cfg.seed, workers=True, verbose=False)
    data = instantiate(cfg.data)
    with open_dict(cfg):
        cfg.pack = str(data.folder)
        if "wandb" in cfg.logger:
            cfg.logger.wandb.offline = (
                wandb_is_offline() if cfg.logger.wandb.offline == "auto" else cfg.logger.wandb.offline
            )
    module = instantiate(cfg.model)  # before the packing: a mistake in it is told at once
    if is_main_process():
        data.pack()
    if vae_run is not None:
        module.autoencoder.load_state_dict(vae_run.module("autoencoder", "best_vae").state_dict())
        data.use_latents(weights_hash(module.autoencoder), module.encode)
    trainer: Any = instantiate(
        cfg.trainer,
        callbacks=list(instantiate(cfg.callbacks).values()),
        logger=list(instantiate(cfg.logger).values()),
        plugins=[AtomicCheckpointIO()],
        default_root_dir=cfg.run_dir,
    )
    if is_main_process():
        record(cfg)  # only now: whatever was wrong has been said, and nothing written
    if vae_run is not None:
        copy_vae(vae_run, cfg.run_dir)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger._wandb_init.pop("anonymous", None)  # W&B warns of what the library always passes
            logger.log_hyperparams(plain(cfg))
    if is_main_process():
        kind = type(trainer.accelerator).__name__.removesuffix("Accelerator")
        print(f"training on {trainer.num_devices} {kind} device(s), {cfg.trainer.precision}")
    return data, module, trainer
