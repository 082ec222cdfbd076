"""Sharded tensors (FSDP2)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from latentfaces.ranks import full_tensor, is_main_process


def placed_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return the tensor with the device, memory format and sharding of another one of its shape."""
    if isinstance(tensor, DTensor):
        return tensor.to(other.device)
    if isinstance(other, DTensor):
        full = tensor.to(other.device).contiguous()  # a shard is contiguous, also from a channels_last checkpoint
        # A copy: the shard must not keep the full tensor in memory.
        return distribute_tensor(full, other.device_mesh, other.placements, src_data_rank=None).clone()
    if (tensor.device, tensor.stride()) == (other.device, other.stride()):
        return tensor
    return torch.empty_like(other, dtype=tensor.dtype).copy_(tensor)


def gathered(node: Any) -> Any:
    """Return nested containers with full tensors on the CPU of rank 0. A collective: every rank must call it."""
    if isinstance(node, Tensor):
        tensor = full_tensor(node).detach()  # one by one: a device may not hold all of them
        return tensor.cpu() if is_main_process() else None
    if isinstance(node, dict):
        return {key: gathered(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(map(gathered, node))
    return node


def shard(module: nn.Module, mesh: DeviceMesh, methods: tuple[str, ...]) -> None:
    """Shard a module's weights over ranks. Each layer is gathered when it is used, and freed afterwards (FSDP2).

    Args:
        module: its layers are the items of its module lists.
        mesh: device mesh.
        methods: methods besides `forward` that are called from outside.
    """
    if isinstance(module, FSDPModule):
        return
    for part in reversed(list(module.modules())):
        for layer in part if isinstance(part, nn.ModuleList) else ():
            if any(True for _ in layer.parameters()):
                fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    # Freed after the last layer too: between steps, parameters are shards that can be averaged and saved.
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for method in methods:
        register_fsdp_forward_method(module, method)
