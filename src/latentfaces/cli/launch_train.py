"""From a composed config to a training that is ready to start, step by step."""

import contextlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from latentfaces.autoencoder import VAE
from latentfaces.cli import tracking
from latentfaces.cli.compute import apply_choices, device_choices, keep_freed_memory, limit_threads, training_device
from latentfaces.cli.devices import drop_stale_ranks, resolve_devices
from latentfaces.cli.init_run import add_init_run, check_network, take_weights
from latentfaces.cli.labels import add_conditioning, has_labels, save_labels
from latentfaces.cli.resume import claim_run, command_to_resume, requeue, resumed_run, trained_alone
from latentfaces.cli.vae_run import add_trained_vae
from latentfaces.config.overrides import leaves_of, plain
from latentfaces.config.secrets import refuse_unsafe
from latentfaces.config.validation import check_optimizers, check_training, refuse_filled_in
from latentfaces.diffusion import FlowMapLoss
from latentfaces.errors import UserError
from latentfaces.evaluation.reconstructions import show_reconstructions
from latentfaces.files import atomic_write, drop_if_empty
from latentfaces.pipeline import FacePipeline
from latentfaces.ranks import destroy_process_group, is_main_process
from latentfaces.run import CONFIG, Run, open_run
from latentfaces.signals import Stopped, handle_signals


@contextlib.contextmanager
def prepared_training(cfg: DictConfig) -> Iterator[tuple[Any, Any, Any, Path | None]]:
    """Check the config, lock the run folder, and build data module, module and trainer.

    Yields:
        Data module, module, trainer, and the checkpoint to resume from, or None.
    """
    keep_freed_memory()
    drop_stale_ranks(cfg)
    try:
        refuse_filled_in()
        refuse_unsafe(cfg)
        init = add_init_run(cfg)
        trained_vae = add_trained_vae(cfg) if cfg.stage == "ldm" else None
        if isinstance(init, Run):
            check_network(cfg, init)
        check_training(cfg)
        resolve_devices(cfg)
        if training_device(cfg.trainer).type == "cpu" and is_main_process():
            limit_threads()
        cfg.trainer.precision = device_choices(cfg).precision
        with trained_alone(cfg):
            checkpoint = claim_run(cfg)
            with graceful_stop(cfg) as stop:
                data, module, trainer = build_training(cfg, init, trained_vae, stop)
                with one_job():
                    yield data, module, trainer, checkpoint
    except BaseException:
        drop_if_empty(cfg.run_dir)
        raise
    finally:
        tracking.finish()  # or the next job of a sweep would log to this job's W&B run


@contextlib.contextmanager
def graceful_stop(cfg: DictConfig) -> Iterator[Any]:
    """Within this context a signal stops the run after a checkpoint, and the resume command is printed.

    Yields:
        The callback that does it.
    """
    from latentfaces.training.callbacks import GracefulStop

    stop = GracefulStop(Path(cfg.run_dir) / "checkpoints" / "last.ckpt")
    try:
        with handle_signals(stop.note):
            yield stop
    except Stopped as stopped:
        if is_main_process():
            saved = "nothing new to save" if stopped.saved is None else "step {} is saved in {}".format(*stopped.saved)
            print(f"Stopped by {stopped.signal.name}; {saved}. To resume, run\n{command_to_resume(cfg)}", flush=True)
            if cfg.requeue and stopped.signal in (signal.SIGUSR1, signal.SIGUSR2):
                requeue()
        raise


@contextlib.contextmanager
def one_job() -> Iterator[None]:
    """Within a job of a sweep, let the ranks that Lightning starts run only this job.

    Lightning starts them with this process's command line and environment (Lightning issue 11300).
    """
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        yield
        destroy_process_group()  # after an error the other ranks still read the store
        return
    argv, environment = sys.argv, dict(os.environ)
    hydra: Any = HydraConfig.get()
    OmegaConf.set_readonly(hydra, False)
    hydra.run.dir = hydra.runtime.output_dir
    sys.argv = [argv[0], *hydra.overrides.task, "hydra.mode=RUN"]  # an experiment may set hydra.mode=MULTIRUN
    try:
        yield
    finally:
        sys.argv = argv
        for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            if name not in environment:
                os.environ.pop(name, None)
        destroy_process_group()


