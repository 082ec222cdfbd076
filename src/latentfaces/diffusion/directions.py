"""Directions in the features of a network, for all times of sampling (Haas et al. 2024, arXiv 2303.11073)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Self
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from latentfaces.diffusion.unet import UNet
from latentfaces.errors import UserError
from latentfaces.nn import Upsample

AtTime = Callable[[Tensor, float], Tensor | None]
"""Callback (features (b, ...), time) -> changed features, or None to leave them."""


@contextmanager
def feature_hook(network: Any, callback: AtTime) -> Iterator[None]:
    """Within this context, call back with features of a `UNet` or a `DiT` at each evaluation.

    They are the tokens after the middle block of a DiT, and the output of a U-Net's decoder below its finest level. In
    these U-Nets the skip connections bypass the middle, which the paper uses: shifting it hardly changes the image.

    Times are on the schedule's even scale (`NoiseSchedule.condition`). A compiled network may ignore the callback.
    """
    time = 0.0

    def keep_time(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        nonlocal time
        time = float(inputs[0][0])

    hooks = [
        network.embed_time.register_forward_pre_hook(keep_time),
        feature_layer(network).register_forward_hook(lambda layer, inputs, features: callback(features, time)),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def feature_layer(network: Any) -> nn.Module:
    """Return the layer whose output are the features of `feature_hook`."""
    if isinstance(network, UNet):
        upsampled = [layer for layer, next_layer in pairwise(network.up) if isinstance(next_layer, Upsample)]
        return upsampled[-1] if upsampled else network.middle[-1]
    layer: nn.Module = network.blocks[(len(network.blocks) - 1) // 2]
    return layer


@contextmanager
def recorded_features(network: nn.Module, count: int) -> Iterator[dict[float, Tensor]]:
    """Within this context, record the features (count, ...) of a batch of `count` samples, by time.

    Where a sampler evaluates a time twice, the last evaluation counts.
    """
    features_at: dict[float, Tensor] = {}

    def record(features: Tensor, time: float) -> None:
        features_at[time] = features[:count].float().cpu()  # guidance by labels appends the batch without labels

    with feature_hook(network, record):
        yield features_at


@dataclass(frozen=True)
class FeatureDirections:
    """Named directions, each with a vector for every time.

    Args:
        names: (K,) names.
        times: (T,) times on the schedule's even scale, in ascending order.
        vectors: (K, T, ...) offsets of the features, one std of the samples long.
        explained: (K,) fraction of the samples' variance along each direction.
    """

    names: list[str]
    times: Tensor
    vectors: Tensor
    explained: Tensor

    def at(self, name: str, time: float) -> Tensor:
        """Return the offset (...) of a direction, linearly interpolated in time."""
        vectors = self.vectors[self.names.index(name)]
        right = int(torch.searchsorted(self.times, time).clamp(1, len(self.times) - 1))
        start, end = self.times[right - 1 : right + 1].tolist()
        fraction = (time - start) / (end - start)
        return vectors[right - 1].lerp(vectors[right], min(max(fraction, 0.0), 1.0))

    @contextmanager
    def applied(self, network: nn.Module, name: str, strengths: Tensor) -> Iterator[None]:
        """Within this context, shift the features of a network along a direction.

        The predicted x0 and the predicted noise both change, as in the paper.

        Args:
            network: the network whose directions these are.
            name: name of the direction.
            strengths: (b,) strengths for a batch, in std of the samples.
        """

        def shifted(features: Tensor, time: float) -> Tensor:
            offset = self.at(name, time).to(features)
            if offset.shape != features.shape[1:]:
                raise UserError("The directions are of another run. Find those of this run with task=directions.")
            repeats = len(features) // len(strengths)  # guidance by labels evaluates the batch twice at once
            by_sample = strengths.to(features).repeat(repeats).view(-1, *[1] * offset.ndim)
            return features + by_sample * offset

        with feature_hook(network, shifted):
            yield

    def renamed(self, names: Mapping[str, str]) -> Self:
        """Return the same directions with new names, by the old ones.

        Raises:
            UserError: there is no direction of such a name, or two would have the same.
        """
        for name in names:
            self.check_name(name, "task.names")
        new = [names.get(name, name) for name in self.names]
        if twice := [name for name in new if new.count(name) > 1]:
            raise UserError(f"task.names: {twice[0]} would be the name of two directions. Choose another name.")
        return replace(self, names=new)

    def check_name(self, name: str | None, key: str = "direction") -> None:
        """Raise UserError, which names `key`, if there is no direction of this name."""
        if name not in self.names:
            raise UserError(f"{key}={name} is not a direction of this run. Directions: {', '.join(self.names)}.")

    def save(self, file: IO[bytes]) -> None:
        """Write the directions as .npz."""
        times, vectors, explained = self.times.numpy(), self.vectors.half().numpy(), self.explained.numpy()
        np.savez(file, names=np.array(self.names), times=times, vectors=vectors, explained=explained)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read directions that `save` wrote. The file may be untrusted.

        Raises:
            UserError: there is no such file, or it is damaged.
        """
        if not path.exists():
            raise UserError(f"{path} does not exist. Find the directions of the run first, with task=directions.")
        try:
            with np.load(path, allow_pickle=False) as file:
                times, vectors, explained = (torch.from_numpy(file[key]) for key in ("times", "vectors", "explained"))
                names = [str(name) for name in file["names"]]
            if vectors.shape[:2] != (len(names), len(times)) or len(times) < 2 or len(explained) != len(names):
                raise ValueError
        except (AttributeError, BadZipFile, EOFError, KeyError, OSError, TypeError, ValueError) as error:
            raise UserError(f"{path} is damaged. Run task=directions again.") from error
        return cls(names, times, vectors.float(), explained)


def principal_directions(features: Tensor, count: int) -> Tensor:
    """Return the first principal components (count, values) of features (n, values), one std long.

    They are computed from the n x n Gram matrix, since there are far more values than samples.
    """
    centered = features - features.mean(0)
    _, axes = torch.linalg.eigh(centered @ centered.T)
    return axes.flip(1)[:, :count].T @ centered / (len(features) - 1) ** 0.5


def direction_of_label(features: Tensor, has_label: Tensor) -> Tensor:
    """Return the direction (values,) between two class means of features (n, values), one std long.

    It points to the mean of the samples where `has_label` (n,) is true.
    """
    difference = features[has_label].mean(0) - features[~has_label].mean(0)
    unit = difference / difference.norm()
    return (features @ unit).std() * unit


def explained_variance(features: Tensor, directions: Tensor) -> Tensor:
    """Return the fraction (k,) of the variance of features (n, values) along directions (k, values)."""
    return directions.square().sum(1) / features.var(0).sum()
