r"""New faces after some minutes of training, against diffusers' UNet2DModel of the same size in the same latents.

    pip install -e '.[metrics,diffusers]'
    python benchmarks/diffusion.py PHOTOS --vae RUN --minutes 12 [--rivals NAME,NAME] [--keep FOLDER] [--json FILE]

All sides train one after the other on the same images, with the same VAE and for the same minutes. The table has
kid_effnet: the kernel inception distance x 1000 on features of EfficientNet-Lite0, between the new faces (--faces) and
all held-out images. `floor` is the value of the VAE's reconstructions of those images. --keep writes the faces as .npz,
for other metrics.

- latentfaces: train.py model=ldm, with one change in each variant.
- diffusers: as in its train_unconditional.py, that is noise prediction, 1,000 linear betas, AdamW with 1e-4, batch 16,
  cosine rate after 500 steps, clipping at 1 and its EMA. bfloat16 where latentfaces uses it; its own schedulers.
- diffusers-tuned: the same with twice the batch size and the learning rate of latentfaces.
- diffusers-flow: its network with flow matching, and times, optimizer and learning rate of latentfaces. It is sampled
  by its Euler scheduler and by the sampler of latentfaces.
"""

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from about import about
from autoencoder import time_limit
from features import effnet_features
from hydra.utils import instantiate
from omegaconf import OmegaConf
from ours import ROOT, in_bfloat16
from torch import Tensor, nn

from latentfaces.data import FFHQDataModule
from latentfaces.data.images import to_uint8
from latentfaces.diffusion import AutoGuidance, Denoiser, InternalGuidance, NoGuidance, RectifiedFlow, Sampler
from latentfaces.evaluation import kernel_distance
from latentfaces.nn import weights_hash
from latentfaces.pipeline import FacePipeline
from latentfaces.run import Run, open_run

SHIPPED: Sampler = instantiate(OmegaConf.load(ROOT / "conf/sampler/dpmpp_2m_sde.yaml"))
"""Default sampler of sample.py."""

Rows = dict[str, dict[str, Any]]

TINY_DIT = ["model/denoiser=tiny", "model.denoiser.network.auxiliary_depth=3", "data.batch_size=32"]
TRAINED: dict[str, list[str]] = {
    "latentfaces": [],
    "cosine-v": ["model/schedule=vp_cosine"],
    "EDM": ["model/schedule=edm", "model/time_sampler=log_normal", "model/weighting=edm"],
    "DiT": [*TINY_DIT, "model.optimizer.lr=1.0e-3"],
    "DiT with Muon": [*TINY_DIT, "model/optimizer=muon", "model.optimizer.lr=1.0e-3"],
    "Muon": ["model/optimizer=muon"],
}
"""Variants that are trained: `experiment=faces64_cpu` and these."""

DIFFUSERS = {"diffusers": (16, 1e-4), "diffusers-tuned": (32, 1e-3), "diffusers-flow": (32, 1e-3)}
"""Batch size and learning rate: those of its script, and those of latentfaces for the other two."""


