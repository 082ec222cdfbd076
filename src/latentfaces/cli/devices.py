"""Devices of a training and the launcher of its processes."""

import os
import sys
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from latentfaces.config.overrides import names_its_run, overridden_keys
from latentfaces.config.paths import CONF
from latentfaces.errors import UserError
from latentfaces.ranks import RANK_VARIABLES

DDP = CONF / "strategy" / "ddp.yaml"
GPU_ACCELERATORS = ("auto", "gpu", "cuda")


def launcher_of_this_process() -> tuple[str, int, int] | None:
    """Return the launcher, its processes on each machine and its machines; None if the user or Lightning started this.

    Raises:
        UserError: a SLURM job has several tasks, and srun did not start this process.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        num_devices = variable("LOCAL_WORLD_SIZE")
        return "torchrun", num_devices, variable("WORLD_SIZE") // num_devices
    if variable("SLURM_NTASKS") == 1 or interactive():
        return None
    if "SLURM_STEP_NUM_TASKS" not in os.environ:  # which srun sets, and sbatch does not
        raise UserError(
            f"This job has {variable('SLURM_NTASKS')} tasks, but srun did not start this process. Use "
            "`srun python train.py ...`, or request one task (--ntasks=1)."
        )
    return "srun", variable("SLURM_NTASKS") // variable("SLURM_NNODES"), variable("SLURM_NNODES")


def variable(name: str) -> int:
    """Return an environment variable that counts something: 1 if it is not set or empty."""
    return int(os.environ.get(name) or 1)


def interactive() -> bool:
    """Return whether this is a shell within SLURM, in which Lightning starts the other ranks itself."""
    return os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")


def drop_stale_ranks(cfg: DictConfig) -> None:
    """Remove variables of ranks that another training left in the environment: Lightning would trust them."""
    if "TORCHELASTIC_RUN_ID" in os.environ or variable("WORLD_SIZE") > 1 or cfg.trainer.num_nodes > 1:
        return
    for name in RANK_VARIABLES:
        if name != "SLURM_PROCID" and (value := os.environ.pop(name, "")) not in ("", "0"):
            print(f"Ignoring {name}={value} from the environment: this process is the only one.", file=sys.stderr)


def resolve_devices(cfg: DictConfig) -> None:
    """Set devices to those of the launcher, and the strategy to DDP for several; reject what cannot work.

    Raises:
        UserError: naming the key and the fix.
    """
    trainer, overridden = cfg.trainer, overridden_keys()
    launcher: str | None = None
    if (found := launcher_of_this_process()) is not None:
        launcher, *numbers = found
        if not names_its_run():
            raise UserError(f"The processes of {launcher} need one folder. Give the run a name=...")
        for key, started in zip(("devices", "num_nodes"), numbers, strict=True):
            if f"trainer.{key}" in overridden and str(trainer[key]) not in ("auto", "-1", str(started)):
                raise UserError(f"trainer.{key}={trainer[key]}, but {launcher} started {started}. Leave it out.")
            trainer[key] = started
    check_gpus(trainer, launcher)
    if launcher is None and "SLURM_NTASKS" in os.environ and not interactive() and num_processes(trainer) > 1:
        raise UserError(
            f"This SLURM task trains on one device. Use srun --ntasks-per-node={num_devices(trainer)} for "
            f"trainer.devices={trainer.devices}"
        )
    check_strategy(cfg)
    if trainer.strategy == "auto" and num_processes(trainer) > 1:
        trainer.strategy = OmegaConf.load(DDP).strategy


def check_gpus(trainer: DictConfig, launcher: str | None) -> None:
    """Reject more devices than there are GPUs: Lightning would start as many processes on one CPU."""
    import torch

    wanted, available = num_devices(trainer), torch.cuda.device_count()
    if wanted <= max(available, 1) or trainer.accelerator not in GPU_ACCELERATORS:
        return
    if launcher is None:
        fewer = f"Use trainer.devices={available}, or " if available else "Use "
        raise UserError(
            f"trainer.devices={trainer.devices}, but this machine has {available} GPUs. {fewer}the CPU with "
            f"trainer.accelerator=cpu trainer.devices={wanted}."
        )
    if launcher == "srun" and available:
        raise UserError(
            f"Each of the {wanted} tasks of a machine sees {available} GPUs. Use --gpus-per-node={wanted} in place "
            "of --gpus-per-task"
        )


def num_devices(trainer: DictConfig) -> int:
    """Return the number of devices of each machine.

    Raises:
        UserError: the key is not a number of devices.
    """
    import torch

    devices: Any = trainer.devices
    if OmegaConf.is_list(devices):  # indices of GPUs
        return len(devices)
    if str(devices) in ("auto", "-1"):
        return max(torch.cuda.device_count(), 1) if trainer.accelerator in GPU_ACCELERATORS else 1
    if not str(devices).isdecimal() or int(devices) == 0:
        raise UserError(f"trainer.devices={devices} is invalid: use a number, e.g. 4, indices, e.g. [0,2], or auto")
    return int(devices)


def num_processes(trainer: DictConfig) -> int:
    """Return the number of processes of the training."""
    return num_devices(trainer) * int(trainer.num_nodes)


def check_strategy(cfg: DictConfig) -> None:
    """Reject what strategy=fsdp cannot do, and validation by the clock on several ranks; fsdp is channels first.

    Raises:
        UserError: naming the key and the fix.
    """
    model, trainer = cfg.model, cfg.trainer
    if isinstance(trainer.val_check_interval, str) and num_processes(trainer) > 1:
        raise UserError(
            f"trainer.val_check_interval={trainer.val_check_interval} needs one device: the clocks of several ranks "
            "differ. Give a number of steps."
        )
    if HydraConfig.get().runtime.choices["strategy"] != "fsdp":
        return
    if model.get("adversary") is not None:
        raise UserError(
            "model/loss=adversarial compares gradients at a layer that strategy=fsdp splits. Use strategy=ddp."
        )
    if str(model.optimizer._target_).endswith("MuonAdamW"):
        raise UserError("model/optimizer=muon needs complete matrices, which strategy=fsdp splits. Use strategy=ddp.")
    cfg.device.channels_last = False  # sharded weights are contiguous; the default on GPUs is true
