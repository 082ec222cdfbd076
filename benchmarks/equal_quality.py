"""CPU time of 64 faces at equal quality: latentfaces and diffusers, each with its cheapest sampler that reaches it.

    python benchmarks/equal_quality.py PHOTOS --vae RUN --run RUN --minutes 12 [--faces 256]
        [--only 'dpmpp_2m,ddpm 50'] [--guidance plain] [--theirs 'ddim 10,dpm'] [--peer diffusers-tuned] [--json FILE]

`--run` is a finished run of stage 2. diffusers' UNet2DModel of equal size is trained in the same latents for --minutes
by `benchmarks/diffusion.py`. Each side makes --faces samples with each of its samplers at several numbers of steps.
--only and --guidance select those of latentfaces. Batches have 64 samples, decoder and precision are the same, and one
thread is used. The table has the CPU time of 64 samples.

Two networks are hardly ever equally good, so there are two results:

- `own` is each side's cheapest setting whose kid_effnet is within 5 % of its own best.
- `common` is each side's cheapest setting within 5 % of the best of the worse side, a level that both reach.

Neither holds for networks that were trained for longer.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from about import about
from diffusion import DIFFUSERS, Judge, cached_latents, sample_diffusers, train_diffusers
from ours import in_bfloat16
from torch import Tensor

from latentfaces.data import FFHQDataModule
from latentfaces.diffusion import (
    AutoGuidance,
    DDPMSampler,
    DPMpp2MSampler,
    EulerSampler,
    Guidance,
    HeunSampler,
    NoGuidance,
    Sampler,
)
from latentfaces.pipeline import FacePipeline
from latentfaces.run import open_run

TOLERANCE = 1.05
COUNTS = (2, 3, 5, 10, 20, 50)
THEIRS = {f"{kind} {count}": (kind, count) for kind in ("ddim", "ddim-clipped", "dpm") for count in COUNTS}
"""Diffusers' schedulers, each with its numbers of steps."""


KINDS: dict[str, tuple[Callable[[int], Sampler], tuple[int, ...]]] = {
    "euler": (EulerSampler, (2, 3, 5, 10, 20, 50)),
    "heun": (HeunSampler, (2, 3, 5, 9, 18)),
    "dpmpp_2m": (DPMpp2MSampler, (2, 3, 5, 10, 20, 50)),
    "dpmpp_2m_sde": (partial(DPMpp2MSampler, eta=1.0), (5, 10, 20, 50)),
    "ddpm": (DDPMSampler, (20, 50)),
}
"""Samplers by their names in conf/sampler, and numbers of steps."""

Settings = dict[str, tuple[float, float]]
"""kid_effnet, and CPU seconds for 64 samples, by name."""
SAMPLERS = {f"{kind} {count}": make(count) for kind, (make, counts) in KINDS.items() for count in counts}
GUIDANCES: dict[str, Guidance] = {"guided": AutoGuidance(1.5), "plain": NoGuidance()}
"""The default guidance, and none."""


def makers_of(
    run: Path, num_faces: int, samplers: Iterable[str] = SAMPLERS, guidances: Iterable[str] = GUIDANCES
) -> dict[str, Callable[[], Tensor]]:
    """Return functions that generate samples, by sampler and guidance."""
    makers: dict[str, Callable[[], Tensor]] = {}
    for guidance in guidances:
        pipeline = FacePipeline.load(run, bfloat16=in_bfloat16())
        pipeline.guidance = GUIDANCES[guidance]
        for name in samplers:
            makers[f"{name}, {guidance}"] = partial(pipeline.generate, num_faces, 0, SAMPLERS[name])
    return makers


def chosen(text: str, known: Iterable[str]) -> list[str]:
    """Return the names in a list with commas. A first word selects all names that start with it.

    Raises:
        argparse.ArgumentTypeError: a name is unknown.
    """
    words = text.split(",")
    if unknown := [word for word in words if not any(word in (name, name.split()[0]) for name in known)]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is none of {', '.join(known)}")
    return [name for word in words for name in known if word in (name, name.split()[0])]


