"""Cost of a sampler without the network, vs diffusers' schedulers.

    pip install diffusers
    python benchmarks/sampling.py [--json FILE]

Both step latents (4, 4, 16, 16) with a network that costs nothing; one thread, process CPU time, in turns, the median
of some rounds and their ends. Ours works on coefficients of x and of the prediction, known before the first step.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from about import about
from timing import Spread, cpu_ms, interleaved
from torch import Tensor

from latentfaces.diffusion import DDIMSampler, Denoiser, DPMpp2MSampler, EulerSampler, RectifiedFlow, Sampler, VPLinear

STEPS, ROUNDS = 50, 21


class Nothing(torch.nn.Module):
    """Network that returns one tensor."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.answer = torch.randn(shape)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.answer


def microseconds(run: Callable[[], object]) -> float:
    """Return the CPU time of a step in microseconds."""
    return 1e3 * cpu_ms(run) / STEPS


def ours(sampler: Sampler, denoiser: Denoiser, noise: Tensor) -> Callable[[], object]:
    """Take all steps of a sampler, without the work of the denoiser around its network."""
    denoiser.predict = lambda x, t: denoiser.network.answer  # type: ignore[method-assign, assignment, return-value]
    return lambda: sampler(denoiser, noise)


def theirs(name: str, noise: Tensor, answer: Tensor) -> Callable[[], object]:
    """Take all steps of a scheduler of diffusers."""
    import diffusers  # type: ignore[import-not-found]

    def run() -> None:
        schedule = getattr(diffusers, name)()
        schedule.set_timesteps(STEPS)
        x = noise
        for t in schedule.timesteps:
            x = schedule.step(answer, t, x).prev_sample

    return run


PEERS = {
    "euler": "FlowMatchEulerDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
}
"""diffusers' scheduler by the name of our sampler."""


@torch.no_grad()
def measure(rounds: int = ROUNDS) -> dict[str, Spread]:
    """Return the CPU microseconds per step, by project and name."""
    noise = torch.randn(4, 4, 16, 16)
    network = Nothing(noise.shape)
    variants = {
        "latentfaces euler": ours(EulerSampler(STEPS), Denoiser(network, RectifiedFlow()), noise),
        "latentfaces ddim": ours(DDIMSampler(STEPS), Denoiser(network, VPLinear(), "eps"), noise),
        "latentfaces dpmpp_2m": ours(DPMpp2MSampler(STEPS), Denoiser(network, VPLinear(), "eps"), noise),
        **{f"diffusers {name}": theirs(name, noise, network.answer) for name in PEERS.values()},
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = interleaved(variants, rounds, microseconds)
    torch.set_num_threads(threads)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = measure()
    for name, row in rows.items():
        print(f"{name:44s} " + "  ".join(f"{key} {value:.1f}" for key, value in row.items()))
    if arguments.json:
        content = {**about(), "command": "python benchmarks/sampling.py", "steps": STEPS, "unit": "us", "rows": rows}
        arguments.json.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
