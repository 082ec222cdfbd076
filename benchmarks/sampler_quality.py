"""New faces of one finished run of stage 2 by each sampler at some numbers of steps, guided and not: quality and cost.

    pip install -e '.[metrics]'
    python benchmarks/sampler_quality.py PHOTOS --run RUN [--faces 256] [--only 'ddpm 50,heun'] [--guidance guided]

Every setting starts from the same noise. Reported: kid_effnet (see diffusion.py) against all held-out photos, and CPU
seconds of one thread for 64 faces, in batches of 64; `floor` is the VAE's reconstructions of those photos.
"""

import argparse
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from diffusion import Judge, judge_floor
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

KINDS: dict[str, tuple[Callable[[int], Sampler], tuple[int, ...]]] = {
    "euler": (EulerSampler, (2, 3, 5, 10, 20, 50)),
    "heun": (HeunSampler, (2, 3, 5, 9, 18)),
    "dpmpp_2m": (DPMpp2MSampler, (2, 3, 5, 10, 20, 50)),
    "dpmpp_2m_sde": (partial(DPMpp2MSampler, eta=1.0), (5, 10, 20, 50)),
    "ddpm": (DDPMSampler, (20, 50)),
}
"""As conf/sampler names them, and their numbers of steps."""

Settings = dict[str, tuple[float, float]]
"""By name: kid_effnet, and seconds of CPU for 64 faces."""


SAMPLERS = {f"{kind} {count}": make(count) for kind, (make, counts) in KINDS.items() for count in counts}
GUIDANCES: dict[str, Guidance] = {"guided": AutoGuidance(1.5), "plain": NoGuidance()}
"""The guidance that is the default, and none."""


def makers_of(
    run: Path, num_faces: int, samplers: Iterable[str] = SAMPLERS, guidances: Iterable[str] = GUIDANCES
) -> dict[str, Callable[[], Tensor]]:
    """Faces by each of these samplers with each of these guidances."""
    makers: dict[str, Callable[[], Tensor]] = {}
    for guidance in guidances:
        pipeline = FacePipeline.load(run, bfloat16=in_bfloat16())
        pipeline.guidance = GUIDANCES[guidance]
        for name in samplers:
            makers[f"{name}, {guidance}"] = partial(pipeline.generate, num_faces, 0, SAMPLERS[name])
    return makers


def chosen(text: str, known: Iterable[str]) -> list[str]:
    """The names that are typed with commas between, whole or by their first word.

    Raises:
        argparse.ArgumentTypeError: there is none of that name.
    """
    typed = text.split(",")
    if strange := [word for word in typed if not any(word in (name, name.split()[0]) for name in known)]:
        raise argparse.ArgumentTypeError(f"{', '.join(strange)} is none of {', '.join(known)}")
    return [name for word in typed for name in known if word in (name, name.split()[0])]


def measured(judge: Judge, makers: dict[str, Callable[[], Tensor]]) -> Settings:
    """Quality and time of each."""
    settings = {}
    for name, make in makers.items():
        started = time.process_time()
        faces = make()
        seconds = (time.process_time() - started) * 64 / len(faces)
        judge(name, faces, seconds_of_64=seconds)
        settings[name] = judge.rows[name]["kid_effnet"], seconds
    return settings


def add_names(parser: argparse.ArgumentParser, option: str, known: Iterable[str], what: str) -> None:
    """An option that takes some of the names there are, all by default."""
    told = f"{what}, with commas, whole or by the first word"
    parser.add_argument(option, type=partial(chosen, known=known), default=",".join(known), help=told)


def add_ours(parser: argparse.ArgumentParser) -> None:
    """What of ours is measured."""
    add_names(parser, "--only", SAMPLERS, "samplers, each with its steps")
    add_names(parser, "--guidance", GUIDANCES, "kinds of guidance")


def main(argv: list[str] | None = None) -> Settings:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--run", type=Path, required=True, help="a run of stage 2 on these photos")
    parser.add_argument("--faces", type=int, default=1000)
    add_ours(parser)
    parser.add_argument("--keep", type=Path, help="a folder for the faces")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    resolution = open_run(arguments.run).config["data"]["resolution"]
    data = FFHQDataModule.from_photos(arguments.photos, folder="data", resolution=resolution, batch_size=64)
    data.setup()
    torch.set_num_threads(1)
    command = f"python benchmarks/sampler_quality.py PHOTOS --run RUN --faces {arguments.faces}"
    command += f" --only '{','.join(arguments.only)}' --guidance {','.join(arguments.guidance)}"
    judge = Judge(data, arguments.keep, arguments.json, command)
    judge_floor(judge, "floor", FacePipeline.load(arguments.run, bfloat16=in_bfloat16()))
    return measured(judge, makers_of(arguments.run, arguments.faces, arguments.only, arguments.guidance))


if __name__ == "__main__":
    main()
