"""Averages of the weights over training, of any width, also after it (Karras et al. 2024, section 3 and appendix C).

The average of width sigma_rel at step n weighs the weights of step t by the profile
p(t) = (gamma + 1) / n^(gamma + 1) * t^gamma on [0, n]. Training leaves snapshots of averages of a few widths. As it is
linear, where the profiles of snapshots add up to nearly another profile, they themselves add up to nearly its average.
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
"""Every sigma_rel is below it: at gamma = 0, all steps weigh the same and sigma_rel is 1 / sqrt(12)."""
MAX_ERROR = 0.05
"""Relative L2 error of the profile above which a width is refused. 16 snapshots of 0.05 and 0.1 give 0.03 to 0.23."""
ROUNDING = torch.finfo(torch.float16).eps / 2
"""Relative error of a number in a snapshot."""


def power_of_width(sigma_rel: float) -> float:
    """Exponent gamma of the average whose profile has the relative width sigma_rel (Karras et al. 2024, eq. 123-126).

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
    """Weight of the old average in update `num_updates` >= 1 (Karras et al. 2024, eq. 127)."""
    return (1 - 1 / num_updates) ** (gamma + 1)


class Profiles(NamedTuple):
    """n profiles: how averages weigh the steps of training."""

    steps: Tensor
    """Where they end: (n,) float64, >= 1."""
    gammas: Tensor
    """Their exponents: (n,) float64."""

    @classmethod
    def of(cls, *averages: tuple[int, float]) -> "Profiles":
        """Those of averages given by step and sigma_rel."""
        steps = torch.tensor([step for step, _ in averages], dtype=torch.float64)
        return cls(steps, torch.tensor([power_of_width(width) for _, width in averages], dtype=torch.float64))


def inner_products(first: Profiles, second: Profiles) -> Tensor:
    """Integrals over t of p_i(t) p_j(t): (n, m) float64, in 1 / steps (Karras et al. 2024, algorithm 3)."""
    (n, gamma), (m, delta) = (column[:, None] for column in first), second
    end = torch.minimum(n, m)
    # As shares of the end: n^gamma itself overflows.
    overlap = (end / n) ** gamma * (end / m) ** delta * end / (n * m)
    return (gamma + 1) * (delta + 1) / (gamma + delta + 1) * overlap


def solve_weights(kept: Profiles, wanted: Profiles) -> tuple[Tensor, float]:
    """Weights (n,) float64 with which the kept profiles come nearest to the wanted one, and the relative L2 error left.

    Least squares as in Karras et al. 2024, algorithm 3, with two additions: the weights sum to 1, so that what did not
    change in training stays as it is; and their squares cost what float16's rounding costs, so that snapshots of nearly
    the same step are not played off against each other.
    """
    norm = inner_products(wanted, wanted).sqrt().squeeze()
    gram = inner_products(kept, kept)
    norms = gram.diagonal().sqrt()
    gram = gram / (norms[:, None] * norms)  # of profiles of length 1, as the numbers are of one size then
    target = inner_products(kept, wanted).squeeze(1) / (norms * norm)
    ones = norm / norms
    # The minimum under the condition ones . x = 1, by Lagrange's multiplier.
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
    """What training leaves at one step, as a file of this name and these fields.

    Args:
        step: steps done.
        tracks: averaged weights by sigma_rel and name, in float16.
        rest: what else the module's state dict holds, by name, as it was.
    """

    step: int
    tracks: dict[float, dict[str, Tensor]]
    rest: dict[str, Tensor]

    @staticmethod
    def name(step: int) -> str:
        """File name."""
        return f"step_{step:07d}.pth"

    @classmethod
    def read(cls, path: Path, mmap: bool = False) -> "Snapshot":
        """From its file; with `mmap` weights are read only where they are looked at, and their checksums not at all.

        Raises:
            UserError: the file is damaged.
        """
        try:
            snapshot = cls(**torch.load(path, weights_only=True, map_location="cpu", mmap=mmap))
            if snapshot.step < 1 or not snapshot.tracks or not all(snapshot.shapes()):
                raise ValueError("empty")
            if not mmap:  # torch does not look at the checksums that it writes
                with zipfile.ZipFile(path) as archive:
                    if archive.testzip() is not None:
                        raise ValueError("checksum")
        except Exception as error:
            raise UserError(
                f"{path} is damaged ({type(error).__name__}): delete it for an ema=... from the other snapshots"
            ) from error
        return snapshot

    def shapes(self) -> list[dict[str, torch.Size]]:
        """Of the weights, by name, for each track."""
        return [{name: value.shape for name, value in track.items()} for track in self.tracks.values()]


def snapshots_in(folder: str | Path) -> list[tuple[int, Path]]:
    """Step and file of all snapshots in a folder, in the order of steps."""
    matches = ((re.fullmatch(r"step_(\d+)\.pth", path.name), path) for path in Path(folder).glob("step_*.pth"))
    return sorted((int(match[1]), path) for match, path in matches if match)


def rebuild(folder: str | Path, sigma_rel: float) -> dict[str, Tensor]:
    """The weights averaged with width sigma_rel at the last snapshot's step: a state dict, weights in float32.

    Reads one snapshot at a time.

    Args:
        folder: has the snapshots.
        sigma_rel: any width in (0, 0.28) that the snapshots can give.

    Raises:
        UserError: they cannot, are too few or damaged.
    """
    if not 0 < sigma_rel < WIDEST:
        raise UserError(f"ema={sigma_rel} must be above 0 and below {WIDEST}")
    paths = [path for _, path in snapshots_in(folder)]
    if len(paths) < 2:
        raise UserError(
            f"ema={sigma_rel} needs two snapshots or more, and {folder} has {len(paths)}: leave out ema=..., or train "
            "with callbacks.ema.snapshots=16"
        )
    heads = [Snapshot.read(path, mmap=True) for path in paths]
    if any(shapes != heads[0].shapes()[0] for head in heads for shapes in head.shapes()):
        raise UserError(f"ema={sigma_rel} cannot be had: the snapshots in {folder} are of different networks")
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
        raise UserError(f"ema={sigma_rel} cannot be had: the snapshots in {folder} hold numbers that are not finite")
    return state | snapshot.rest


def weights_of(averages: list[tuple[int, float]], sigma_rel: float) -> Tensor:
    """Weights (n,) of averages given by step and width, for the average of width sigma_rel at the last step.

    Raises:
        UserError: the error would be above `MAX_ERROR`; names the nearest width where it is not.
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
            f"ema={sigma_rel} is too far from the widths of the snapshots (its profile would be {left:.1%} off, and "
            f"{MAX_ERROR:.0%} is allowed): the nearest they can give is ema={nearest:g}"
        )
    return weights
