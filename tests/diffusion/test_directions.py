"""Directions of features whose covariance is known."""

import io
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from latentfaces.diffusion import DiT, UNet
from latentfaces.diffusion.directions import (
    FeatureDirections,
    direction_of_label,
    explained_variance,
    feature_hook,
    principal_directions,
    recorded_features,
)
from latentfaces.errors import UserError

A, B = torch.eye(6)[1], torch.eye(6)[4]


class Echo(nn.Module):
    """A network whose features are x_t, and whose prediction is the features."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_time = nn.Identity()
        self.blocks = nn.ModuleList([nn.Identity(), nn.Identity()])

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.embed_time(t)
        return self.blocks[1](self.blocks[0](x_t))


@pytest.fixture
def scores() -> Tensor:
    """Two uncorrelated columns (20, 2) with mean 0 and std 1."""
    values = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(values - values.mean(0)).Q * 19**0.5


@pytest.fixture
def directions() -> FeatureDirections:
    vectors = torch.stack([torch.stack([A, 3 * A]), torch.stack([B, B])])
    return FeatureDirections(["pc1", "pc2"], torch.tensor([0.2, 0.6]), vectors, torch.tensor([0.9, 0.1]))


def test_planted_directions_are_found_with_their_variance(scores: Tensor) -> None:
    features = 7 + scores @ torch.stack([3 * A, B])
    found = principal_directions(features, 2)
    assert torch.allclose(found.abs(), torch.stack([3 * A, B]), atol=1e-4)
    assert torch.allclose(explained_variance(features, found), torch.tensor([0.9, 0.1]), atol=1e-5)


def test_direction_of_a_label_points_to_the_mean_of_those_that_have_it(scores: Tensor) -> None:
    has_label = torch.arange(20) < 10
    within = scores[:, :1] * B
    within = within - torch.where(has_label[:, None], within[:10].mean(0), within[10:].mean(0))
    features = within + 4 * has_label[:, None] * A
    std = 2 * (20 / 19) ** 0.5  # of 0 and 4, ten times each
    assert torch.allclose(direction_of_label(features, has_label), std * A, atol=1e-5)


def test_strength_s_moves_the_features_by_s_at_every_time(directions: FeatureDirections) -> None:
    network, x, strengths = Echo(), torch.randn(2, 6), torch.tensor([2.0, -1.0])
    for time, scale in ((0.2, 1.0), (0.4, 2.0), (0.6, 3.0), (0.0, 1.0), (1.0, 3.0)):
        with directions.applied(network, "pc1", strengths):
            moved = network(x, torch.full((2,), time)) - x
            both = network(torch.cat([x, x]), torch.full((4,), time)) - torch.cat([x, x])  # as guidance by labels
        assert torch.allclose(moved, strengths[:, None] * scale * A, atol=1e-5)
        assert torch.equal(both, torch.cat([moved, moved]))
    assert torch.equal(network(x, torch.full((2,), 0.2)), x)  # the hook is gone


def test_strength_0_changes_no_bit(directions: FeatureDirections) -> None:
    network, x = Echo(), torch.randn(2, 6)
    with directions.applied(network, "pc1", torch.zeros(2)):
        assert torch.equal(network(x, torch.full((2,), 0.3)), x)


def test_last_evaluation_of_a_time_is_recorded() -> None:
    network, x = Echo(), torch.randn(4, 6)
    with recorded_features(network, 2) as features_at:
        for factor in (1, 2):
            network(factor * x, torch.full((4,), 0.5))
    assert list(features_at) == [0.5]
    assert torch.equal(features_at[0.5], 2 * x[:2])


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (UNet(4, 8, (1, 2, 2), 1, ()), (16, 4, 4)),
        (UNet(4, 8, (1,), 1, ()), (8, 8, 8)),
        (DiT(4, 8, depth=3, num_heads=2), (16, 8)),
    ],
)
def test_networks_have_features_that_depend_on_x_t(network: nn.Module, shape: tuple[int, ...]) -> None:
    seen = list[Tensor]()
    with feature_hook(network, lambda features, time: seen.append(features)):
        for x in (torch.zeros(1, 4, 8, 8), torch.randn(1, 4, 8, 8)):
            network(x, torch.full((1,), 0.5))
    assert [tuple(features.shape[1:]) for features in seen] == [shape, shape]
    assert not torch.allclose(seen[0], seen[1])


def test_directions_survive_a_file(directions: FeatureDirections, tmp_path: Path) -> None:
    path = tmp_path / "directions.npz"
    with path.open("wb") as file:
        directions.renamed({"pc2": "smile"}).save(file)
    again = FeatureDirections.load(path)
    assert again.names == ["pc1", "smile"]
    assert torch.equal(again.vectors, directions.vectors)
    assert torch.equal(again.at("smile", 0.3), B)


def test_mistakes_and_other_files_are_refused(directions: FeatureDirections, tmp_path: Path) -> None:
    path = tmp_path / "directions.npz"
    with pytest.raises(UserError, match="task=directions"):
        FeatureDirections.load(path)
    file = io.BytesIO()
    directions.save(file)
    for content in (b"", b"PK\3\4", file.getvalue()[:-100]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            FeatureDirections.load(path)
    with pytest.raises(UserError, match=r"smile is not a direction.*pc1, pc2"):
        directions.renamed({"smile": "pc3"})
    with pytest.raises(UserError, match="pc2 would be the name of two"):
        directions.renamed({"pc1": "pc2"})
    network = Echo()
    with pytest.raises(UserError, match="another run"), directions.applied(network, "pc1", torch.ones(1)):
        network(torch.zeros(1, 5), torch.zeros(1))
