"""One training step without a Trainer, and its FLOPs and memory under fake tensors."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
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
LATE = 10**9
"""A training step at which every loss term is active. It is even, so nothing is logged."""


class Meter(TorchDispatchMode):
    """FLOPs of the operations within the context, and the peak of the bytes of live tensors.

    FLOPs follow torch's own formulas. torch's FlopCounterMode and MemTracker cannot run a step with an adversary: their
    module hooks reject `torch.autograd.grad` of a leaf, and a network that is called twice.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.flops = self.current = self.peak = 0

    def track(self, tensors: Iterable[Tensor]) -> None:
        """Count the storages of tensors that were made before."""
        for storage in (tensor.untyped_storage() for tensor in tensors):
            if (key := id(storage)) not in self.live:
                self.live[key] = storage.nbytes()
                self.current += storage.nbytes()
                weakref.finalize(storage, self.release, key)
        self.peak = max(self.peak, self.current)

    def release(self, key: int) -> None:
        """Subtract a freed storage."""
        self.current -= self.live.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.track(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:  # as FlopCounterMode looks it up
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


class TrainingStep:
    """A training step in Lightning's order: forward, zero gradients, backward, optimizer.

    Args:
        module: the module to train, with its adversary active if it has one.
        batch: images (b, 3, R, R) or moments (b, 2, c, h, w), on the device to train on.
    """

    def __init__(self, module: TrainedModule, batch: Tensor) -> None:
        self.module, self.batch = module.to(batch.device).train(), batch
        trainer = SimpleNamespace(global_step=LATE, log_every_n_steps=2, accumulate_grad_batches=1, callbacks=[])
        module.trainer = trainer  # type: ignore[assignment]
        module.on_fit_start()
        self.trained = [(name, p) for name, p in module.network.named_parameters() if p.requires_grad]
        self.optimizers = [module.make_optimizer(self.trained)]
        adversary = module.adversary if isinstance(module, VAEModule) else None
        self.discriminator = adversary.discriminator if adversary is not None else None
        if adversary is not None:
            assert adversary.optimizer is not None
            self.optimizers.append(adversary.optimizer)

    def __call__(self, bfloat16: bool) -> None:
        with torch.autocast(self.batch.device.type, torch.bfloat16, enabled=bfloat16):
            loss = self.module.training_step(self.batch, 0)
        self.optimizers[0].zero_grad()
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        for optimizer in self.optimizers[1:]:  # the training step adds to the discriminator's gradients
            optimizer.zero_grad()


@dataclass(frozen=True)
class StepCost:
    """Cost of one training step of one batch on one device.

    Args:
        parameters: number of parameters by network.
        flops: FLOPs of forward and backward. A multiply-add is 2 FLOPs.
        memory: bytes at the peak, by kind: weights, gradients, optimizer, averages, activations.
        files: bytes of each kind of file that a training writes once or more.
    """

    parameters: dict[str, int]
    flops: int
    memory: dict[str, int]
    files: dict[str, int]


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Within this context tensors have no memory, and operations are those that a GPU runs.

    The tensors are on the CPU: without a GPU, torch cannot run backward for fake CUDA tensors.
    """
    group_norm = F.group_norm

    def group_norm_float32(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return group_norm(x.float(), *args, **kwargs)

    def flash_attention(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]

    with (
        FakeTensorMode(),
        patch.object(nn.Module, "to", lambda module, *_, **__: module),  # torch cannot move fake parameters
        patch.object(F, "scaled_dot_product_attention", flash_attention),  # torch has no formula for the CPU's kernel
        patch.object(F, "group_norm", group_norm_float32),  # autocast on GPUs does this
    ):
        yield


def count_step(
    make_module: Callable[[], TrainedModule],
    batch_size: int,
    resolution: int,
    bfloat16: bool = True,
    num_averages: int = 1,
) -> StepCost:
    """Count FLOPs and memory of a training step, as on a GPU.

    Args:
        make_module: returns the module. Called under fake tensors.
        batch_size: images or latents in a batch.
        resolution: of the images, in pixels.
        bfloat16: whether autocast is on.
        num_averages: number of weight averages kept in memory.
    """
    with fake_gpu():
        module = make_module()
        choose_kernel(module, "sdpa")
        choose_upsampling(module, phased=False)
        vae = module.autoencoder
        side = resolution // vae.downsampling
        shape = (3, resolution, resolution) if isinstance(module, VAEModule) else (2, vae.latent_channels, side, side)
        step = TrainingStep(module, torch.rand(batch_size, *shape))
        networks: dict[str, nn.Module] = {"encoder": vae.encoder, "decoder": vae.decoder}
        separate: dict[str, nn.Module] = {}  # not in the module's state dict
        if isinstance(module, LatentDiffusionModule):
            networks["denoiser"] = module.denoiser
        elif module.loss.perceptual is not None:
            separate["perceptual network"] = module.loss.perceptual.unregistered[0]
        if step.discriminator is not None:
            separate["discriminator"] = step.discriminator
        step(bfloat16)  # from here on gradients and optimizer states are there
        weights = [tensor for part in (module, *separate.values()) for tensor in part.state_dict().values()]
        trained = [p for o in step.optimizers for group in o.param_groups for p in group["params"]]
        states = [t for o in step.optimizers for t in tree_leaves(o.state_dict()) if isinstance(t, Tensor)]
        meter = Meter()
        meter.track([*weights, *(p.grad for p in trained if p.grad is not None), *states])
        with meter:
            step(bfloat16)
        held = {"weights": num_bytes(weights), "gradients": num_bytes(trained), "optimizer": num_bytes(states)}
        averaged = num_bytes(p for _, p in step.trained)
        averages = num_averages * averaged
        saved = sum(size_of(part) for part in (module, step.discriminator) if part is not None)
        files = {
            "checkpoints": saved + held["optimizer"] + averages,
            "best weights": sum(size_of(part) for part in module.exports().values()),
            "snapshots": averaged // 2,  # float16
            "guide": size_of(module.network),
            "VAE copy": size_of(vae),
        }
        parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in (networks | separate).items()}
        memory = {**held, "averages": averages, "activations": meter.peak - sum(held.values())}
        return StepCost(parameters, meter.flops, memory, files)


def size_of(module: nn.Module) -> int:
    """Return the bytes of a module's state dict."""
    return num_bytes(module.state_dict().values())


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the total bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
