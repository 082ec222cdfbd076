"""Labels in task=evaluate."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentfaces.data import FFHQDataModule, Pack
from latentfaces.data.labels import read_labels
from latentfaces.diffusion import Conditioning
from latentfaces.errors import UserError
from latentfaces.evaluation.probe import gray_pixels, label_metrics
from latentfaces.run import DATA, check_targets, open_run

AT_ONCE = 1024


def labels_of_run(folder: str, pack: Pack, conditioning: Conditioning) -> Tensor:
    """Read the labels (N, L) of a pack's images again, as the training of the run did.

    Raises:
        UserError: they are missing or have changed.
    """
    config = open_run(folder).config["data"]
    check_targets(config, DATA)
    arguments = {key: value for key, value in config.items() if key != "_target_"}
    data: FFHQDataModule = getattr(FFHQDataModule, config["_target_"].rpartition(".")[2])(**arguments)
    assert data.labels is not None
    table = read_labels(data.labels, data.source, pack, conditioning.names, data.label_types)
    before, now = ([(label.kind, *label.choices) for label in labels] for labels in (conditioning.labels, table.labels))
    if before != now:
        raise UserError(f"data.labels={data.labels} has changed since {folder} was trained. Restore it.")
    return torch.from_numpy(table.values)


def evaluate_labels(
    pack: Pack, conditioning: Conditioning, labels: Tensor, real: Tensor, fake: Tensor, asked: Tensor
) -> dict[str, Any]:
    """Print and return `label_metrics`.

    Args:
        pack: the images.
        conditioning: schema of the labels.
        labels: labels (N, L) of the images.
        real: features (N, d) of the images.
        fake: features (n, d + p) of the samples, of `WithPixels`.
        asked: labels (n, L) of the samples.
    """

    def known(indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        parts = np.array_split(indices, max(1, len(indices) // AT_ONCE))
        pixels = torch.cat([gray_pixels(torch.from_numpy(pack.images[part])) for part in parts])
        return torch.cat([real[indices], pixels], dim=1).to(fake), labels[indices].to(fake)

    train, held_out = known(pack.train_indices), known(pack.test_indices)
    metrics = label_metrics(conditioning.labels, train, held_out, (fake, asked.to(fake)), real.shape[1])
    print("Labels: accuracy of the probe on held-out images, then the fraction of samples with the asked label")
    for line in described(metrics):
        print(line)
    return metrics


def described(metrics: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each label, and for each value of it."""
    for name, label in metrics.items():
        probe = f"{label['accuracy']:.1%} (balanced {label['balanced_accuracy']:.1%})"
        yield f"  {name}: {probe}, samples {label['found']:.1%}"
        for value, group in label["values"].items():
            counts = f"{group['num_photos']:,} held-out images, {group['num_images']:,} samples"
            parts = [f"{group[key]:.1%}" if key in group else "none" for key in ("accuracy", "found")]
            distance = group.get("kernel_distance")
            measured = "too few for a kernel distance" if distance is None else f"kernel_distance {distance:.4g}"
            yield f"    {value}: {parts[0]}, samples {parts[1]}; {measured} ({counts})"
