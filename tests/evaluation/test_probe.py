"""Probe of labels: two Gaussians, whose best accuracy is known, and samples whose labels are known."""

import math

import pytest
import torch
from torch import Tensor

from latentfaces.evaluation.probe import Probe, WithPixels, gray_pixels, label_metrics
from latentfaces.labels import Label

DISTANCE = 2.0
BEST = 0.5 * (1 + math.erf(DISTANCE / 2 / math.sqrt(2)))
"""Accuracy of the best classifier of two normal distributions at this distance."""


def gaussians(classes: Tensor, seed: int = 0) -> Tensor:
    """Return features (n, 3): class 1 is `DISTANCE` away along the second, and the third is constant."""
    features = torch.randn(len(classes), 3, generator=torch.Generator().manual_seed(seed))
    features[:, 1] += DISTANCE * classes
    features[:, 2] = 7
    return features * torch.tensor([1.0, 50.0, 1.0])


@pytest.mark.parametrize("fraction", [0.5, 0.05])
def test_accuracy_of_two_gaussians_is_the_known_one_for_each_class_however_rare(fraction: float) -> None:
    generator = torch.Generator().manual_seed(1)
    classes = (torch.rand(8000, generator=generator) < fraction).long()
    probe = Probe(gaussians(classes), classes)
    test = torch.arange(20_000) % 2
    right = probe(gaussians(test, seed=2)) == test
    for value in (0, 1):
        assert right[test == value].float().mean() == pytest.approx(BEST, abs=0.03)


def test_weights_are_those_of_the_least_loss_whatever_the_unit_of_a_feature() -> None:
    classes = torch.arange(1000) % 2
    with torch.no_grad():  # as in a task
        probe = Probe((100.0 * classes - 50)[:, None], classes)
    # Standardized, the feature is -1 or 1. The derivative of log(1 + exp(-2 w)) + 0.1 * 2 w^2 is 0 at the minimum.
    low, high = probe.weight[0].tolist()
    assert high == pytest.approx(-low, rel=1e-3)
    assert high == pytest.approx(5 / (1 + math.exp(2 * high)), rel=1e-2)


def test_three_classes_are_told_apart() -> None:
    classes = torch.arange(300) % 3
    features = torch.eye(3)[classes] + 0.1 * torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    assert (Probe(features, classes)(torch.eye(3)) == torch.arange(3)).all()


SMILE, AGE = Label("smile", "binary"), Label("age", "number")


def rows(classes: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return features, and labels smile and age of which the last tenth is unknown."""
    labels = torch.stack([classes.float(), torch.zeros(len(classes))], dim=1)
    labels[-len(labels) // 10 :, 0] = math.nan
    return gaussians(classes, seed), labels


def test_found_is_the_agreement_of_samples_with_their_labels() -> None:
    classes = torch.arange(4000) % 2
    train, held_out, fake = (rows(classes, seed) for seed in range(3))
    result = label_metrics([SMILE, AGE], train, held_out, fake, num_features=3)
    assert set(result) == {"smile"}  # a number has no classes
    smile = result["smile"]
    assert smile["accuracy"] == pytest.approx(BEST, abs=0.03)
    assert smile["balanced_accuracy"] == pytest.approx(BEST, abs=0.03)
    assert smile["found"] == pytest.approx(BEST, abs=0.03)
    assert [smile["values"][value]["num_images"] for value in "01"] == [1800, 1800]
    # Samples with the opposite label agree as often as the probe errs.
    contrary = (fake[0], 1 - fake[1])
    assert label_metrics([SMILE], train, held_out, contrary, 3)["smile"]["found"] == pytest.approx(1 - BEST, abs=0.03)


def test_accuracy_counts_images_and_balanced_accuracy_counts_classes() -> None:
    classes = torch.arange(200) % 2
    train = 10.0 * classes[:, None], classes[:, None].float()
    labels = (torch.arange(100) < 10)[:, None].float()
    features = 10 * labels.clone()
    features[:5] = 0  # half of the ten images of class 1 look like class 0
    smile = label_metrics([SMILE], train, (features, labels), train, num_features=1)["smile"]
    assert smile["accuracy"] == pytest.approx(0.95)
    assert smile["balanced_accuracy"] == pytest.approx(0.75)
    assert smile["values"]["1"]["accuracy"] == pytest.approx(0.5)
    assert smile["found"] == smile["values"]["1"]["found"] == 1
    hair = Label("hair", "category", ("black", "blond", "gray"))  # nobody in the training images is gray
    assert label_metrics([hair], train, (features, labels), train, num_features=1) == {}


def test_each_group_is_compared_with_the_images_of_that_group() -> None:
    classes = torch.arange(1000) % 2
    train, held_out, (features, labels) = (rows(classes, seed) for seed in range(3))
    features[classes == 1] += torch.tensor([100.0, 0.0, 0.0])
    values = label_metrics([SMILE], train, held_out, (features, labels), num_features=1)["smile"]["values"]
    assert abs(values["0"]["kernel_distance"]) < 0.2
    assert values["1"]["kernel_distance"] > 1000


def test_small_groups_have_no_distance_and_labels_that_were_not_asked_no_entry() -> None:
    classes = torch.arange(400) % 2
    train, held_out, fake = (rows(classes, seed) for seed in range(3))
    few = fake[0][:90], fake[1][:90]
    values = label_metrics([SMILE], train, held_out, few, 3)["smile"]["values"]
    assert "found" in values["1"]
    assert "kernel_distance" not in values["1"]
    free = fake[0], torch.full_like(fake[1], math.inf)
    assert label_metrics([SMILE], train, held_out, free, 3) == {}


def test_pixels_are_gray_means_after_the_features() -> None:
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    images[1, :, :2, :2] = torch.tensor([0, 51, 102], dtype=torch.uint8)[:, None, None]
    pixels = gray_pixels(images)
    assert pixels.shape == (2, 32 * 32)
    assert pixels[1, 0] == pytest.approx(0.2)
    assert pixels.sum() == pytest.approx(0.2)

    class Constant:
        key = "constant"

        def __call__(self, images: Tensor) -> Tensor:
            return torch.full((len(images), 1), 7.0)

    extract = WithPixels(Constant())
    assert torch.equal(extract(images), torch.cat([torch.full((2, 1), 7.0), pixels], dim=1))
    assert extract.key != Constant.key
