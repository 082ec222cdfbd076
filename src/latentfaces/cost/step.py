"""One training step without a Trainer, and its FLOPs and memory under fake tensors."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode  # private, but torch has no public name for it
from torch.utils._python_dispatch import TorchDispatchMode  # private, as torch has no public dispatch mode
from torch.utils._pytree import tree_leaves  # private, for the nested state of MuonAdamW
from torch.utils.flop_counter import flop_registry

from latentfaces.nn import choose_kernel, choose_upsampling
from latentfaces.training.latent_diffusion_module import LatentDiffusionModule
from latentfaces.training.vae_module import VAEModule

TrainedModule = VAEModule | LatentDiffusionModule


class Meter(TorchDispatchMode):
    """FLOPs of the operations within the context, and the current and the largest bytes of their live results.

    FLOPs follow torch's own formulas. torch's FlopCounterMode and MemTracker cannot run a step with an adversary: the
    hooks of the first reject `torch.autograd.grad` of a leaf, those of the second a frozen network.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.flops = self.current = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.track(leaf.untyped_storage())
        if (formula := flop_registry.get(func._overloadpacket)) is not None:  # as FlopCounterMode looks it up
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result

    def track(self, storage: torch.UntypedStorage) -> None:
        """Count a storage until it is freed."""
        if (key := id(storage)) not in self.live:
            self.live[key] = storage.nbytes()
            self.current += storage.nbytes()
            self.peak = max(self.peak, self.current)
            weakref.finalize(storage, self.release, key)

    def release(self, key: int) -> None:
        """Subtract a freed storage."""
        self.current -= self.live.pop(key)


class TrainingStep:
    """A training step in Lightning's order: forward, zero gradients, backward, optimizer.

    Args:
        module: the module to train, with its adversary active if it has one.
        batch: images (b, 3, R, R) or moments (b, 2, c, h, w), on the device to train on.
    """

    def __init__(self, module: TrainedModule, batch: Tensor) -> None:
        self.module, self.batch = module.to(batch.device).train(), batch
        # At this step every loss term is active. It is even, so nothing is logged.
        trainer = SimpleNamespace(global_step=10**9, log_every_n_steps=2, accumulate_grad_batches=1, callbacks=[])
        module.trainer = trainer  # type: ignore[assignment]
        module.on_fit_start()
        named = ((name, p) for name, p in module.network.named_parameters() if p.requires_grad)
        self.optimizers: list[Any] = [module.make_optimizer(named)]
        if isinstance(module, VAEModule) and module.adversary is not None:
            self.optimizers.append(module.adversary.optimizer)

    def __call__(self, bfloat16: bool) -> None:
        with torch.autocast(self.batch.device.type, torch.bfloat16, enabled=bfloat16):
            loss = self.module.training_step(self.batch, 0)
        self.optimizers[0].zero_grad()
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        for optimizer in self.optimizers[1:]:  # the training step adds to the discriminator's gradients
            optimizer.zero_grad()


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Within this context tensors have no memory, and operations are those that a GPU runs.

    The tensors are on the CPU: without a GPU, torch cannot run backward for fake CUDA tensors.
    """
    group_norm, flash_attention = F.group_norm, torch.ops.aten._scaled_dot_product_flash_attention
    with (
        FakeTensorMode(),
        patch.object(nn.Module, "to", lambda module, *_, **__: module),  # torch cannot move fake parameters
        # torch has no formula for the FLOPs of the CPU's kernel.
        patch.object(F, "scaled_dot_product_attention", lambda q, k, v, **_: flash_attention(q, k, v)[0]),
        # Autocast on GPUs computes this in float32.
        patch.object(F, "group_norm", lambda x, *args, **kwargs: group_norm(x.float(), *args, **kwargs)),
    ):
        yield


class StepCost(NamedTuple):
    """Cost of a training step on one device. Sizes are in bytes."""

    parameters: dict[str, int]  # by network
    flops: int  # of forward and backward; a multiply-add is 2
    state: int  # weights, gradients, optimizer and weight averages
    activations: int  # the batch and all other tensors at the peak
    checkpoint: int


def count_step(
    make_module: Callable[[], TrainedModule], shape: tuple[int, ...], bfloat16: bool = True, num_averages: int = 1
) -> StepCost:
    """Count FLOPs and memory of a training step, as on a GPU.

    Args:
        make_module: returns the module.
        shape: of a batch, see `TrainingStep`.
        bfloat16: whether autocast is on.
        num_averages: number of weight averages kept in memory.
    """
    with fake_gpu(), Meter() as meter:
        module = make_module()
        choose_kernel(module, "sdpa")
        choose_upsampling(module, phased=False)
        step = TrainingStep(module, torch.rand(shape))
        step(bfloat16)  # from here on gradients and optimizer states are there
        state = meter.current - num_bytes([step.batch])
        meter.peak = meter.flops = 0
        step(bfloat16)
    networks: dict[str, nn.Module] = {"encoder": module.autoencoder.encoder, "decoder": module.autoencoder.decoder}
    saved = [module.state_dict(), *(optimizer.state_dict() for optimizer in step.optimizers)]
    if isinstance(module, LatentDiffusionModule):
        networks["denoiser"] = module.denoiser
    elif module.adversary is not None:
        networks["discriminator"] = module.adversary.discriminator
        saved.append(module.adversary.discriminator.state_dict())
    parameters = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    averages = num_averages * num_bytes(p for p in module.network.parameters() if p.requires_grad)
    checkpoint = num_bytes(tree_leaves(saved)) + averages
    return StepCost(parameters, meter.flops, state + averages, meter.peak - state, checkpoint)


def num_bytes(values: Iterable[Any]) -> int:
    """Return the total bytes of the tensors among the values."""
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))