def measured(judge: Judge, makers: dict[str, Callable[[], Tensor]]) -> Settings:
    """Measure the quality and time of each."""
    settings = {}
    for name, make in makers.items():
        started = time.process_time()
        faces = make()
        seconds = (time.process_time() - started) * 64 / len(faces)
        judge(name, faces, seconds_of_64=seconds)
        settings[name] = judge.rows[name]["kid_effnet"], seconds
    return settings


def add_names(parser: argparse.ArgumentParser, option: str, known: Iterable[str], what: str) -> None:
    """Add an option that takes names from `known`. All are the default."""
    text = f"{what}, with commas; a first word selects all of that kind"
    parser.add_argument(option, type=partial(chosen, known=known), default=",".join(known), help=text)


def add_ours(parser: argparse.ArgumentParser) -> None:
    """Add the options for samplers and guidances of latentfaces."""
    add_names(parser, "--only", SAMPLERS, "samplers, each with its steps")
    add_names(parser, "--guidance", GUIDANCES, "kinds of guidance")


def cheapest(settings: Settings, level: float) -> str:
    """Return the fastest setting whose kid_effnet is at most `level`."""
    return min((name for name, (kid, _) in settings.items() if kid <= level), key=lambda name: settings[name][1])


def answers(ours: Settings, theirs: Settings) -> dict[str, dict[str, Any]]:
    """Return both settings and the speed-up of ours, for each meaning of equal quality."""
    best = [min(kid for kid, _ in settings.values()) for settings in (ours, theirs)]
    answers = {}
    for name, levels in (("own", best), ("common", [max(best)] * 2)):
        a, b = (cheapest(side, TOLERANCE * level) for side, level in zip((ours, theirs), levels, strict=True))
        answers[name] = {"ours": a, "theirs": b, "times_faster": theirs[b][1] / ours[a][1]}
    return answers


def main(argv: list[str] | None = None) -> dict[str, dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--vae", type=Path, required=True, help="a run of stage 1 on these photos")
    parser.add_argument("--run", type=Path, required=True, help="a run of stage 2 on this VAE")
    parser.add_argument("--minutes", type=float, default=12.0, help="of training diffusers' network")
    parser.add_argument("--peer", default="diffusers-tuned", choices=list(DIFFUSERS))
    parser.add_argument("--faces", type=int, default=1000)
    add_ours(parser)
    add_names(parser, "--theirs", THEIRS, "schedulers of diffusers, each with its steps")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    vae, bfloat16 = open_run(arguments.vae), in_bfloat16()
    resolution = vae.config["data"]["resolution"]
    data = FFHQDataModule.from_photos(arguments.photos, folder="data", resolution=resolution, batch_size=64)
    data.setup()
    command = "python benchmarks/equal_quality.py PHOTOS --vae RUN --run RUN"
    command += f" --minutes {arguments.minutes:g} --faces {arguments.faces} --peer {arguments.peer}"
    for option in ("only", "guidance", "theirs"):
        command += f" --{option} '{','.join(getattr(arguments, option))}'"
    judge, plain = Judge(data, None, None, command), FacePipeline.load(vae, bfloat16=bfloat16)
    batch_size, rate = DIFFUSERS[arguments.peer]
    latents = cached_latents(plain, arguments.photos, resolution, batch_size)
    unet, _ = train_diffusers(latents, arguments.minutes, rate)
    torch.set_num_threads(1)
    ours = measured(judge, makers_of(arguments.run, arguments.faces, arguments.only, arguments.guidance))
    theirs = {name: partial(sample_diffusers, unet, plain, *THEIRS[name], arguments.faces) for name in arguments.theirs}
    found = answers(ours, measured(judge, theirs))
    for name, row in found.items():
        print(name, row, flush=True)
    if arguments.json:
        content = {**about(), "command": command, "answers": found, "rows": judge.rows}
        arguments.json.write_text(json.dumps(content, indent=1))
    return found


if __name__ == "__main__":
    main()
