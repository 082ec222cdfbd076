"""Schema of train.yaml and sample.yaml: Hydra rejects other keys and values of another type."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING
from pydantic import Field

from latentfaces import __version__
from latentfaces.bounds import Positive, PositiveFloat

PositiveOrUnlimited = Literal[-1] | Positive
Beta = Annotated[float, Field(ge=0, lt=1)]
OPTIMIZER = {
    "lr": PositiveFloat,
    "betas": Annotated[list[Beta], Field(min_length=2, max_length=2)],
    "momentum": Beta,
    "weight_decay": Annotated[float, Field(ge=0)],
    "fused": bool | None,
}
"""Valid values of an optimizer."""
Batches = Positive | Annotated[float, Field(gt=0, le=1)] | None
"""A number of batches, or a fraction of them."""


def key(default: Any, valid: Any) -> Any:
    """A key with a default and, beyond the type that OmegaConf checks, its valid values as a pydantic type."""
    return field(default=default, metadata={"valid": valid})


@dataclass
class TrainerConfig:
    """Arguments of Lightning's Trainer; its documentation describes them."""

    _target_: str = "lightning.pytorch.Trainer"
    accelerator: str = "auto"
    strategy: Any = "auto"
    devices: Any = "auto"
    num_nodes: int = 1
    precision: Any = key("auto", Literal["auto", "32-true", "32", "bf16-mixed", "bf16", 32])
    max_epochs: int | None = key(None, PositiveOrUnlimited | None)
    min_epochs: int | None = key(None, Positive | None)
    max_steps: int = key(-1, PositiveOrUnlimited)
    min_steps: int | None = key(None, Positive | None)
    max_time: str | None = None
    limit_train_batches: Any = key(None, Batches)  # 1 is one batch, 1.0 all
    limit_val_batches: Any = key(None, Batches)
    limit_test_batches: Any = key(None, Batches)
    val_check_interval: Any = key(None, Annotated[float, Field(gt=0)] | Annotated[str, Field(strict=True)] | None)
    check_val_every_n_epoch: int | None = key(1, Positive | None)
    num_sanity_val_steps: int | None = key(None, Annotated[int, Field(ge=-1)] | None)
    log_every_n_steps: int = key(50, Positive)
    enable_progress_bar: bool | None = None
    enable_model_summary: bool | None = None
    accumulate_grad_batches: int = key(1, Positive)
    gradient_clip_val: float | None = key(None, Annotated[float, Field(ge=0, allow_inf_nan=False)] | None)
    deterministic: Any = key(None, bool | Literal["warn"] | None)
    benchmark: bool | None = None
    profiler: str | None = None
    detect_anomaly: bool = False
    inference_mode: bool = True


@dataclass
class DeviceConfig:
    """Keys `device.*`: how networks are computed; see `latentfaces.nn.DeviceChoices`."""

    attention: str = key("auto", Literal["auto", "sdpa", "plain"])
    phased_upsampling: Any = key("auto", Literal["auto", True, False])
    channels_last: Any = key("auto", Literal["auto", True, False])
    compile: Any = key("auto", Literal["auto", True, False])


@dataclass
class TrainConfig:
    """train.yaml."""

    version: str = __version__
    stage: str = MISSING
    name: str = MISSING
    seed: int = key(0, Annotated[int, Field(ge=0, lt=2**32)])
    resume: str = key("false", Literal["true", "false", "auto", "force", "True", "False"])
    requeue: bool = False
    on_full_disk: str = key("skip", Literal["skip", "fail"])
    on_nonfinite: str = key("fail", Literal["skip", "fail"])
    max_skipped_steps: int = key(10, Positive)
    vae: str | None = None
    init: str | None = None
    run: str | None = None
    trainable: str = key("all", Literal["all", "last", "norms", "decoder"])
    run_dir: str = MISSING
    pack: str | None = None
    data: Any = MISSING
    model: Any = MISSING
    annealing: Any = None
    device: DeviceConfig = field(default_factory=DeviceConfig)
    callbacks: Any = field(default_factory=dict)
    logger: Any = field(default_factory=dict)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass
class SampleConfig:
    """sample.yaml."""

    run: str = "latest"
    output: str | None = None
    num_images: int = key(64, Positive)
    seed: int = key(0, Annotated[int, Field(ge=0, lt=2**32)])
    batch_size: int = key(64, Positive)
    precision: str = key("fp32", Literal["fp32", "bf16"])
    compile: bool = False
    ema: float | None = None
    sampler: Any = None
    guidance: Any = None
    task: Any = MISSING
    image: str | None = None
    labels: dict[str, Any] = field(default_factory=dict)
    direction: str | None = None
    align: str = key("auto", Literal["auto", "true", "false", "True", "False"])
    mark: str | None = key(None, Literal["c2pa"] | None)
    mark_certificate: str | None = None
    mark_key: str | None = None


@dataclass
class ExportConfig:
    """export.yaml."""

    run: str = "latest"
    to: str = MISSING
    push: str | None = None
    dry_run: bool = False


def register() -> None:
    """Register the schemas with Hydra."""
    store = ConfigStore.instance()
    store.store("train_schema", TrainConfig)
    store.store("sample_schema", SampleConfig)
    store.store("export_schema", ExportConfig)
