"""Rows of the speed table without networks: loading, the Trainer, sampling steps, start-up, memory."""

import contextlib
import itertools
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch import Callback, LightningModule, Trainer
from networks import stage1_rivals
from omegaconf import DictConfig, open_dict
from ours import ROOT, composed, in_bfloat16, prepared_training
from rows import Row, Scale
from timing import spread
from torch import Tensor, nn
from torch.optim import AdamW

from latentfaces.autoencoder import VAE


def loading(scale: Scale) -> Row:
    """Return the row of `benchmarks/data.py`, with fewer rounds."""
    import data

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        data.write_photos(home / "faces", scale.photos, names=4 * max(scale.photos, data.BATCH))
        resolution = 256 if scale.photos > 100 else 32
        rows = data.measure(home / "faces", resolution, scale.seconds_of_loading, home)
    torch.set_num_threads(threads)
    loads = {name.removeprefix("load: "): row for name, row in rows.items() if name.startswith("load")}
    base = loads["ImageFolder chain, float"]["median"]
    ratios = {
        "equal float output": base / loads["pack, float"]["median"],
        "as uint8": base / loads["pack, uint8 for the device"]["median"],
    }
    title = f"loading JPEGs of 512 px at {resolution} px, vs ImageFolder's usual chain"
    return Row(title, "us per image", {"wall": loads}, ratios)


def sampling_step(scale: Scale) -> Row:
    """Return the row of `benchmarks/sampling.py`."""
    import sampling

    rows = sampling.measure(1 + 4 * scale.rounds)
    ratios = {
        kind: rows[f"diffusers {scheduler}"]["median"] / rows[f"latentfaces {kind}"]["median"]
        for kind, scheduler in sampling.PEERS.items()
    }
    return Row("a sampler step without the network", "us", {"cpu": rows}, ratios)


def starting(scale: Scale) -> Row:
    """Return the row of the seconds from a command to its answer, in CPU and wall time."""
    commands = {
        "train.py --help": ["train.py", "--help"],
        "train.py model=vea": ["train.py", "model=vea"],
        "sample.py --help": ["sample.py", "--help"],
    }
    figures: dict[str, dict[str, list[float]]] = {"cpu": {}, "wall": {}}
    for _ in range(scale.rounds):
        for name, command in commands.items():
            before, started = cpu_of_children(), time.perf_counter()
            subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, check=False)
            figures["wall"].setdefault(name, []).append(time.perf_counter() - started)
            figures["cpu"].setdefault(name, []).append(cpu_of_children() - before)
    spreads = {clock: {name: spread(values) for name, values in rows.items()} for clock, rows in figures.items()}
    return Row("from a command to its answer", "s", spreads)


class StepClock(Callback):
    """CPU time of the steps of the Trainer and of a bare loop, taken in turns so that other work slows both.

    Args:
        bare: takes a step of the bare loop for each item.
    """

    def __init__(self, bare: Iterator[None]) -> None:
        self.loop, self.left = bare, 0.0
        self.bare: list[float] = []
        self.trainer: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        came = time.process_time()
        if self.left:
            self.trainer.append(came - self.left)
        next(self.loop)
        self.left = time.process_time()
        self.bare.append(self.left - came)

    def ms(self, steps: int) -> list[tuple[float, float]]:
        """Return (bare, Trainer) milliseconds per step, averaged over groups of `steps`, without the first tenth."""
        first = len(self.trainer) // 10
        starts = range(first, len(self.trainer) - steps + 1, steps)
        return [
            (1e3 * sum(self.bare[i : i + steps]) / steps, 1e3 * sum(self.trainer[i : i + steps]) / steps)
            for i in starts
        ]


class UsualModule(LightningModule):
    """A module as Lightning's documentation has it, with five values logged in each step."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def training_step(self, images: Tensor, batch_idx: int) -> Tensor:
        terms = plain_terms(self.vae, images)
        for name, value in terms.items():
            self.log(name, value)
        return terms["loss"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return AdamW(self.vae.parameters(), lr=1e-4)


def plain_terms(vae: VAE, images: Tensor) -> dict[str, Tensor]:
    """Return the loss of stage 1 and its terms."""
    reconstructions, posterior, _ = vae(images)
    distance, kl = (reconstructions - images).abs().mean(), posterior.kl().mean()
    parts = {"mean": posterior.mean.mean(), "std": posterior.std.mean()}
    return {"loss": distance + 1e-9 * kl, "distance": distance, "kl": kl, **parts}


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Within this context nothing is printed."""
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