def train_diffusers(
    latents: Callable[[], Tensor], minutes: float, rate: float, flow: bool = False, seed: int = 0
) -> tuple[nn.Module, int]:
    """Train with a plain loop, with `flow` by flow matching. Return the averaged network and the number of steps."""
    from diffusers import DDPMScheduler, UNet2DModel  # type: ignore[import-not-found]
    from diffusers.training_utils import EMAModel  # type: ignore[import-not-found]

    torch.manual_seed(seed)
    shape = latents().shape
    unet = UNet2DModel(
        sample_size=shape[-1],
        in_channels=shape[1],
        out_channels=shape[1],
        layers_per_block=2,
        block_out_channels=(64, 128, 128),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    betas, decay, warmup = ((0.9, 0.95), 0.01, 200) if flow else ((0.95, 0.999), 1e-6, 500)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=rate, betas=betas, weight_decay=decay)
    average = EMAModel(unet.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    schedule = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    started, steps = time.monotonic(), 0
    while (share := (time.monotonic() - started) / (minutes * 60)) < 1:
        x0 = latents()
        noise = torch.randn_like(x0)
        if flow:
            part = torch.randn(len(x0)).sigmoid()
            x_t, t, target = torch.lerp(x0, noise, part[:, None, None, None]), 1000 * part, noise - x0
        else:
            t, target = torch.randint(1000, (len(x0),)), noise
            x_t = schedule.add_noise(x0, noise, t)
        falling = max(0, 2 * share - 1) if flow else share  # ours falls in the second half, theirs from the start
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (steps + 1) / warmup) * 0.5 * (1 + np.cos(np.pi * falling))
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16()):
            prediction = unet(x_t, t).sample
        loss = F.mse_loss(prediction.float(), target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        average.step(unet.parameters())
        steps += 1
    average.copy_to(unet.parameters())
    return unet.eval(), steps


class FlowUNet(nn.Module):
    """UNet2DModel trained by flow matching, as a network of `Denoiser`."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        velocity: Tensor = self.unet(x_t, 1000 * t).sample
        return velocity


@torch.no_grad()
def sample_diffusers(unet: nn.Module, pipeline: FacePipeline, scheduler: str, num_steps: int, num_faces: int) -> Tensor:
    """Return faces (n, 3, R, R) uint8 by "ddim", "ddim-clipped" (|x0| <= 3), "dpm" (DPM-Solver++) or "euler" (flow)."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

    faces = []
    for noise in pipeline.noise([(0, number) for number in range(num_faces)]).split(64):
        clipping = {"clip_sample": scheduler == "ddim-clipped", "clip_sample_range": 3.0}  # latents leave [-1, 1]
        if scheduler == "euler":
            schedule = FlowMatchEulerDiscreteScheduler()
        elif scheduler == "dpm":
            schedule = DPMSolverMultistepScheduler(beta_schedule="linear")
        else:
            schedule = DDIMScheduler(beta_schedule="linear", **clipping)
        x = noise
        schedule.set_timesteps(num_steps)
        for t in schedule.timesteps:
            with pipeline.autocast():
                prediction = unet(x, t).sample.float()
            x = schedule.step(prediction, t, x).prev_sample
        faces.append(to_uint8(pipeline.decode(x)))
    return torch.cat(faces)


def train_ours(vae: str, options: list[str], name: str) -> Run:
    """Return the run of `train.py model=ldm`."""
    command = [sys.executable, "train.py", "model=ldm", f"vae={vae}", f"name={name}"]
    recipe = [] if "model/denoiser=tiny" in options else ["experiment=faces64_cpu"]  # which sizes a U-Net
    subprocess.run([*command, *recipe, "logger=csv", "callbacks.early_stopping.patience=100", *options], check=True)
    return open_run(Path("outputs/ldm") / name)


class Judge:
    """Scores of new faces against the held-out images."""

    def __init__(self, data: FFHQDataModule, keep: Path | None, result: Path | None, command: str) -> None:
        self.keep, self.result, self.command = keep, result, command
        self.rows: Rows = {}
        self.photos = to_uint8(
            torch.cat([data.on_after_batch_transfer(batch, 0).clone() for batch in data.test_dataloader()])
        )
        self.features = effnet_features(self.photos)
        self.write("photos", self.photos)

    def write(self, name: str, faces: Tensor) -> None:
        """Save faces."""
        if self.keep is not None:
            self.keep.mkdir(parents=True, exist_ok=True)
            np.savez(self.keep / f"{name.replace(' ', '_')}.npz", images=faces.permute(0, 2, 3, 1).numpy())

    def __call__(self, name: str, faces: Tensor, **more: Any) -> None:
        """Score faces (n, 3, R, R) uint8."""
        distance = 1000 * kernel_distance(self.features, effnet_features(faces))
        self.rows[name] = {"kid_effnet": distance, **more}
        print(f"{name:34s} " + "  ".join(f"{k} {v:.4g}" for k, v in self.rows[name].items()), flush=True)
        self.write(name, faces)
        if self.result is not None:
            about_it = {**about(), "command": self.command, "rows": self.rows}
            self.result.write_text(json.dumps(about_it, indent=1))


def judge_floor(judge: Judge, name: str, pipeline: FacePipeline) -> None:
    """Score the VAE's reconstructions of the held-out images, which bound stage 2."""
    photos = (judge.photos.float() / 127.5 - 1).split(64)
    judge(name, torch.cat([to_uint8(pipeline.reconstruct(batch)) for batch in photos]))


def judge_guidance(
    judge: Judge, run: Run, name: str, weights: list[float], num_faces: int, sampler: Sampler = SHIPPED
) -> None:
    """Score the kinds of guidance that the run allows."""
    pipeline = FacePipeline.load(run, bfloat16=in_bfloat16())
    assert pipeline.denoiser is not None
    kinds = [AutoGuidance, InternalGuidance] if pipeline.denoiser.has_auxiliary else [AutoGuidance]
    for kind, weight in itertools.product(kinds, weights):
        pipeline.guidance = kind(weight)
        faces = pipeline.generate(num_faces, seed=0, sampler=sampler)
        judge(f"{name}, {kind.__name__} {weight}", faces)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--vae", required=True, help="a run of stage 1 on these photos")
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--rivals", default="latentfaces,diffusers", help=f"of {', '.join([*TRAINED, *DIFFUSERS])}")
    parser.add_argument("--set", nargs="*", default=[], help="options of train.py for all variants of latentfaces")
    parser.add_argument("--more", nargs="*", default=[], choices=["guidance"], help="also sample latentfaces with it")
    parser.add_argument("--weights", nargs="*", type=float, default=[1.25, 1.5, 2.0], help="of guidance")
    parser.add_argument("--faces", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the trainings")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rivals = arguments.rivals.split(",")
    if unknown := set(rivals) - {*TRAINED, *DIFFUSERS}:
        parser.error(f"--rivals: {', '.join(sorted(unknown))} is not known")
    vae = open_run(Path(arguments.vae))
    resolution = vae.config["data"]["resolution"]
    data = FFHQDataModule.from_photos(arguments.photos, folder="data", resolution=resolution, batch_size=64)
    data.setup()
    command = f"python benchmarks/diffusion.py PHOTOS --vae RUN --minutes {arguments.minutes}"
    command += f" --faces {arguments.faces} --rivals '{arguments.rivals}'"
    command += f" --more {' '.join(arguments.more)}" if arguments.more else ""
    judge = Judge(data, arguments.keep, arguments.json, command)
    plain = FacePipeline.load(vae, bfloat16=in_bfloat16())
    judge_floor(judge, "floor", plain)
    for rival in rivals:
        started = time.monotonic()
        if rival in DIFFUSERS:
            batch_size, rate = DIFFUSERS[rival]
            latents = cached_latents(plain, arguments.photos, resolution, batch_size)
            flow = rival == "diffusers-flow"
            unet, steps = train_diffusers(latents, arguments.minutes, rate, flow, arguments.seed)
            about_it = size_and_time(unet, steps, started)
            of_flow, of_noise = [("euler", 20), ("euler", 50)], [("ddim", 50), ("ddim-clipped", 50), ("dpm", 20)]
            for scheduler, count in of_flow if flow else of_noise:
                faces = sample_diffusers(unet, plain, scheduler, count, arguments.faces)
                judge(f"{rival}, {scheduler} {count}", faces, **about_it)
            if flow:
                denoiser = Denoiser(FlowUNet(unet), RectifiedFlow())
                pipeline = FacePipeline(plain.vae, denoiser, resolution, plain.device, bfloat16=in_bfloat16())
                faces = pipeline.generate(arguments.faces, seed=0, sampler=SHIPPED)
                judge(f"{rival}, dpmpp_2m_sde 20", faces, **about_it)
            continue
        options = [*time_limit(arguments.minutes), f"seed={arguments.seed}", *arguments.set, *TRAINED[rival]]
        run = train_ours(arguments.vae, options, f"benchmark-{round(time.time())}")
        pipeline = FacePipeline.load(run, bfloat16=in_bfloat16(), guidance=NoGuidance())
        assert pipeline.denoiser is not None
        about_it = size_and_time(pipeline.denoiser, run.result()["steps"], started)
        judge(rival, pipeline.generate(arguments.faces, seed=0, sampler=SHIPPED), **about_it)
        if "guidance" in arguments.more:
            judge_guidance(judge, run, rival, arguments.weights, arguments.faces)


def size_and_time(network: nn.Module, steps: int, started: float) -> dict[str, Any]:
    """Return the columns of a row besides its score."""
    minutes = (time.monotonic() - started) / 60
    return {"steps": steps, "minutes": minutes, "parameters": sum(p.numel() for p in network.parameters())}


def cached_latents(pipeline: FacePipeline, photos: Path, resolution: int, batch_size: int) -> Callable[[], Tensor]:
    """Return a function that draws a batch of normalized latents from the cache that latentfaces trains on."""
    data = FFHQDataModule.from_photos(photos, folder="data", resolution=resolution, batch_size=batch_size)

    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        posterior = pipeline.vae.encode(images)
        return posterior.mean, posterior.std

    data.use_latents(weights_hash(pipeline.vae), encode)
    data.prepare_data()
    data.setup()
    batches = itertools.chain.from_iterable(itertools.repeat(data.train_dataloader()))

    def draw() -> Tensor:
        mean, std = data.on_after_batch_transfer(next(batches), 0).unbind(1)
        return pipeline.vae.normalize(mean + std * torch.randn_like(mean))

    return draw


if __name__ == "__main__":
    main()
