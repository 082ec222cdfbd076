"""Between Hydra and training: what train.py looks up, writes down and builds before it starts its work."""

import contextlib
import copy
import functools
import logging
import math
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from latentfaces.cli import tracking
from latentfaces.cli.compute import (
    apply_choices,
    device_choices,
    keep_freed_memory,
    training_device,
)
from latentfaces.cli.devices import resolve_devices
from latentfaces.cli.resume import claim_run, command_to_resume, requeue, trained_alone
from latentfaces.cli.tracking import prepare_wandb
from latentfaces.cli.vae_run import add_trained_vae, copy_vae
from latentfaces.config.overrides import leaves_of, plain
from latentfaces.config.secrets import refuse_links, refuse_secrets_in
from latentfaces.config.validation import check_optimizers, check_training
from latentfaces.errors import UserError
from latentfaces.files import atomic_write, drop_if_empty
from latentfaces.nn import DeviceChoices
from latentfaces.ranks import is_main_process
from latentfaces.run import CONFIG, Run
from latentfaces.signals import Stopped


@functools.cache
def defaults_of(stage: str, sources: tuple[str, ...]) -> DictConfig:
    """The config of `train.py model=STAGE`, made once for all jobs of a sweep; `sources`: the folders of its files."""
    return compose("train", overrides=[f"model={stage}"])


def record(cfg: DictConfig) -> None:
    """Write what was typed (.hydra) and what it came to (config.yaml) into the run's folder, and the defaults."""
    folder = Path(cfg.run_dir)
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    hydra = HydraConfig.get()
    save_yaml(cfg, folder / ".hydra" / "config.yaml")
    save_yaml(OmegaConf.create({"hydra": hydra}), folder / ".hydra" / "hydra.yaml")
    save_yaml(OmegaConf.create(list(hydra.overrides.task)), folder / ".hydra" / "overrides.yaml")
    save_yaml(cfg, folder / CONFIG, resolve=True)
    sources = tuple(source.path for source in hydra.runtime.config_sources)
    defaults = copy.deepcopy(defaults_of(cfg.stage, sources))  # for report.html to compare with
    with open_dict(defaults):
        defaults.run_dir = cfg.run_dir
        if cfg.stage == "ldm":  # these come from the VAE's run
            defaults.vae, defaults.data, defaults.model.autoencoder = cfg.vae, cfg.data, cfg.model.autoencoder
    save_yaml(defaults, folder / ".hydra" / "defaults.yaml", resolve=True)


def save_yaml(config: Any, path: Path, resolve: bool = False) -> None:
    """Write a config atomically."""
    with atomic_write(path) as file:
        file.write(OmegaConf.to_yaml(config, resolve=resolve).encode())


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
    sys.argv = [argv[0], *hydra.overrides.task, "hydra.mode=RUN"]  # though an experiment may say that it is a sweep
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
    keep_freed_memory()
    try:
        refuse_links(cfg)
        vae_run = add_trained_vae(cfg) if cfg.stage == "ldm" else None
        refuse_secrets_in(cfg)
        check_training(cfg)
        of_a_sweep = HydraConfig.get().mode == RunMode.MULTIRUN or (Path(cfg.run_dir).parent / "multirun.yaml").exists()
        if "median_stop" in cfg.callbacks and not of_a_sweep and is_main_process():
            raise UserError("pruning=median compares the jobs of a sweep: train with -m, or leave it out")
        resolve_devices(cfg)
        choices = device_choices(cfg)
        cfg.trainer.precision = choices.precision
        with trained_alone(cfg):
            checkpoint = claim_run(cfg)
            with stops_told(cfg) as stop:
                parts = build_training(cfg, vae_run, choices, stop)
                with one_job():
                    yield *parts, checkpoint
    except BaseException:
        drop_if_empty(cfg.run_dir)
        raise
    finally:
        tracking.finish()  # or the next job of a sweep would write into this job's run


@contextlib.contextmanager
def stops_told(cfg: DictConfig) -> Iterator[Any]:
    """Within this context a signal ends the run in order, and then it is told how to go on; the callback for it."""
    from latentfaces.training.callbacks import GracefulStop

    stop = GracefulStop(Path(cfg.run_dir) / "checkpoints" / "last.ckpt")
    try:
        with stop.listening():
            yield stop
    except Stopped as stopped:
        if is_main_process():
            saved = "nothing new to save" if stopped.saved is None else "step {} is saved in {}".format(*stopped.saved)
            print(f"Stopped by {stopped.signal.name}; {saved}. To resume, run\n{command_to_resume(cfg)}", flush=True)
            if cfg.requeue and stopped.signal in (signal.SIGUSR1, signal.SIGUSR2):
                requeue()
        raise