def build_training(
    cfg: DictConfig, init: Run | VAE | None, trained_vae: Run | VAE | None, stop: Any
) -> tuple[Any, Any, Any]:
    """Build data module, module and trainer of a checked config, and complete the config.

    Args:
        cfg: the config.
        init: what has the weights that training starts from, or None.
        trained_vae: what has the VAE of stage 2, or None.
        stop: the callback that stops the run on a signal.
    """
    from lightning.pytorch import seed_everything
    from lightning.pytorch.loggers import WandbLogger

    from latentfaces.training import save_weights

    quiet_libraries()
    seed_everything(cfg.seed, workers=True, verbose=False)
    trainer = build_trainer(cfg, stop)
    # Data comes last, as it may be downloaded and packed for hours. But the size of the network depends on labels.
    data = packed_data(cfg, trainer) if has_labels(cfg) else None
    if data is not None:
        add_conditioning(cfg, data)
    module = build_module(cfg, init)
    computed = apply_choices(device_choices(cfg), module.network, training_device(cfg.trainer))
    data = data or packed_data(cfg, trainer)
    if trained_vae is not None:
        vae = trained_vae.module("autoencoder", "best_vae") if isinstance(trained_vae, Run) else trained_vae
        module.autoencoder.load_state_dict(vae.state_dict())
        data.use_latents(module.autoencoder.cache_key, module.encode)
    if data.label_table is not None:
        module.label_rows = save_labels(data, cfg)
    if is_main_process():
        if isinstance(init, VAE) or isinstance(trained_vae, VAE):
            show_pretrained(module.autoencoder, data, cfg)
        if trained_vae is not None and resumed_run(cfg) is None:  # the run can be moved without the other
            save_weights(module.autoencoder, Path(cfg.run_dir) / "checkpoints" / "best_vae.pth")
        print(describe(cfg, trainer, computed))
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            tracking.begin(logger, plain(cfg))
            cfg.logger.wandb.id = logger.version  # another one if it could not start online
    return data, module, trainer


