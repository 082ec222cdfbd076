"""Distances between sets of features, against closed forms and by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from latentfaces.evaluation.generation import (
    density_and_coverage,
    frechet_distance,
    generator_metrics,
    kernel_distance,
    memorization,
    moments,
    nearest,
    precision_and_recall,
    symmetric_root,
)


def exact_normal(mean: Tensor, covariance: Tensor, n: int = 200) -> Tensor:
    """Samples whose mean and covariance are exactly these."""
    x = torch.randn(n, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(symmetric_root(x.T.cov()))
    return x @ symmetric_root(covariance) + mean


def test_frechet_distance_of_normals_with_one_set_of_axes() -> None:
    a = exact_normal(torch.tensor([0.0, 1.0]).double(), torch.diag(torch.tensor([4.0, 1.0])).double())
    b = exact_normal(torch.tensor([3.0, 1.0]).double(), torch.diag(torch.tensor([1.0, 9.0])).double())
    # |difference of means|^2 + sum of (difference of stds)^2
    assert frechet_distance(a, b) == pytest.approx(9 + 1 + 4)


def test_frechet_distance_of_turned_normals() -> None:
    angle = math.pi / 6
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    first = torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64))
    second = turn @ torch.diag(torch.tensor([9.0, 0.25], dtype=torch.float64)) @ turn.T
    zero = torch.zeros(2, dtype=torch.float64)
    # tr (AB)^(1/2) = sqrt(tr AB + 2 sqrt(det AB)) for two by two.
    product = first @ second
    root = torch.sqrt(product.trace() + 2 * torch.linalg.det(product).sqrt())
    expected = first.trace() + second.trace() - 2 * root
    assert frechet_distance(exact_normal(zero, first), exact_normal(zero, second)) == pytest.approx(expected.item())


def test_frechet_distance_is_zero_to_itself_also_with_fewer_samples_than_features() -> None:
    few = torch.randn(10, 40, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-4)


def test_kernel_distance_of_points_by_hand() -> None:
    # One dimension: k(a, b) = (a b + 1)^3; within {0, 2}: 1; within {1, 1}: 8; across: 1, 1, 27, 27.
    real, fake = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [1.0]])
    assert kernel_distance(real, fake) == pytest.approx(1 + 8 - 2 * 14)


def test_kernel_distance_is_unbiased_between_samples_of_one_kind() -> None:
    generator = torch.Generator().manual_seed(0)
    values = [
        kernel_distance(torch.randn(50, 4, generator=generator), torch.randn(40, 4, generator=generator))
        for _ in range(300)
    ]
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
    assert abs(mean) < 4 * deviation / math.sqrt(len(values))
    assert min(values) < 0


def test_nothing_depends_on_the_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake, train = torch.randn(3, 30, 3, generator=generator)
    whole, found = generator_metrics(real, fake), memorization(fake, train, real, k=2)
    density = density_and_coverage(real, fake)
    monkeypatch.setattr("latentfaces.evaluation.generation.ROWS_AT_ONCE", 7)
    for values in (2**24, 6):  # 7 and 2 columns at once
        monkeypatch.setattr("latentfaces.evaluation.generation.VALUES_AT_ONCE", values)
        assert generator_metrics(real, fake) == pytest.approx(whole)
        assert density_and_coverage(real, fake) == density
        again = memorization(fake, train, real, k=2)
        assert torch.equal(again.nearest.indices, found.nearest.indices)
        assert torch.equal(again.twins.indices, found.twins.indices)


class Columns(nn.Module):
    """A network for torchmetrics that gives the first values of each picture as they are."""

    num_features = 12

    def forward(self, images: Tensor) -> Tensor:
        """Pictures (n, 3, H, W) -> (n, 12)."""
        return images.flatten(1)[:, :12].float()


@pytest.mark.filterwarnings("ignore:Metric `Kernel")
def test_distances_are_those_of_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randint(0, 3, (90, 3, 2, 2), generator=generator).to(torch.uint8)
    fake = torch.randint(1, 5, (80, 3, 2, 2), generator=generator).to(torch.uint8)
    features = real.flatten(1).float(), fake.flatten(1).float()
    frechet: Any = FrechetInceptionDistance(Columns(), input_img_size=(3, 2, 2))
    kernel: Any = KernelInceptionDistance(Columns(), subsets=1, subset_size=80)
    for metric in (frechet, kernel):
        metric.update(real[:80] if metric is kernel else real, real=True)
        metric.update(fake, real=False)
    assert frechet_distance(*features) == pytest.approx(float(frechet.compute()), rel=1e-4)
    assert kernel_distance(features[0][:80], features[1]) == pytest.approx(float(kernel.compute()[0]), rel=1e-4)


def test_precision_and_recall_are_those_of_torch_fidelity() -> None:
    fidelity: Any = pytest.importorskip("torch_fidelity.metric_prc")
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(70, 6, generator=generator), 0.7 * torch.randn(90, 6, generator=generator)
    expected = fidelity.calculate_precision_recall_full(fake, real, 3)
    assert precision_and_recall(real, fake) == pytest.approx(expected)
    assert 0 < expected[1] < expected[0]


def test_distances_are_those_of_torch_fidelity() -> None:
    fid: Any = pytest.importorskip("torch_fidelity.metric_fid")
    kid: Any = pytest.importorskip("torch_fidelity.metric_kid")
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(90, 6, generator=generator, dtype=torch.float64)
    fake = 0.5 + 0.7 * torch.randn(90, 6, generator=generator, dtype=torch.float64)
    statistics = (fid.fid_features_to_statistics(features) for features in (fake, real))
    (expected,) = fid.fid_statistics_to_metric(*statistics, verbose=False).values()
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-6)
    subset = {"kid_subsets": 1, "kid_subset_size": 90, "verbose": False}  # all samples
    expected = kid.kid_features_to_metric(fake, real, **subset)[kid.KEY_METRIC_KID_MEAN]
    assert kernel_distance(real, fake) == pytest.approx(expected, rel=1e-6)


def test_density_and_coverage_of_points_on_a_line() -> None:
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    fake = torch.tensor([[0.5], [0.6], [0.7], [50.0]])
    # With k = 1 each ball has radius 1. Three samples are in the balls of 0 and 1, and the others are empty.
    assert density_and_coverage(real, fake, k=1) == (6 / 4, 2 / 4)


def test_neighbourhoods_of_few_samples_reach_to_the_farthest() -> None:
    real, fake = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[2.0], [7.0]])
    # Two neighbors instead of five: radii of 3, 2 and 3. The sample at 2 is in all balls, that at 7 in none.
    assert density_and_coverage(real, fake) == (3 / (2 * 2), 1)
    # Three become two. With one neighbor, the samples' radii are 5, within which are 1 and 3, but 0 as well.
    assert precision_and_recall(real, fake) == (0.5, 1)


def test_usual_numbers_of_neighbors_are_those_of_the_papers() -> None:
    real, fake = torch.randn(2, 40, 2, generator=torch.Generator().manual_seed(0))
    assert precision_and_recall(real, fake) == precision_and_recall(real, fake, k=3)
    assert density_and_coverage(real, fake) == density_and_coverage(real, fake, k=5)


def test_density_and_coverage_of_a_set_and_itself_and_of_sets_far_apart() -> None:
    real = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    assert density_and_coverage(real, real) == (1, 1)
    assert density_and_coverage(real, real + 100) == (0, 0)
    assert density_and_coverage(real, real[:1].expand(300, -1))[1] <= 0.05


def test_density_and_coverage_of_equal_distributions_are_the_expected_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    n, m, k = 60, 40, 3
    pairs = [
        density_and_coverage(torch.randn(n, 2, generator=generator), torch.randn(m, 2, generator=generator), k)
        for _ in range(200)
    ]
    density, coverage = torch.tensor(pairs).mean(0).tolist()
    # A ball is empty where the k nearest of all n + m - 1 others are real (Naeem et al. 2020).
    empty = math.prod((n - i) / (n + m - i) for i in range(1, k + 1))
    assert coverage == pytest.approx(1 - empty, abs=0.01)
    assert density == pytest.approx(1, abs=0.03)


def test_moments_are_the_mean_and_the_covariance() -> None:
    features = 100 + torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    mean, covariance = moments(features)
    assert torch.allclose(mean, features.double().mean(0))
    assert torch.allclose(covariance, features.double().T.cov())


def test_precision_and_recall_of_points_on_a_line() -> None:
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    fake = torch.tensor([[0.5], [0.6], [0.7], [50.0]])
    # With k = 1 each real has radius 1, and so covers three fakes; the fakes' radii are 0.1, 0.1, 0.1 and 49.3,
    # within which three reals lie.
    assert precision_and_recall(real, fake, k=1) == (0.75, 0.75)


def test_a_sample_at_the_radius_itself_is_in_the_manifold() -> None:
    # As in equation 1 of the paper, unlike for density.
    assert precision_and_recall(torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [9.0]]), k=1)[0] == 0.5


def test_a_generator_of_one_good_face_has_precision_and_no_recall() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(200, 4, generator=generator)
    fake = real[:1] + 1e-3 * torch.randn(200, 4, generator=generator)
    precision, recall = precision_and_recall(real, fake)
    assert precision == 1
    assert recall <= 0.01


def test_memorized_fraction_counts_copies_of_training_images() -> None:
    generator = torch.Generator().manual_seed(0)
    train, held_out, new = torch.randn(3, 400, 6, generator=generator)
    fake = torch.cat([train[:100] + 1e-4, new[:300]])
    found = memorization(fake, train, held_out)
    assert found.memorized_fraction == pytest.approx(0.25, abs=0.03)
    assert found.nearest.indices[:100, 0].tolist() == list(range(100))
    assert memorization(new, train, held_out).memorized_fraction == pytest.approx(0.01, abs=0.02)


def test_copies_in_the_data_do_not_move_the_limit_of_memorization() -> None:
    generator = torch.Generator().manual_seed(0)
    train, held_out = torch.randn(400, 6, generator=generator), torch.randn(100, 6, generator=generator)
    limit = memorization(train, train, held_out).limit
    held_out[:5] = train[:5]  # images that the data contain twice
    held_out[5:10] = train[5:10] + 1e-4
    found = memorization(train + 1e-5, train, held_out)
    assert found.memorized_fraction == 1
    assert found.limit == pytest.approx(limit, rel=0.5)


def test_the_nearest_view_of_an_item_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    train, mirrored, held_out = torch.randn(3, 200, 6, generator=generator)
    views = torch.stack([train, mirrored], dim=1)
    found = memorization(mirrored[:50], views, held_out, k=3)
    assert found.memorized_fraction == 1
    assert found.nearest.indices[:, 0].tolist() == list(range(50))
    assert found.nearest.views[:, 0].tolist() == [1] * 50
    assert all(len(set(row)) == 3 for row in found.nearest.indices.tolist())  # an item is found once
    assert memorization(mirrored[:50], train, held_out).memorized_fraction < 0.2


def test_duplicates_are_faces_that_come_twice() -> None:
    generator = torch.Generator().manual_seed(0)
    held_out, new = torch.randn(2, 100, 6, generator=generator)
    twice = memorization(torch.cat([new[:50], new[:50] + 1e-5]), held_out, held_out)
    assert twice.duplicates == 1
    assert twice.twins.indices[:, 0].tolist() == [*range(50, 100), *range(50)]
    assert memorization(new, held_out, held_out).duplicates <= 0.05
    held_out[1] = held_out[0]  # a photo that the set holds twice hides no duplicates
    assert memorization(torch.cat([new[:50], new[:50] + 1e-5]), held_out, held_out).duplicates == 1


def test_duplicates_are_sought_among_as_many_samples_as_held_out_images() -> None:
    few, many = torch.tensor([[0.0], [10.0]]), torch.tensor([[0.0], [10.0], [0.1]])  # more samples lie closer
    assert memorization(many, few, few).twins.distances.flatten().tolist() == [10, 10]
    assert memorization(few, few, many).held_out_twins.tolist() == [10, 10]


def test_nearest_distance_leaves_out_the_sample_itself() -> None:
    samples = torch.tensor([[0.0], [1.0], [4.0]])
    assert nearest(samples).distances.flatten().tolist() == [1.0, 1.0, 3.0]
    assert nearest(samples, torch.tensor([[1.0]])).distances.flatten().tolist() == [1.0, 0.0, 3.0]
    assert nearest(samples, k=2).indices.tolist() == [[1, 2], [0, 2], [1, 0]]


def test_all_metrics_of_the_same_kind_are_as_good_as_can_be() -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, 300, 5, generator=generator)
    values = generator_metrics(real, fake)
    assert abs(values["kernel_distance"]) < 0.05
    assert values["frechet_distance"] < 0.3
    assert min(values["precision"], values["recall"]) > 0.85
