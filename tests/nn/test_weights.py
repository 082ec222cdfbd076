"""Hash of the weights in the name of a latent cache."""

import torch
from torch import nn

from latentfaces.nn import weights_hash


def test_hash_changes_with_any_weight_or_buffer() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    first = weights_hash(network)
    assert weights_hash(network) == first
    network[1].running_mean[0] += 1e-3
    second = weights_hash(network)
    with torch.no_grad():
        network[0].weight[0, 0] += 1e-3
    assert len({first, second, weights_hash(network)}) == 3
