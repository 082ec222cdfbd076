"""Strategies for several devices: DDP, with all weights on each, and FSDP, with a shard on each."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, ParallelStrategy, Strategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from latentfaces.bounds import PositiveFloat
from latentfaces.training.distributed.sharding import gathered, placed_like
from latentfaces.training.distributed.watchdog import RankWatch


class WatchedLauncher(_SubprocessScriptLauncher):
    """Start the other ranks of this machine, unless an external launcher did, and watch them.

    Lightning's own observer kills rank 0 when another one fails, and with it the other jobs of a sweep.
    """

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        # Lightning's `launch` with its observer replaced: the two private calls below are the rest of it.
        environment = self.cluster_environment
        environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not environment.creates_processes_externally:
            self._call_children_scripts()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        with RankWatch(self.procs):
            return function(*args, **kwargs)


class Watched(ParallelStrategy):
    """Strategy whose ranks wait for a limited time, and not at all after a failure.

    Args:
        timeout_minutes: longest wait at a collective.
    """

    def __init__(self, timeout_minutes: PositiveFloat = 10.0) -> None:
        super().__init__(timeout=timedelta(minutes=timeout_minutes))  # type: ignore[call-arg]

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        assert self.parallel_devices is not None
        num_nodes: int = self.num_nodes  # type: ignore[attr-defined]
        # Lightning's strategies choose their launcher here; there is no argument for it.
        self._launcher = WatchedLauncher(self.cluster_environment, len(self.parallel_devices), num_nodes)


class DDP(Watched, DDPStrategy):
    """One process per device, each with all weights. Gradients are averaged."""


class FSDP(Watched, ModelParallelStrategy):
    """One process per device, each with a shard of weights, gradients, averages and optimizer state (FSDP2).

    Rank 0 writes a checkpoint as one complete file, which any number of ranks resumes under any strategy. Lightning's
    checkpoints of this strategy lose the sharded state of callbacks.
    """

    restore_checkpoint_after_setup = False  # as in the other strategies
    lightning_restore_optimizer = True
    lightning_module_state_dict = Strategy.lightning_module_state_dict
    optimizer_state = Strategy.optimizer_state
    load_checkpoint = Strategy.load_checkpoint
    load_optimizer_state_dict = Strategy.load_optimizer_state_dict

    def setup_environment(self) -> None:
        # Lightning has no public argument for the number of ranks, and "auto" is tensor parallel within a machine.
        self._data_parallel_size, self._tensor_parallel_size = self.world_size, 1
        super().setup_environment()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        Strategy.save_checkpoint(self, gathered(checkpoint), filepath, storage_options)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module = self.lightning_module
        assert module is not None
        own = module.state_dict()
        placed = {name: placed_like(v, own[name]) if name in own else v for name, v in checkpoint["state_dict"].items()}
        module.load_state_dict(placed, strict=strict)
