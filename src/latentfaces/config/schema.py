"""Types of what train.yaml and sample.yaml hold: Hydra refuses a value of another type, and a key that is not here."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

CHOICES = ("true", "false", "auto", "force")
"""Values of the key `resume`."""


@dataclass
class TrainerConfig:
    """Arguments of Lightning's Trainer that a person may set; its documentation says what each does."""

    _target_: str = "lightning.pytorch.Trainer"
    accelerator: str = "auto"
    strategy: Any = "auto"
    devices: Any = "auto"
    num_nodes: int = 1
    precision: Any = None
    fast_dev_run: Any = False
    max_epochs: int | None = None
    min_epochs: int | None = None
    max_steps: int = -1
    min_steps: int | None = None
    max_time: str | None = None
    limit_train_batches: Any = None  # 1 is one batch, 1.0 all
    limit_val_batches: Any = None
    limit_test_batches: Any = None
    overfit_batches: float = 0.0
    val_check_interval: Any = None
    check_val_every_n_epoch: int | None = 1
    num_sanity_val_steps: int | None = None
    log_every_n_steps: int = 50
    enable_progress_bar: bool | None = None
    enable_model_summary: bool | None = None
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: str | None = None
    deterministic: Any = None
    benchmark: bool | None = None
    use_distributed_sampler: bool = True
    profiler: str | None = None
    detect_anomaly: bool = False
    sync_batchnorm: bool = False
    inference_mode: bool = True


@dataclass
class DeviceConfig:
    """How networks are computed; `latentfaces.cli.compute` says what each may be."""

    attention: str = "auto"
    phased_upsampling: Any = "auto"
    channels_last: Any = "auto"
    compile: Any = "auto"
    fused_optimizer: bool = True


@dataclass
class TrainConfig:
    """train.yaml."""

    stage: str = MISSING
    name: str = MISSING
    seed: int = 0
    resume: str = "false"
    requeue: bool = False
    on_full_disk: str = "skip"
    on_nonfinite: str = "fail"
    max_skipped_steps: int = 10
    vae: str | None = None
    run_dir: str = MISSING
    pack: str | None = None
    data: Any = MISSING
    model: Any = MISSING
    annealing: Any = None
    device: DeviceConfig = field(default_factory=DeviceConfig)
    callbacks: Any = None
    logger: Any = None
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


class Precision(Enum):
    """Precision of sample.py: with fp32 an image is the same to one level of 255 for any batch size; bf16 is faster."""

    fp32 = 32
    bf16 = 16


@dataclass
class SampleConfig:
    """sample.yaml."""

    run: str = "latest"
    output: str | None = None
    num_images: int = 64
    seed: int = 0
    batch_size: int = 64
    precision: Precision = Precision.fp32
    compile: bool = False
    ema: float | None = None
    sampler: Any = None
    guidance: Any = None
    task: Any = MISSING
    image: str | None = None


def register() -> None:
    """Make the schemas known to Hydra."""
    store = ConfigStore.instance()
    store.store("train_schema", TrainConfig)
    store.store("sample_schema", SampleConfig)