class TrainerCost:
    """Cost of a step of the Trainer, with a very small network."""

    def __init__(self, steps: int, home: Path) -> None:
        self.steps, self.home, self.number = steps, home, 0

    def config(self, logger: str = "csv") -> DictConfig:
        """Return the config of a tiny training in a new folder."""
        self.number += 1
        cfg = composed(
            *("model=vae", "data=synthetic", "data.num_images=64", "data.resolution=16", "data.batch_size=2"),
            *("model/autoencoder=tiny", "model.autoencoder.channels=8", "model.autoencoder.num_blocks=1"),
            *("model.autoencoder.multipliers=[1]", "model.autoencoder.attention=false", f"logger={logger}"),
            *(f"trainer.max_steps={self.steps}", f"trainer.val_check_interval={2 * self.steps}"),
            *("trainer.accelerator=cpu", f"run_dir={self.home / str(self.number)}"),
        )
        with open_dict(cfg):
            cfg.pop("hydra")
        return cfg

    def shipped(self, logger: str) -> StepClock:
        """Train as train.py does."""
        clock = StepClock(self.bare())
        cfg = self.config(logger)
        with prepared_training(cfg) as (data, module, trainer, _):
            trainer.callbacks.append(clock)
            trainer.fit(module, datamodule=data)
        return clock

    def usual(self) -> StepClock:
        """Train with the defaults of Lightning."""
        cfg, clock = self.config(), StepClock(self.bare())
        trainer = Trainer(
            accelerator="cpu",
            max_steps=self.steps,
            precision="bf16-mixed" if in_bfloat16() else "32-true",
            gradient_clip_val=1.0,
            callbacks=[clock],
            default_root_dir=cfg.run_dir,
            limit_val_batches=0,
            enable_model_summary=False,
        )
        trainer.fit(UsualModule(instantiate(cfg.model).autoencoder), datamodule=instantiate(cfg.data))
        return clock

    def bare(self) -> Iterator[None]:
        """Take a step of a bare loop over the same batches for each item."""
        cfg = self.config()
        data, module = instantiate(cfg.data), instantiate(cfg.model)
        data.setup()
        vae = module.autoencoder
        optimizer = module.make_optimizer(vae.named_parameters())
        epochs = (data.train_dataloader() for _ in itertools.count())
        for batch in itertools.chain.from_iterable(epochs):
            images = data.on_after_batch_transfer(batch, 0)
            with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16()):
                loss = plain_terms(vae, images)["loss"]
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            yield


def trainer(scale: Scale) -> Row:
    """Return the row of the time that the Trainer adds to a loop."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    os.environ["WANDB_MODE"] = "offline"
    took: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary, contextlib.chdir(temporary):
        cost = TrainerCost(scale.steps, Path(temporary))
        trainings: dict[str, Callable[[], StepClock]] = {
            "train.py logger=csv": partial(cost.shipped, "csv"),
            "train.py (W&B offline)": partial(cost.shipped, "wandb"),
            "Lightning's defaults, 5 logged keys": cost.usual,
        }
        with silence():
            for _ in range((scale.rounds + 1) // 2):
                for name, train in trainings.items():
                    took.setdefault(name, []).extend(train().ms(scale.steps // 5))
    torch.set_num_threads(threads)
    figures = {"bare loop": spread([bare for pairs in took.values() for bare, _ in pairs])}
    figures |= {f"{name}, beyond": spread([ours - bare for bare, ours in pairs]) for name, pairs in took.items()}
    title = "CPU time of a step of a tiny network in a bare loop, and the additional time of the Trainer"
    return Row(title, "ms", {"cpu": figures})


def cpu_of_children() -> float:
    """Return the CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def in_own_process(function: Callable[..., float], *arguments: Any) -> float:
    """Call a function in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def anonymous_memory() -> float:
    """Return the anonymous memory of this process in bytes: without pages of mapped files, which cost nothing."""
    status = Path("/proc/self/status").read_text()
    return 1024.0 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:"))


class PeakMemory(threading.Thread):
    """Thread that reads the anonymous memory every 2 ms within this context. Linux keeps no peak of it."""

    def __enter__(self) -> "PeakMemory":
        self.peak, self.done = anonymous_memory(), threading.Event()
        self.start()
        return self

    def run(self) -> None:
        while not self.done.wait(0.002):
            self.peak = max(self.peak, anonymous_memory())

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.join()


def peak_of_stage1(scale: Scale, side: int, bfloat16: bool) -> float:
    """Return the peak memory of two steps in MB, above the memory before the networks were built."""
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    images = torch.rand(scale.images_for_memory, 3, scale.resolution, scale.resolution, device=scale.device) * 2 - 1
    torch.randn(8, 8, requires_grad=True).sum().backward()
    before = anonymous_memory()
    with PeakMemory() as memory:
        rival = stage1_rivals(scale, images)[side]()
        for _ in range(2):
            rival.step(bfloat16)
    if scale.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return (memory.peak - before) / 1e6


def peak_memory(scale: Scale) -> Row:
    """Return the row of the peak memory of a stage-1 step, each in a separate process."""
    figures = {
        f"{name} {precision}": spread([in_own_process(peak_of_stage1, scale, side, precision == "bf16")])
        for precision in scale.precisions
        for side, name in enumerate(("ours", "theirs"))
    }
    peak = {name: values["median"] for name, values in figures.items()}
    ratios = {  # here less is better, so ours / theirs
        "shipped": peak[f"ours {scale.shipped}"] / peak["theirs fp32"],
        **{precision: peak[f"ours {precision}"] / peak[f"theirs {precision}"] for precision in scale.precisions},
    }
    title = f"peak memory of the stage-1 step, {scale.images_for_memory} x {scale.resolution} px, ours / theirs"
    return Row(title, "MB", {"peak": figures}, ratios)
