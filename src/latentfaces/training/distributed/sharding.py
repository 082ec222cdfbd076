"""Tensors of which each rank keeps some rows (FSDP2)."""

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard


def rows_of(tensor: Tensor, rank: int, num_ranks: int) -> Tensor:
    """The rows of a whole tensor that are a rank's."""
    parts = tensor.chunk(num_ranks)
    return parts[rank] if rank < len(parts) else tensor[:0]


def placed_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return the tensor with the device, memory format and sharding of another one of its shape."""
    if isinstance(tensor, DTensor):
        return tensor.to(other.device)
    if isinstance(other, DTensor):
        mesh = other.device_mesh
        rows = rows_of(tensor, mesh.get_local_rank(), mesh.size())
        # A shard is contiguous, also where the checkpoint is of a run with channels_last.
        return sharded(rows.to(other.device, copy=True).contiguous(), tensor.shape, mesh)
    if (tensor.device, tensor.stride()) == (other.device, other.stride()):
        return tensor
    return torch.empty_like(other, dtype=tensor.dtype).copy_(tensor)


def sharded(rows: Tensor, shape: torch.Size, mesh: DeviceMesh) -> DTensor:
    """The tensor of which this rank has these rows."""
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)


def shard(module: nn.Module, mesh: DeviceMesh, methods: tuple[str, ...] = ()) -> None:
    """Spread a module's weights over the ranks: gathered layer by layer where they are used, and freed again (FSDP2).

    Args:
        module: its layers are what it keeps in lists.
        mesh: the ranks.
        methods: those besides `forward` that are called from outside.
    """
    if isinstance(module, FSDPModule):
        return
    for part in reversed(list(module.modules())):
        for layer in part if isinstance(part, nn.ModuleList) else ():
            if any(True for _ in layer.parameters()):
                fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    # Freed after the last layer too: outside a step parameters are always the rows that can be averaged and saved.
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for method in methods:
        register_fsdp_forward_method(module, method)
