"""Power-function EMA of the weights and its post-hoc reconstruction (Karras et al. 2024, section 3 and appendix C).

The EMA of width sigma_rel at step n averages the weights of steps t with the profile
p(t) = (gamma + 1) / n^(gamma + 1) * t^gamma on [0, n]. Training saves snapshots of the EMA for a few widths. Averaging
is linear: if a combination of snapshot profiles approximates another profile, the same combination of snapshots
approximates its EMA.
"""

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from latentfaces.errors import UserError

WIDEST = 0.28
"""Upper limit of sigma_rel. At gamma = 0 all steps have the same weight and sigma_rel is 1 / sqrt(12)."""
MAX_ERROR = 0.05
"""Largest accepted relative L2 error of a profile. 16 snapshots of 0.05 and 0.1 support widths of 0.03 to 0.23."""
ROUNDING = torch.finfo(torch.float16).eps / 2
"""Relative rounding error of a value in a snapshot."""


def power_of_width(sigma_rel: float) -> float:
    """Return the exponent gamma of the profile with relative width sigma_rel (Karras et al. 2024, eq. 123-126).

    Solves sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) by bisection; sigma_rel in (0, 0.28).
    """
    low, high = 0.0, 1e6
    for _ in range(200):
        gamma = (low + high) / 2
        if (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) > sigma_rel**2:
            low = gamma
        else:
            high = gamma
    return low


def decay(gamma: float, num_updates: int) -> float:
    """Return the EMA decay in update `num_updates` >= 1 (Karras et al. 2024, eq. 127)."""
    return (1 - 1 / num_updates) ** (gamma + 1)


class Profiles(NamedTuple):
    """Profiles of n averages: the weight of each training step."""

    steps: Tensor
    """Last steps of the profiles: (n,) float64, >= 1."""
    gammas: Tensor
    """Exponents of the profiles: (n,) float64."""

    @classmethod
    def of(cls, *averages: tuple[int, float]) -> "Profiles":
        """Return the profiles of averages given by step and sigma_rel."""
        steps = torch.tensor([step for step, _ in averages], dtype=torch.float64)
        return cls(steps, torch.tensor([power_of_width(width) for _, width in averages], dtype=torch.float64))


def inner_products(first: Profiles, second: Profiles) -> Tensor:
    """Return the integrals of p_i(t) p_j(t) over t: (n, m) float64, in 1 / steps (Karras et al. 2024, algorithm 3)."""
    (n, gamma), (m, delta) = (column[:, None] for column in first), second
    end = torch.minimum(n, m)
    # Divide before taking powers, because n^gamma overflows.
    overlap = (end / n) ** gamma * (end / m) ** delta * end / (n * m)
    return (gamma + 1) * (delta + 1) / (gamma + delta + 1) * overlap


def solve_weights(kept: Profiles, wanted: Profiles) -> tuple[Tensor, float]:
    """Return the weights (n,) float64 of the kept profiles that approximate the wanted one, and the relative L2 error.

    Least squares as in Karras et al. 2024, algorithm 3, with two additions. The weights sum to 1, so that constant
    parameters are preserved. An L2 penalty of the size of the float16 rounding error prevents large opposite weights
    for snapshots of nearly equal steps.
    """
    norm = inner_products(wanted, wanted).sqrt().squeeze()
    gram = inner_products(kept, kept)
    norms = gram.diagonal().sqrt()
    gram = gram / (norms[:, None] * norms)  # normalize the profiles for better conditioning
    target = inner_products(kept, wanted).squeeze(1) / (norms * norm)
    ones = norm / norms
    # Minimize subject to ones . x = 1 with a Lagrange multiplier.
    size = len(norms)
    system, right = torch.zeros(size + 1, size + 1, dtype=torch.float64), torch.ones(size + 1, dtype=torch.float64)
    system[:size, :size] = gram + ROUNDING**2 * torch.eye(size, dtype=torch.float64)
    system[:size, size] = system[size, :size] = ones
    right[:size] = target
    x = torch.linalg.solve(system, right)[:size]
    error = (1 - 2 * x @ target + x @ gram @ x).clamp(min=0).sqrt()
    return x * ones, float(error)