def quiet_libraries() -> None:
    """Silence notices of libraries that do not apply here."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # the report of trainer.profiler
    for message in (
        ".*isinstance.treespec, LeafSpec.*",  # a deprecation within Lightning
        ".*is smaller than the logging interval.*",
        ".*dataloader is not resumable.*",  # the data module is
        ".*does not have many workers.*",  # packed data needs none
        ".*exists and is not empty.*",
    ):
        warnings.filterwarnings("ignore", message)


def build_trainer(cfg: DictConfig, stop: Any) -> Any:
    """Build the Trainer with the callbacks and loggers of the config, and `stop`."""
    from lightning.pytorch.callbacks import LambdaCallback

    from latentfaces.training import AtomicCheckpointIO, TimeLimit
    from latentfaces.training.callbacks import ExactResume

    if cfg.logger.get("wandb") is not None:
        with open_dict(cfg):
            tracking.prepare_wandb(cfg)
    interval = cfg.trainer.val_check_interval
    if isinstance(interval, int):  # optimizer steps, which Lightning counts in batches
        interval *= cfg.trainer.accumulate_grad_batches
    # After the checkpoint is restored: a config that does not fit it must not replace the stored one.
    config = LambdaCallback(on_train_start=lambda *_: save_config(cfg))
    return instantiate(
        cfg.trainer,
        # Exact resume and a graceful stop do not depend on the choice of callbacks.
        callbacks=[TimeLimit(cfg.trainer.max_time), ExactResume(), config, *build_parts(cfg.callbacks), stop],
        logger=build_parts(cfg.logger),
        plugins=[AtomicCheckpointIO(cfg.on_full_disk)],
        default_root_dir=cfg.run_dir,
        use_distributed_sampler=False,  # the data module distributes batches, which makes a resume exact
        val_check_interval=interval,
    )


def build_parts(parts: DictConfig) -> list[Any]:
    """Build the callbacks or the loggers of the config. `callbacks.NAME=null` leaves one out."""
    return [part for part in instantiate(parts).values() if part is not None]


def build_module(cfg: DictConfig, init: Run | VAE | None) -> Any:
    """Build the LightningModule, with the weights of `init` if there is one."""
    from latentfaces.report.sweep_page import changes_loss
    from latentfaces.training import NonFiniteGuard
    from latentfaces.training.trainable import freeze

    module = instantiate(cfg.model)
    module.finite = NonFiniteGuard(cfg.on_nonfinite, cfg.max_skipped_steps)
    values = dict(leaves_of(cfg, resolve=True))
    module.objective = {key: str(values[key]) for key in changes_loss(list(values)) if key != "vae"}
    if init is not None:
        take_weights(module, init, cfg.init)
    if cfg.run is not None:
        add_teacher(module.loss, open_run(cfg.init), cfg)
    freeze(module.network, cfg.trainable)
    check_optimizers(module)
    return module


def add_teacher(loss: FlowMapLoss, run: Run, cfg: DictConfig) -> None:
    """Set the run that a flow map is learned from, with its guidance unless the config has another.

    Raises:
        UserError: the run has other labels, or does not fit the guidance.
    """
    teacher = FacePipeline.load(run, "cpu", guidance=loss.guidance)
    assert teacher.denoiser is not None
    if plain(cfg.model).get("conditioning") != run.config["model"].get("conditioning"):
        raise UserError(f"run={run.folder} was trained with other labels. Use its data.labels.")
    teacher.predictor()  # raises if the guidance does not fit
    loss.learn_from(teacher.denoiser, teacher.guide_in_use, teacher.guidance)


def packed_data(cfg: DictConfig, trainer: Any) -> Any:
    """Build the data module, and pack its images."""
    data = instantiate(cfg.data)
    with open_dict(cfg):
        cfg.pack = str(data.folder)
    data.trainer = trainer  # too few images for its devices are reported before other ranks start
    data.pack()  # before the process group exists, whose time limit the waiting ranks would exceed
    return data


def show_pretrained(vae: VAE, data: Any, cfg: DictConfig) -> None:
    """Write and print how a pretrained VAE reconstructs held-out images.

    Raises:
        UserError: as NaN or Inf.
    """
    bfloat16 = cfg.trainer.precision.startswith("bf16")
    pipeline = FacePipeline(vae, None, cfg.data.resolution, training_device(cfg.trainer), bfloat16)
    path = Path(cfg.run_dir) / "images" / "vae.png"
    show_reconstructions(pipeline.reconstruct, data.pack(), cfg.vae or cfg.init, path)


def save_config(cfg: DictConfig) -> None:
    """Write the config and the overrides into the run folder, on rank 0."""
    if not is_main_process():
        return
    folder = Path(cfg.run_dir)
    save_yaml(cfg, folder / ".hydra" / "config.yaml")
    save_yaml(HydraConfig.get().overrides.task, folder / ".hydra" / "overrides.yaml")
    save_yaml(cfg, folder / CONFIG, resolve=True)


def save_yaml(config: Any, path: Path, resolve: bool = False) -> None:
    """Write a config atomically."""
    with atomic_write(path) as file:
        file.write(OmegaConf.to_yaml(config, resolve=resolve).encode())


def describe(cfg: DictConfig, trainer: Any, computed: str) -> str:
    """Return one line with the devices, how they compute, and the images of a step."""
    kind = type(trainer.accelerator).__name__.removesuffix("Accelerator")
    devices, accumulated = trainer.world_size, trainer.accumulate_grad_batches
    line = f"training on {devices} {kind} device(s), {computed}"
    if devices * accumulated > 1:
        line += (
            f"; a step takes {cfg.data.batch_size * devices * accumulated} images (data.batch_size="
            f"{cfg.data.batch_size} x {devices} devices x trainer.accumulate_grad_batches={accumulated}); "
            f"model.optimizer.lr={cfg.model.optimizer.lr:g} is not scaled"
        )
    return line