def quiet_libraries() -> None:
    """Hold back what the libraries say at every start and nobody can act on."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*isinstance.treespec, LeafSpec.*",  # the library's own deprecation
        ".*is smaller than the logging interval.*",
        ".*dataloader is not resumable.*",  # the data module is
        ".*does not have many workers.*",  # packed data is fastest without
        ".*exists and is not empty.*",
    ):
        warnings.filterwarnings("ignore", message)


def build_training(cfg: DictConfig, vae_run: Run | None, choices: DeviceChoices, stop: Any) -> tuple[Any, Any, Any]:
    """Data module, module and trainer of a checked config, which is written into the run's folder.

    Args:
        cfg: the config.
        vae_run: the run that has the VAE, for stage 2.
        choices: how the networks are computed.
        stop: the callback that ends the run in order.
    """
    from lightning.pytorch import seed_everything
    from lightning.pytorch.loggers import WandbLogger

    from latentfaces.nn import weights_hash
    from latentfaces.report.sweep_page import changes_loss
    from latentfaces.training import AtomicCheckpointIO, NonFiniteGuard, TimeLimit
    from latentfaces.training.callbacks import ExactResume

    quiet_libraries()
    seed_everything(cfg.seed, workers=True, verbose=False)
    with open_dict(cfg):
        if "wandb" in cfg.logger:
            prepare_wandb(cfg)
    module = instantiate(cfg.model)
    module.finite = NonFiniteGuard(cfg.on_nonfinite, cfg.max_skipped_steps)
    values = dict(leaves_of(cfg, resolve=True))
    module.objective = {key: str(values[key]) for key in changes_loss(list(values)) if key != "vae"}
    check_optimizers(module)
    words = apply_choices(choices, module.network, training_device(cfg.trainer))
    limit = [TimeLimit(cfg.trainer.max_time)] if cfg.trainer.max_time else []
    trainer: Any = instantiate(
        cfg.trainer,
        # The first and last whatever was chosen: no choice of callbacks should cost a run, or make its resume another.
        callbacks=[ExactResume(), *instantiate(cfg.callbacks).values(), *limit, stop],
        logger=list(instantiate(cfg.logger).values()),
        plugins=[AtomicCheckpointIO(cfg.on_full_disk)],
        default_root_dir=cfg.run_dir,
        val_check_interval=batches_between_validations(cfg.trainer),
    )
    data = instantiate(cfg.data)  # downloads and packs: after everything whose mistakes can be told without
    with open_dict(cfg):
        cfg.pack = str(data.folder)
    data.pack()  # one process does, and the others wait without a limit, which a process group would not
    if vae_run is not None:
        module.autoencoder.load_state_dict(vae_run.module("autoencoder", "best_vae").state_dict())
        data.use_latents(weights_hash(module.autoencoder), module.encode)
    if is_main_process():
        record(cfg)  # only now: whatever was wrong has been said, and nothing written
    if vae_run is not None:
        copy_vae(vae_run, cfg.run_dir)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            tracking.begin(logger, plain(cfg))
    if is_main_process():
        print(told(cfg, trainer, words))
    return data, module, trainer


def batches_between_validations(trainer: DictConfig) -> Any:
    """Return `val_check_interval` as Lightning counts it: in batches where the key counts optimizer steps."""
    interval = trainer.val_check_interval
    return interval * trainer.accumulate_grad_batches if isinstance(interval, int) else interval


def told(cfg: DictConfig, trainer: Any, how: str) -> str:
    """Describe devices, precision and the number of images of a step."""
    kind = type(trainer.accelerator).__name__.removesuffix("Accelerator")
    what = f"training on {trainer.world_size} {kind} device(s), {how}"
    factors = {
        "data.batch_size": cfg.data.batch_size,
        "devices": trainer.world_size,
        "trainer.accumulate_grad_batches": trainer.accumulate_grad_batches,
    }
    several = {name: factor for name, factor in factors.items() if factor > 1 or name == "data.batch_size"}
    if len(several) == 1:
        return what
    return (
        f"{what}; a step takes {math.prod(several.values())} pictures ({' x '.join(several)} = "
        f"{' x '.join(map(str, several.values()))}); model.optimizer.lr={cfg.model.optimizer.lr:g} stays as it is"
    )
