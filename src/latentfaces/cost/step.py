"""What a training step costs: counted on tensors that have sizes but no memory, and measured."""

import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from latentfaces.nn import choose_kernel, choose_upsampling
from latentfaces.training.latent_diffusion_module import LatentDiffusionModule
from latentfaces.training.vae_module import VAEModule

TrainedStage = VAEModule | LatentDiffusionModule
LATE = 10**9 + 1
"""A step when every part is at work, and which is not logged."""


class Meter(TorchDispatchMode):
    """Counts while it is on: FLOPs, bytes alive and their peak, bytes that operations read and write.

    A storage is alive from the operation that made it, or from `hold`, until nothing refers to it any more.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.alive = self.peak = self.moved = 0
        self.known: set[int] = set()

    def hold(self, tensors: Iterable[Tensor]) -> int:
        """Count tensors that were there before; their bytes."""
        before = self.alive
        for tensor in tensors:
            self.see(tensor)
        return self.alive - before

    def see(self, tensor: Tensor) -> None:
        """Count the tensor's storage, unless it is counted."""
        storage = tensor.untyped_storage()
        if (key := storage._cdata) not in self.known:
            self.known.add(key)
            self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self.forget, key, storage.nbytes())

    def forget(self, key: int, num_bytes: int) -> None:
        """The storage is gone."""
        self.known.discard(key)
        self.alive -= num_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        for tensor in tensors:
            self.see(tensor)
        if tensors and not func.is_view and func is not torch.ops.aten._unsafe_view.default:
            tensors += [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            self.moved += num_bytes(tensors)
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Within this context `owner` has another attribute of that name."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def without_memory(gpu: bool) -> Iterator[None]:
    """Within this context tensors have sizes alone, and are computed as on a GPU or on a CPU."""
    group_norm = F.group_norm

    def in_float32(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return group_norm(x.float(), *args, **kwargs)

    def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]

    with (
        FakeTensorMode(),
        replaced(nn.Module, "to", lambda module, *_, **__: module),  # PyTorch cannot move such tensors
        replaced(F, "scaled_dot_product_attention", fused),  # which would keep all scores
        replaced(F, "group_norm", in_float32 if gpu else group_norm),  # as autocast has it on GPUs
    ):
        yield


@dataclass(frozen=True)
class Part:
    """A network: its parameters, and the FLOPs of one item's forward pass."""

    parameters: int
    flops: int


@dataclass(frozen=True)
class StepCost:
    """One training step on one device. A multiplication and an addition are 2 FLOPs.

    Args:
        batch_size: items in it.
        parts: the networks, by name.
        flops: of forward and backward passes of all items.
        moved: bytes that its operations read and write, each for itself.
        weights, gradients, optimizer, averages: bytes held throughout.
        peak: bytes at the most, all of these and the activations.
        checkpoint: bytes of `last.ckpt`.
        exported: bytes of the weight files that a run leaves.
        trained: bytes of the weights that are trained and averaged.
    """

    batch_size: int
    parts: Mapping[str, Part]
    flops: int
    moved: int
    weights: int
    gradients: int
    optimizer: int
    averages: int
    peak: int
    checkpoint: int
    exported: int
    trained: int

    @property
    def activations(self) -> int:
        """Bytes of all that comes and goes within the step."""
        return self.peak - self.weights - self.gradients - self.optimizer - self.averages


class BareStep:
    """A module's training steps without a trainer, in the order in which Lightning does things.

    Args:
        module: the module; its adversary, if it has one, is at work.
        batch_size: items in a batch.
        resolution: of the pictures.
        bfloat16: under autocast.
        device: where to.
    """

    def __init__(
        self, module: TrainedStage, batch_size: int, resolution: int, bfloat16: bool, device: torch.device
    ) -> None:
        self.module, self.bfloat16 = module.to(device).train(), bfloat16
        late = SimpleNamespace(global_step=LATE, log_every_n_steps=2, accumulate_grad_batches=1, callbacks=[])
        module.trainer = late  # type: ignore[assignment]
        named = [(name, p) for name, p in module.network.named_parameters() if p.requires_grad]
        self.trained = [p for _, p in named]
        self.optimizers = [module.make_optimizer(named)]
        self.discriminator: nn.Module | None = None
        self.perceptual: nn.Module | None = None
        if isinstance(module, VAEModule):
            if module.loss.perceptual is not None:
                self.perceptual = module.loss.perceptual.unregistered[0]
            if module.adversary is not None:
                module.adversary.begin(device)
                self.discriminator = module.adversary.discriminator
                assert module.adversary.optimizer is not None
                self.optimizers.append(module.adversary.optimizer)
        vae = module.autoencoder
        side = resolution // vae.downsampling
        self.images = 2 * torch.rand(batch_size, 3, resolution, resolution, device=device) - 1
        self.latents = torch.randn(batch_size, vae.latent_channels, side, side, device=device)
        self.batch = self.images if isinstance(module, VAEModule) else torch.stack([self.latents, self.latents], 1)

    def __call__(self) -> None:
        with self.autocast():
            loss = self.module.training_step(self.batch, 0)
        self.optimizers[0].zero_grad()  # until here the last step's gradients are kept
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        for optimizer in self.optimizers[1:]:
            optimizer.zero_grad()

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision."""
        return torch.autocast(self.batch.device.type, torch.bfloat16, enabled=self.bfloat16)

    def as_after_a_step(self) -> None:
        """Gradients and the optimizers' state, as the steps before have left them."""
        networks = [self.trained, *([list(self.discriminator.parameters())] if self.discriminator is not None else [])]
        for parameters, optimizer in zip(networks, self.optimizers, strict=True):
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()

    def forwards(self) -> dict[str, tuple[nn.Module, Callable[[], Any]]]:
        """The networks by name, and a forward pass of each over a batch."""
        vae, images = self.module.autoencoder, self.images
        found: dict[str, tuple[nn.Module, Callable[[], Any]]] = {
            "encoder": (vae.encoder, lambda: vae.encode(images)),
            "decoder": (vae.decoder, lambda: vae.decode(self.latents)),
        }
        if isinstance(self.module, LatentDiffusionModule):
            denoiser, t = self.module.denoiser, self.latents.new_full((len(self.latents),), 0.5)
            found["denoiser"] = denoiser, lambda: denoiser(self.latents, t)
        if (discriminator := self.discriminator) is not None:
            found["discriminator"] = discriminator, lambda: discriminator(images)
        if (perceptual := self.perceptual) is not None:
            found["perceptual network"] = perceptual, lambda: perceptual(images, images)
        return found


def count_step(
    make: Callable[[], TrainedStage],
    batch_size: int,
    resolution: int,
    bfloat16: bool = True,
    num_averages: int = 1,
    gpu: bool = True,
) -> StepCost:
    """Count a step of the module that `make` makes.

    Args:
        make: called where tensors have no memory.
        batch_size: items.
        resolution: of the pictures.
        bfloat16: under autocast.
        num_averages: of the weights, kept beside them.
        gpu: as on a GPU; otherwise as on a CPU.
    """
    with without_memory(gpu):
        bare = BareStep(make(), batch_size, resolution, bfloat16, torch.device("cpu"))
        module = bare.module
        if gpu:
            choose_kernel(module, "sdpa")
            choose_upsampling(module, phased=False)
        bare.as_after_a_step()
        averages = [torch.zeros_like(p) for _ in range(num_averages) for p in bare.trained]
        meter = Meter()
        beside = [part for part in (bare.discriminator, bare.perceptual) if part is not None]
        weights = meter.hold(tensor for part in (module, *beside) for tensor in part.state_dict().values())
        optimizer = meter.hold(t for o in bare.optimizers for t in tree_leaves(o.state_dict()) if isinstance(t, Tensor))
        averages_bytes = meter.hold(averages)
        gradients = meter.hold(p.grad for o in bare.optimizers for p in params_of(o) if p.grad is not None)
        with meter:
            bare()
        kept = [*module.state_dict().values()]
        if bare.discriminator is not None:
            kept += bare.discriminator.state_dict().values()
        return StepCost(
            batch_size,
            {name: Part(count(net), forward_flops(run) // batch_size) for name, (net, run) in bare.forwards().items()},
            flops=meter.flops,
            moved=meter.moved,
            weights=weights,
            gradients=gradients,
            optimizer=optimizer,
            averages=averages_bytes,
            peak=meter.peak,
            checkpoint=num_bytes(kept) + optimizer + averages_bytes,
            exported=sum(num_bytes(part.state_dict().values()) for part in module.exports().values()),
            trained=num_bytes(bare.trained),
        )


@torch.no_grad()
def forward_flops(run: Callable[[], Any]) -> int:
    """FLOPs of a forward pass."""
    with Meter() as meter:
        run()
    return meter.flops


def params_of(optimizer: Optimizer) -> list[Tensor]:
    """What it changes."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def count(network: nn.Module) -> int:
    """Its parameters."""
    return sum(p.numel() for p in network.parameters())


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Their sizes together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def measure_step(bare: BareStep, num_steps: int) -> float:
    """Seconds of a training step on the device that is there: the median of `num_steps`, after a first."""
    seconds = []
    for _ in range(num_steps + 1):
        started = time.perf_counter()
        bare()
        if bare.batch.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])
