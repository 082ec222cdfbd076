"""What each choice of stage 2, and of the VAE below it, does to new faces, on one budget of training steps.

    pip install -e '.[metrics]'
    python benchmarks/ldm_ablation.py PHOTOS --vae RUN [RUN ...] [--steps 700] [--only NAME,NAME] [--json FILE]

`experiment=faces64_cpu` with one thing changed at a time, on each of the VAEs (runs of stage 1 on these photos): same
photos, seed, steps and batch size, whatever else the machine does; the CPU minutes of each training stand beside it.
Reported: kid_effnet (see diffusion.py) of new faces against all held-out photos, by 9 steps of Heun, without guidance
and with each kind that the run allows at weight 1.5, and `floor`, that of the VAE's reconstructions, which no stage 2
can beat.
"""

import argparse
import resource
import time
from pathlib import Path

from diffusion import TRAINED, Judge, judge_floor, judge_guidance, told, train_ours
from ours import in_bfloat16

from latentfaces.data import FFHQDataModule
from latentfaces.diffusion import HeunSampler
from latentfaces.pipeline import FacePipeline
from latentfaces.run import open_run

HEUN = HeunSampler(9)


def children_minutes() -> float:
    """CPU minutes of the processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) / 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--vae", nargs="+", required=True, help="runs of stage 1 on these photos")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument(
        "--only", default=",".join(TRAINED), help="variants by name, with commas; of the first VAE alone"
    )
    parser.add_argument("--faces", type=int, default=500)
    parser.add_argument("--keep", type=Path, help="a folder for the faces")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    variants = arguments.only.split(",")
    if unknown := set(variants) - {*TRAINED}:
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(TRAINED)}")
    resolution = open_run(Path(arguments.vae[0])).config["data"]["resolution"]
    data = FFHQDataModule.from_photos(arguments.photos, folder="data", resolution=resolution, batch_size=64)
    data.setup()
    command = f"python benchmarks/ldm_ablation.py PHOTOS --vae RUN --steps {arguments.steps} --faces {arguments.faces}"
    judge = Judge(data, arguments.keep, arguments.json, command)
    for vae in arguments.vae:
        name = Path(vae).name
        judge_floor(judge, f"{name}: floor", FacePipeline.load(vae, bfloat16=in_bfloat16()))
        for variant in variants if vae == arguments.vae[0] else variants[:1]:
            started, used = time.monotonic(), children_minutes()
            limits = ["trainer.max_time=null", f"trainer.max_steps={arguments.steps}"]
            limits.append(f"trainer.val_check_interval={arguments.steps // 2}")
            run = train_ours(vae, [*limits, *TRAINED[variant]], f"ablation-{round(time.time())}")
            pipeline = FacePipeline.load(run, bfloat16=in_bfloat16())
            assert pipeline.denoiser is not None
            about_it = told(pipeline.denoiser, run.result()["steps"], started)
            about_it["cpu_minutes"] = children_minutes() - used
            faces = pipeline.generate(arguments.faces, seed=0, sampler=HEUN)
            judge(f"{name}: {variant}", faces, **about_it)
            judge_guidance(judge, run, f"{name}: {variant}", [1.5], arguments.faces, HEUN)


if __name__ == "__main__":
    main()
