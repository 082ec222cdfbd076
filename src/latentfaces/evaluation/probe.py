"""Labels of images, recognized from their features."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latentfaces.evaluation.features import Features
from latentfaces.evaluation.generation import kernel_distance
from latentfaces.labels import Label

DECAY = 0.1
"""Weight of the squared norm in the probe's loss."""
FEWEST = 50
"""Images and samples that a distance needs."""
SIDE = 32
"""Height and width of the gray images that a probe sees in addition to the features."""


def gray_pixels(images: Tensor) -> Tensor:
    """Return images (n, 3, H, W) uint8 as gray pixels (n, SIDE * SIDE) in [0, 1].

    Features average over the image. On aligned faces a smile shows in the pixels of the mouth.
    """
    gray = images.float().mean(1, keepdim=True) / 255
    return F.adaptive_avg_pool2d(gray, SIDE).flatten(1)


class WithPixels:
    """Features followed by `gray_pixels`."""

    def __init__(self, extract: Features) -> None:
        self.extract, self.key = extract, f"{extract.key}-gray"

    def __call__(self, images: Tensor) -> Tensor:
        """Map images (n, 3, H, W) uint8 to features (n, d + SIDE * SIDE) float32 on the CPU."""
        return torch.cat([self.extract(images), gray_pixels(images)], dim=1)


class Probe:
    """Logistic regression on standardized features. All classes have the same weight, however rare they are.

    Args:
        features: features (n, d).
        classes: class (n,) of each, from 0; every class occurs.
    """

    def __init__(self, features: Tensor, classes: Tensor) -> None:
        std = features.std(0)
        self.mean, self.std = features.mean(0), torch.where(std > 0, std, 1.0)
        counts = classes.bincount()
        self.weight = features.new_zeros(features.shape[1], len(counts), requires_grad=True)
        self.bias = features.new_zeros(len(counts), requires_grad=True)
        scaled = self.scaled(features)
        optimizer = torch.optim.LBFGS([self.weight, self.bias], max_iter=100, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            logits = scaled @ self.weight + self.bias
            loss = F.cross_entropy(logits, classes, 1 / counts) + DECAY * self.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)

    def scaled(self, features: Tensor) -> Tensor:
        """Return standardized features (n, d)."""
        return (features - self.mean) / self.std

    @torch.no_grad()
    def __call__(self, features: Tensor) -> Tensor:
        """Return the most probable class (n,) of features (n, d)."""
        return (self.scaled(features) @ self.weight + self.bias).argmax(1)


def label_metrics(
    labels: Sequence[Label],
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    fake: tuple[Tensor, Tensor],
    num_features: int,
) -> dict[str, Any]:
    """Return how often samples have the label that was asked for, and their distance to images with that label.

    Args:
        labels: schema of the labels. Numbers are left out.
        train, held_out, fake: what the probe sees (n, d), and labels (n, L), not finite where unknown. The labels of
            samples are those asked for.
        num_features: columns, from the first, that the distances compare.

    Returns:
        For each label `accuracy` and `balanced_accuracy` of the probe on the held-out images, to compare with what is
        found, `found`, the fraction of samples with the asked label, and `values`: for each value the same and the
        kernel distance, as far as there are enough images and samples.
    """
    metrics = {}
    for index, label in enumerate(labels):
        if label.kind == "number":
            continue
        x, classes = known_rows(*train, index)
        real, real_classes = known_rows(*held_out, index)
        samples, asked = known_rows(*fake, index)
        if len(classes.unique()) < max(2, len(label.choices)) or not len(real) or not len(samples):
            continue  # constant, or not asked for
        probe = Probe(x, classes)
        right, found = probe(real) == real_classes, probe(samples) == asked
        values = {}
        for value, name in enumerate(label.choices or ("0", "1")):
            of_real, of_samples = real_classes == value, asked == value
            group: dict[str, float | int] = {"num_photos": int(of_real.sum()), "num_images": int(of_samples.sum())}
            if group["num_photos"]:
                group["accuracy"] = fraction(right[of_real])
            if group["num_images"]:
                group["found"] = fraction(found[of_samples])
            if min(group["num_photos"], group["num_images"]) >= FEWEST:
                group["kernel_distance"] = kernel_distance(
                    real[of_real, :num_features], samples[of_samples, :num_features]
                )
            values[name] = group
        recalls = [group["accuracy"] for group in values.values() if "accuracy" in group]
        metrics[label.name] = {
            "accuracy": fraction(right),
            "balanced_accuracy": sum(recalls) / max(len(recalls), 1),
            "found": fraction(found),
            "values": values,
        }
    return metrics


def known_rows(features: Tensor, labels: Tensor, index: int) -> tuple[Tensor, Tensor]:
    """Return the features and the classes of the rows where a label is known."""
    column = labels[:, index]
    known = column.isfinite()
    return features[known], column[known].long()


def fraction(flags: Tensor) -> float:
    """Return the fraction of flags that are set."""
    return float(flags.float().mean())