@dataclass(frozen=True)
class Snapshot:
    """Snapshot of the averages at one training step, one file each.

    Args:
        step: number of completed steps.
        tracks: averaged weights in float16, by sigma_rel and parameter name.
        rest: all other entries of the module's state dict, unchanged.
    """

    step: int
    tracks: dict[float, dict[str, Tensor]]
    rest: dict[str, Tensor]

    @staticmethod
    def name(step: int) -> str:
        """Return the file name."""
        return f"step_{step:07d}.pth"

    @classmethod
    def read(cls, path: Path, mmap: bool = False) -> "Snapshot":
        """Load a snapshot; with `mmap`, weights are read lazily and checksums are not verified.

        Raises:
            UserError: the file is damaged.
        """
        try:
            snapshot = cls(**torch.load(path, weights_only=True, map_location="cpu", mmap=mmap))
            if snapshot.step < 1 or not snapshot.tracks or not all(snapshot.shapes()):
                raise ValueError("empty")
            if not mmap:  # torch does not verify its checksums
                with zipfile.ZipFile(path) as archive:
                    if archive.testzip() is not None:
                        raise ValueError("checksum")
        except Exception as error:
            raise UserError(
                f"{path} is damaged ({type(error).__name__}). Delete it to build ema=... from the other snapshots."
            ) from error
        return snapshot

    def shapes(self) -> list[dict[str, torch.Size]]:
        """Return the shapes of the weights by name, for each track."""
        return [{name: value.shape for name, value in track.items()} for track in self.tracks.values()]


def snapshots_in(folder: str | Path) -> list[tuple[int, Path]]:
    """Return step and path of all snapshots in a folder, ordered by step."""
    matches = ((re.fullmatch(r"step_(\d+)\.pth", path.name), path) for path in Path(folder).glob("step_*.pth"))
    return sorted((int(match[1]), path) for match, path in matches if match)


def rebuild(folder: str | Path, sigma_rel: float) -> dict[str, Tensor]:
    """Return a state dict with the EMA of width sigma_rel at the last snapshot's step, in float32.

    Snapshots are loaded one at a time.

    Args:
        folder: folder of the snapshots.
        sigma_rel: width in (0, 0.28), near the widths of the snapshots.

    Raises:
        UserError: the snapshots are too few, damaged, or too far from sigma_rel.
    """
    if not 0 < sigma_rel < WIDEST:
        raise UserError(f"ema={sigma_rel} must be above 0 and below {WIDEST}")
    paths = [path for _, path in snapshots_in(folder)]
    if len(paths) < 2:
        raise UserError(
            f"ema={sigma_rel} needs two snapshots or more, and {folder} has {len(paths)}. Leave out ema=..., or train "
            "with callbacks.ema.snapshots=16."
        )
    heads = [Snapshot.read(path, mmap=True) for path in paths]
    if any(shapes != heads[0].shapes()[0] for head in heads for shapes in head.shapes()):
        raise UserError(
            f"Cannot build ema={sigma_rel}: the snapshots in {folder} are of different networks. Leave out ema=..."
        )
    averages = [(head.step, width) for head in heads for width in head.tracks]
    weights = dict(zip(averages, weights_of(averages, sigma_rel).tolist(), strict=True))
    del heads
    state: dict[str, Tensor] = {}
    for path in paths:
        snapshot = Snapshot.read(path)
        for width, track in snapshot.tracks.items():
            for name, value in track.items():
                total = state.setdefault(name, torch.zeros(value.shape))
                total.add_(value.float(), alpha=weights[snapshot.step, width])
    if not all(value.isfinite().all() for value in state.values()):
        raise UserError(
            f"Cannot build ema={sigma_rel}: the snapshots in {folder} contain NaN or Inf. Leave out ema=..."
        )
    return state | snapshot.rest


def weights_of(averages: list[tuple[int, float]], sigma_rel: float) -> Tensor:
    """Return the weights (n,) of averages, given by step and width, for the EMA of width sigma_rel at the last step.

    Raises:
        UserError: the error would exceed `MAX_ERROR`. The message has the nearest supported width.
    """
    kept, last = Profiles.of(*averages), max(step for step, _ in averages)

    def error(width: float) -> float:
        return solve_weights(kept, Profiles.of((last, width)))[1]

    weights, left = solve_weights(kept, Profiles.of((last, sigma_rel)))
    if left > MAX_ERROR:
        possible = [width for width in (hundredth / 100 for hundredth in range(1, 28)) if error(width) <= MAX_ERROR]
        possible += [width for step, width in averages if step == last]
        nearest = min(possible, key=lambda width: abs(width - sigma_rel))
        raise UserError(
            f"ema={sigma_rel} is too far from the widths of the snapshots (profile error {left:.1%}, limit "
            f"{MAX_ERROR:.0%}). Use ema={nearest:g}, the nearest supported width."
        )
    return weights
