"""Commands on several ranks, started as launchers do, without a fresh interpreter each."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers.commands import run_command
from helpers.forked import Forker, Running, free_port

ON_CPU = ["trainer.accelerator=cpu"]


def torchrun_environment(rank: int, number: int, port: str) -> dict[str, str]:
    """Return the environment that torchrun sets for a process on one machine."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number}
    rest = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    return {name: str(value) for name, value in names.items()} | rest


def slurm_environment(rank: int, number: int, port: str) -> dict[str, str]:
    """Return the environment that srun sets for the only process of a machine."""
    here = {"SLURM_PROCID": rank, "SLURM_NODEID": rank, "SLURM_LOCALID": 0}
    job = {
        "SLURM_NTASKS": number,
        "SLURM_NNODES": number,
        "SLURM_STEP_NUM_TASKS": number,
        "SLURM_NTASKS_PER_NODE": 1,
        "SLURM_JOB_ID": 1,
    }
    rest = {"SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NAME": "train", "MASTER_PORT": port}
    return {name: str(value) for name, value in (here | job).items()} | rest


def start_on(
    number: int, fork: Forker, *arguments: str, environment: Any = torchrun_environment, name: str = "train.py"
) -> list[Running]:
    """Start a command on `number` ranks."""
    port = free_port()
    return [fork.start(*arguments, name=name, **environment(rank, number, port)) for rank in range(number)]


def run_on(number: int, fork: Forker, *arguments: str, **options: Any) -> str:
    """Run a command on `number` ranks, and return what rank 0 printed."""
    running = start_on(number, fork, *arguments, **options)
    ends = [rank.wait(120) for rank in running]
    assert ends == [0] * number, "\n".join([f"exit codes {ends}", *(rank.said for rank in running)])
    return running[0].said


def under_torchrun(folder: Path, number: int, log: Path, commands: Sequence[Sequence[str]]) -> None:
    """Run commands one after the other with torchrun's own agent, in a process that may be forked."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    import latentfaces.tasks
    import latentfaces.training  # noqa: F401 # once, before the processes are forked

    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    for name, *arguments in commands:
        config = LaunchConfig(
            1, 1, number, run_id="test", rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", start_method="fork",
            monitor_interval=0.1,
        )  # fmt: skip
        elastic_launch(config, run_command)(name, *arguments)
