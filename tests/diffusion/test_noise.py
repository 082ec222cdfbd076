"""Noise of samples: a function of each sample's generator alone."""

import torch

from latentfaces.diffusion import PerSampleNoise

SHAPE = (4, 8, 8)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_noise_depends_on_the_samples_generator_alone() -> None:
    noise = PerSampleNoise(generators(0, 1, 2), SHAPE, torch.device("cpu"))
    drawn = [noise() for _ in range(3)]
    for number in range(3):
        (alone,) = generators(number)
        for step in drawn:
            assert torch.equal(step[number], torch.randn(SHAPE, generator=alone))
