"""Muon for the matrices inside a network, AdamW for the rest."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

OUTER = ("embed", "stem", "head", "auxiliary_head", "out", "norm")
"""First and last layers, where rows and columns mean something by themselves."""


COMPUTING = ("params", "lr", "initial_lr", "fused", "foreach", "capturable", "differentiable")
"""Of a group of parameters: what does not say how they learn, or follows a schedule."""


def adopt(group: dict[str, Any], chosen: dict[str, Any], state: Mapping[Tensor, dict[str, Any]]) -> None:
    """Let a group that came from a checkpoint learn by the values that were chosen, but for its learning rate.

    Args:
        group: of parameters.
        chosen: its values as it was made.
        state: of the optimiser, by parameter.
    """
    group.update({key: value for key, value in chosen.items() if key not in COMPUTING})
    if "fused" in group and chosen["fused"] != group["fused"]:
        group["fused"] = chosen["fused"]
        for parameter in group["params"]:  # one kernel counts the steps where the weights are, many on the CPU
            if "step" in (own := state.get(parameter, {})):
                own["step"] = own["step"].to(parameter.device if chosen["fused"] else "cpu")


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon is for it: a matrix, or a kernel seen as one, that leads from features to features."""
    outermost = name.removeprefix("network.").partition(".")[0]
    return parameter.ndim >= 2 and not outermost.startswith(OUTER)


def as_matrix(tensor: Tensor, parameter: nn.Parameter) -> Tensor:
    """(out, in, k, k) -> (out, in k k), in the order of the parameter's memory: a view of it, not a copy."""
    return (tensor if parameter.is_contiguous() else tensor.permute(0, 2, 3, 1)).flatten(1)


class MuonAdamW(Optimizer):
    """`torch.optim.Muon` (Jordan et al. 2024) for hidden matrices and `torch.optim.AdamW` for all else, as one.

    Muon's steps are scaled to be as large as AdamW's (Liu et al. 2025, eq. 4), so that one learning rate serves both.
    Convolution kernels (out, in, k, k) are matrices (out, in k k) to it.

    Args:
        named_parameters: (name, parameter) of the network.
        lr: learning rate.
        betas: of AdamW.
        momentum: of Muon.
        weight_decay: of both.
        fused: AdamW as one kernel.
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
            raise ValueError("the network has no hidden matrices for Muon: take model/optimizer=adamw")
        # The same memory as the weights, in two dimensions.
        self.flat = [nn.Parameter(as_matrix(p.detach(), p)) for p in self.matrices]
        self.muon = Muon(self.flat, lr=lr, momentum=momentum, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.adamw = AdamW(others, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused)
        super().__init__([{"params": self.matrices}, {"params": others}], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of both."""
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
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict(), "param_groups": groups, "state": {}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for inner, stored in ((self.muon, state_dict["muon"]), (self.adamw, state_dict["adamw"])):
            chosen = dict(inner.param_groups[0])
            inner.load_state_dict(stored)
            adopt(inner.param_groups[0], chosen, inner.state)
        for group, stored in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update(stored)
