"""Labels in task=evaluate."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from latentfaces.data import FFHQDataModule, Pack
from latentfaces.data.labels import read_labels
from latentfaces.diffusion import Conditioning
from latentfaces.errors import UserError
from latentfaces.evaluation.probe import label_metrics
from latentfaces.labels import Label
from latentfaces.run import DATA, check_targets, open_run


def labels_of_run(folder: str | None, pack: Pack, conditioning: Conditioning) -> Tensor:
    """Read the labels (N, L) of a pack's images again, as the training of the run did.

    Raises:
        UserError: they are missing or have changed.
    """
    assert folder is not None
    config = open_run(folder).config["data"]
    check_targets(config, DATA)
    arguments = {key: value for key, value in config.items() if key != "_target_"}
    data: FFHQDataModule = getattr(FFHQDataModule, config["_target_"].rpartition(".")[2])(**arguments)
    assert data.labels is not None
    names, kinds = pack.manifest["names"], data.label_types
    table = read_labels(data.labels, data.source, names, pack.train_indices, conditioning.names, kinds)
    before, now = ([(label.kind, *label.choices) for label in labels] for labels in (conditioning.labels, table.labels))
    if before != now:
        raise UserError(f"data.labels={data.labels} has changed since {folder} was trained. Restore it.")
    return torch.from_numpy(table.values)


def evaluate_labels(
    labels: Sequence[Label], features: tuple[Tensor, Tensor, Tensor], values: tuple[Tensor, Tensor, Tensor]
) -> dict[str, Any]:
    """Print and return `label_metrics`, from features and labels of training images, held-out images and samples."""
    train, held_out, fake = ((x, y.to(x.device)) for x, y in zip(features, values, strict=True))
    metrics = label_metrics(labels, train, held_out, fake)
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
