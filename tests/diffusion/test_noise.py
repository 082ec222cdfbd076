"""Noise of samples: a function of each sample's generator alone, drawn ahead or not."""

import pytest
import torch

from latentfaces.diffusion import PerSampleNoise

SHAPE = (4, 8, 8)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("ahead", [False, True])
def test_noise_depends_on_the_samples_generator_alone(ahead: bool) -> None:
    noise = PerSampleNoise(generators(0, 1, 2), SHAPE, torch.device("cpu"))
    noise.ahead = ahead
    drawn = [noise() for _ in range(3)]
    for number in range(3):
        (alone,) = generators(number)
        for step in drawn:
            assert torch.equal(step[number], torch.randn(SHAPE, generator=alone))


def test_the_next_noise_is_drawn_before_it_is_asked_for_where_a_gpu_would_wait() -> None:
    sources = generators(0, 1)
    noise = PerSampleNoise(sources, SHAPE, torch.device("cpu"))
    noise.ahead = True
    first = noise()
    assert noise.upcoming is not None
    upcoming, parts = noise.upcoming
    for part in parts:
        part.result()
    kept = first.clone()
    assert noise() is upcoming
    assert not torch.equal(kept, upcoming)
    assert torch.equal(first, kept)  # its memory is not used again
