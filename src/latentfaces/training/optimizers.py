"""Muon for hidden matrices, AdamW for all other weights."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from latentfaces.training.distributed.sharding import placed_like

OUTER = ("embed", "stem", "head", "auxiliary_head", "out")
"""Names of first and last layers."""


def adapt_state(optimizer: Optimizer, stored: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's state with the settings of the optimizer and the placement of its parameters.

    A pre-hook of `Optimizer.load_state_dict`. Fused kernels read a parameter and its state in the order of memory.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        number: {
            key: placed_like(value, parameters[number])
            if isinstance(value, Tensor) and value.shape == parameters[number].shape
            else value
            for key, value in values.items()
        }
        for number, values in stored["state"].items()
    }
    groups = [
        {**group, "params": before["params"]}
        for group, before in zip(optimizer.param_groups, stored["param_groups"], strict=True)
    ]
    return {**stored, "state": state, "param_groups": groups}


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Return True for a matrix or kernel of a hidden layer, which Muon trains."""
    outermost = name.removeprefix("network.").partition(".")[0]
    return parameter.ndim >= 2 and not outermost.startswith(OUTER)


def as_matrix(tensor: Tensor, parameter: nn.Parameter) -> Tensor:
    """View a kernel (out, in, k, k) as a matrix (out, in k k), in the order of the parameter's memory."""
    return (tensor if parameter.is_contiguous() else tensor.permute(0, 2, 3, 1)).flatten(1)


def as_kernel(matrix: Tensor, parameter: nn.Parameter) -> Tensor:
    """Return a matrix of `as_matrix` in the parameter's shape."""
    if parameter.is_contiguous():
        return matrix.reshape(parameter.shape)
    _, in_channels, height, width = parameter.shape
    return matrix.unflatten(1, (height, width, in_channels)).permute(0, 3, 1, 2)


class MuonAdamW(Optimizer):
    """`torch.optim.Muon` (Jordan et al. 2024) for hidden matrices and `torch.optim.AdamW` for all other weights.

    Muon's steps are as large as AdamW's (Liu et al. 2025, eq. 4), so that one learning rate serves both. Convolution
    kernels (out, in, k, k) are matrices (out, in k k).

    Args:
        named_parameters: (name, parameter) of the network.
        lr: learning rate of both.
        betas: betas of AdamW.
        momentum: momentum of Muon.
        weight_decay: weight decay of both.
        fused: use the fused kernel of AdamW.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        fused: bool = True,
    ) -> None:
        named = list(named_parameters)
        self.matrices = [p for name, p in named if is_hidden_matrix(name, p)]
        others = [p for name, p in named if not is_hidden_matrix(name, p)]
        if not self.matrices:
            raise ValueError("the network has no hidden matrices for Muon: use model/optimizer=adamw")
        # Views of the weights in two dimensions.
        self.flat = [nn.Parameter(as_matrix(p.detach(), p)) for p in self.matrices]
        self.muon = Muon(self.flat, lr=lr, momentum=momentum, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.adamw = AdamW(others, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused)
        for inner in (self.muon, self.adamw):
            inner.register_load_state_dict_pre_hook(adapt_state)
        super().__init__([{"params": self.matrices}, {"params": others}], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for inner, group in zip((self.muon, self.adamw), self.param_groups, strict=True):
            inner.param_groups[0]["lr"] = group["lr"]
        for flat, matrix in zip(self.flat, self.matrices, strict=True):
            flat.grad = None if matrix.grad is None else as_matrix(matrix.grad, matrix)
        self.muon.step()
        self.adamw.step()
        for flat in self.flat:
            flat.grad = None
        return loss

    def state_dict(self) -> dict[str, Any]:
        groups = [{key: value for key, value in group.items() if key != "params"} for group in self.param_groups]
        muon = self.muon.state_dict()
        # In the shape of the weights, since the order in a matrix depends on the memory format.
        muon["state"] = {
            number: {"momentum_buffer": as_kernel(state["momentum_buffer"], self.matrices[number])}
            for number, state in muon["state"].items()
        }
        return {"muon": muon, "adamw": self.adamw.state_dict(), "param_groups": groups, "state": {}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        muon = dict(state_dict["muon"])
        muon["state"] = {
            number: {"momentum_buffer": as_matrix(state["momentum_buffer"], self.matrices[number])}
            for number, state in muon["state"].items()
        }
        self.muon.load_state_dict(muon)
        self.adamw.load_state_dict(state_dict["adamw"])
