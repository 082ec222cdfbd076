"""How several devices train together: each with all weights (DDP), or each with a share of them (FSDP)."""

import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies import (
    DDPStrategy,
    ModelParallelStrategy,
    ParallelStrategy,
    Strategy,
)
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from latentfaces.ranks import is_main_process
from latentfaces.training.distributed.sharding import placed_like
from latentfaces.training.distributed.watchdog import RankWatch


class WatchedLauncher(_SubprocessScriptLauncher):
    """Starts the other ranks of this machine, unless a launcher outside has, and watches over them.

    The library's own observer kills this process as soon as another ends with a status other than 0, before it can say
    anything.
    """

    watch: RankWatch | None = None

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        # Lightning's `launch` with its observer replaced: the two private calls below are the rest of it.
        environment = self.cluster_environment
        environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not environment.creates_processes_externally:
            self._call_children_scripts()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        started_by_rank_0 = isinstance(environment, LightningEnvironment) and environment.local_rank() > 0
        self.watch = RankWatch(self.procs, os.getppid() if started_by_rank_0 else None)
        with self.watch:
            return function(*args, **kwargs)


class Watched(ParallelStrategy):
    """Ranks that wait for one another for a limited time, and not at all once one has failed."""

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        assert self.parallel_devices is not None
        num_nodes: int = self.num_nodes  # type: ignore[attr-defined]
        # Lightning's strategies choose their launcher here; there is no argument for it.
        self._launcher = WatchedLauncher(self.cluster_environment, len(self.parallel_devices), num_nodes)

    @property
    def failed(self) -> bool:
        """Whether this rank has failed, and must not wait for the others any more."""
        return (
            isinstance(self.launcher, WatchedLauncher)
            and self.launcher.watch is not None
            and self.launcher.watch.failed
        )

    def barrier(self, name: str | None = None) -> None:
        if not self.failed:
            super().barrier(name)  # type: ignore[safe-super]


def backend_timeout(timeout_minutes: float) -> timedelta:
    """Return the time-out of the backend.

    Raises:
        ValueError: it is no time.
    """
    if timeout_minutes <= 0:
        raise ValueError(f"timeout_minutes={timeout_minutes} must be above 0")
    return timedelta(minutes=timeout_minutes)


class DDP(Watched, DDPStrategy):
    """A process a device, each with all weights; gradients are averaged.

    Args:
        timeout_minutes: how long ranks wait for one another.
    """

    def __init__(self, timeout_minutes: float = 10.0) -> None:
        super().__init__(timeout=backend_timeout(timeout_minutes))


class FSDP(Watched, ModelParallelStrategy):
    """A process a device, each with a share of weights, gradients, averages and the optimiser's state (FSDP2).

    A checkpoint is one complete file that rank 0 writes, so that any number of ranks resumes it under any strategy.
    Lightning's own checkpoints of this strategy lose what callbacks keep sharded.

    Args:
        timeout_minutes: how long ranks wait for one another.
    """

    restore_checkpoint_after_setup = False  # in the order of the other strategies
    lightning_restore_optimizer = True

    def __init__(self, timeout_minutes: float = 10.0) -> None:
        super().__init__(timeout=backend_timeout(timeout_minutes))

    def setup_environment(self) -> None:
        # Known only here. Lightning's "auto" is tensor parallel within a machine; here all ranks are data parallel.
        self._data_parallel_size, self._tensor_parallel_size = self.world_size, 1
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return Strategy.lightning_module_state_dict(self)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return Strategy.optimizer_state(self, optimizer)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        if not self.failed:  # the shards of the other ranks are out of reach
            Strategy.save_checkpoint(self, complete(checkpoint), filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module = self.lightning_module
        assert module is not None
        own = module.state_dict()
        placed = {name: placed_like(v, own[name]) if name in own else v for name, v in checkpoint["state_dict"].items()}
        module.load_state_dict(placed, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, stored in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                number: {key: shared_out(value, parameters[number]) for key, value in values.items()}
                for number, values in stored["state"].items()
            }
            optimizer.load_state_dict({**stored, "state": state})


def complete(node: Any) -> Any:
    """Gather each sharded tensor in nested containers, on the CPU of rank 0. A collective: every rank must call it."""
    if isinstance(node, DTensor):
        tensor = node.full_tensor().detach()
        return tensor.cpu() if is_main_process() else None
    if isinstance(node, dict):
        return {key: complete(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(map(complete, node))
    return node


def shared_out(value: Any, parameter: Tensor) -> Any:
    """Shard an entry of the optimizer's state like its parameter, if it has the same shape."""
    fits = isinstance(value, Tensor) and value.shape == parameter.shape
    return placed_like(value, parameter) if fits else value
