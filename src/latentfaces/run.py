"""A training run as a folder: config, weights and result."""

import contextlib
import hashlib
import importlib
import inspect
import shlex
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentfaces import __version__
from latentfaces.errors import UserError
from latentfaces.files import read_json
from latentfaces.posthoc_ema import rebuild, snapshots_in

CONFIG, RESULT, TUNED = "config.yaml", "result.json", "tuned.json"
LABELS = "labels.npy"
"""Labels (N, L) float32 of the training images, in the order of the pack's `train_indices`."""
PRUNING = "pruning.json"
DIRECTIONS = "directions.npz"
GUIDE = "guide_denoiser"
SNAPSHOTS = Path("checkpoints") / "ema"
ALLOWED_TARGETS = {
    "latentfaces.autoencoder": {"DiffusersVAE", "TAESD", "VAE"},
    "latentfaces.diffusion": {
        *("Denoiser", "DiT", "UNet", "EDM", "RectifiedFlow", "VPCosine", "VPLinear"),
        *("DDIMSampler", "DDPMSampler", "DPMpp2MSampler", "EulerSampler", "FlowMapSampler", "HeunSampler"),
        *("AutoGuidance", "Conditioning", "InternalGuidance", "LabelGuidance", "NoGuidance"),
    },
    "latentfaces.tasks": {
        *("Compare", "Edit", "Generate", "Inpaint", "Interpolate", "Invert"),
        *("Neighbours", "Reconstruct", "Slide", "Variations"),
    },
}
"""Classes that a stored config or PNG metadata may name. Not Evaluate, which runs a network from a file, and none that
writes into the run's folder."""
MOVED = {
    f"latentfaces.training.strategies.{name}": f"latentfaces.training.distributed.strategies.{name}"
    for name in ("DDP", "FSDP")
}
"""New names of classes in run folders of earlier versions."""
PARTS = {f"{module}.{name}" for module, names in ALLOWED_TARGETS.items() for name in names}
DATA = {f"latentfaces.data.FFHQDataModule.{maker}" for maker in ("from_drawn_faces", "from_ffhq", "from_photos")}


@dataclass(frozen=True)
class Run:
    """Folder `outputs/<vae|ldm>/<name>` of train.py, and its resolved config."""

    folder: Path
    config: dict[str, Any]

    @property
    def stage(self) -> str:
        """ "vae" or "ldm"."""
        return self.config["stage"]

    @property
    def is_fast(self) -> bool:
        """Whether this is a run of model=fast."""
        return self.stage == "ldm" and bool(self.config["model"]["denoiser"]["network"].get("flow_map"))

    @property
    def finished(self) -> bool:
        """Whether a training has ended. It may be trained further since."""
        return bool(self.result())

    def result(self) -> dict[str, Any]:
        """Return the metrics and the verdict of a finished run, else an empty dict."""
        return read_json(self.folder / RESULT)

    def evaluations(self, name: str) -> list[tuple[Path, dict[str, Any]]]:
        """Return path and content of each file `name` that task=evaluate wrote below the folder, newest first.

        Those of earlier best weights are left out.
        """
        paths = sorted(self.folder.rglob(name), key=lambda path: -path.stat().st_mtime)
        found = [(path, read_json(path)) for path in paths]
        best = self.best_hash if any("of" in content for _, content in found) else None
        return [(path, content) for path, content in found if content.get("of", best) == best]

    def tuned(self) -> dict[str, Any] | None:
        """Return what task=tune found for the present best weights ("guidance", "ema", "sampler"), or None."""
        found = read_json(self.folder / TUNED)
        check_targets(found)
        return found if found and found["of"] == self.best_hash else None

    def path_of(self, weights: str) -> Path:
        """Return the file of the weights, such as "best_denoiser"."""
        return self.folder / "checkpoints" / f"{weights}.pth"

    @property
    def best_hash(self) -> str:
        """12 hexadecimal digits of the SHA-256 of the file of the best VAE or denoiser."""
        with self.path_of("best_vae" if self.stage == "vae" else "best_denoiser").open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]

    @property
    def has_guide(self) -> bool:
        """Whether there is an early checkpoint of the denoiser, for `AutoGuidance`."""
        return self.path_of(GUIDE).exists()

    @property
    def has_snapshots(self) -> bool:
        """Whether there are enough snapshots for `averaged`."""
        return len(snapshots_in(self.folder / SNAPSHOTS)) > 1

    def module(self, node: str, weights: str) -> Any:
        """Build `model.<node>` with the weights `checkpoints/<weights>.pth`, in evaluation mode.

        Raises:
            UserError: the weights are missing, damaged or of another shape.
        """
        path = self.path_of(weights)
        if not path.exists():
            raise UserError(f"{path} is missing: the run stopped before its first validation. Train it again.")
        return self.filled(node, path, lambda: torch.load(path, weights_only=True, map_location="cpu"))

    def averaged(self, node: str, sigma_rel: float) -> Any:
        """Build `model.<node>` with the EMA of width sigma_rel in (0, 0.28), in evaluation mode.

        Raises:
            UserError: the snapshots do not suffice (see `latentfaces.posthoc_ema`).
        """
        folder = self.folder / SNAPSHOTS
        state = rebuild(folder, sigma_rel)
        return self.filled(node, folder, lambda: state)

    def filled(self, node: str, path: Path, read: Callable[[], dict[str, Tensor]]) -> Any:
        """Build `model.<node>` with the state dict that `read` returns. Messages name `path`."""
        module = build(self.config["model"][node])
        assert isinstance(module, nn.Module)
        try:
            module.load_state_dict(read())
        except Exception as error:
            raise UserError(
                f"{path} does not fit the {CONFIG} of its run, or is damaged ({type(error).__name__}). The run is of "
                f"latentfaces {self.config.get('version', 'before 0.1.0')}, this is {__version__}. Restore both files, "
                "or use that version."
            ) from error
        return module.eval().requires_grad_(False)


def open_run(folder: str | Path) -> Run:
    """Open the run in `folder`.

    Raises:
        UserError: there is none.
    """
    import yaml  # late: an exported model is loaded without it

    folder = Path(folder)
    try:
        config = yaml.safe_load((folder / CONFIG).read_text())
    except OSError:
        raise UserError(f"{folder} is not a run: it has no {CONFIG}. Name another run.") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        config = None
    if not isinstance(config, dict) or "stage" not in config:
        raise UserError(f"{folder / CONFIG} is not the config of a run. Restore it, or name another run.")
    if has_interpolation(config):  # train.py resolves them; ${oc.env:TOKEN} would read secrets of this machine
        raise UserError(f"{folder / CONFIG} has interpolations. Restore it, or name another run.")
    config.get("data", {}).pop("num_workers", None)  # a key of earlier versions
    return Run(folder, translated(config))


def translated(node: Any) -> Any:
    """Replace each moved `_target_` in a stored config by its new name."""
    if isinstance(node, dict):
        return {key: translated(value) for key, value in node.items()}
    if isinstance(node, list):
        return [translated(value) for value in node]
    return MOVED.get(node, node) if isinstance(node, str) else node


def has_interpolation(node: Any) -> bool:
    """Return whether a stored config has interpolations."""
    if isinstance(node, dict | list):
        return any(map(has_interpolation, node.values() if isinstance(node, dict) else node))
    return isinstance(node, str) and "${" in node


def find_run(wanted: str, stage: str, suits: Callable[[Run], bool] = lambda run: True, key: str | None = None) -> Run:
    """Find a run by its folder, its name in `outputs/<stage>`, or as "latest".

    Args:
        wanted: value of the option `vae`, `run` or `init`.
        stage: "vae" or "ldm", where names are looked up.
        suits: condition on "latest", besides that it is finished.
        key: the option, for messages.

    Raises:
        UserError: there is none.
    """
    folder_of_stage = Path("outputs") / stage
    key = key or ("vae" if stage == "vae" else "run")
    if wanted == "latest":
        runs = [run for run in runs_in(folder_of_stage) if run.finished and suits(run)]
        if not runs:
            raise UserError(
                f"{folder_of_stage} has no finished run that fits. Train one with `python train.py model={stage}`, "
                f"or name a folder with {key}=FOLDER."
            )
        return max(runs, key=lambda run: (run.folder / RESULT).stat().st_mtime)
    for folder in folders_named(wanted, stage):
        if (folder / CONFIG).exists():
            return open_run(folder)
    available = ", ".join(sorted(run.folder.name for run in runs_in(folder_of_stage)))
    hint = f"Available: {available}." if available else f"There are no runs in {folder_of_stage.absolute()}."
    raise UserError(f"{key}={wanted} is neither a run's folder nor a name in {folder_of_stage}. {hint}")


def folders_named(wanted: str, stage: str) -> list[Path]:
    """Return the candidates for a run: the folder itself, then the run of this name below `outputs/<stage>`."""
    return [Path(wanted), Path("outputs") / stage / wanted]


def runs_in(folder: Path) -> Iterator[Run]:
    """Yield all runs directly below `folder` whose config can be read."""
    for config in sorted(folder.glob(f"*/{CONFIG}")):
        with contextlib.suppress(UserError):  # one broken run must not hide the others
            yield open_run(config.parent)


def check_targets(node: Any, allowed: Container[str] = PARTS) -> None:
    """Check every `_target_` in a stored config or PNG metadata, which may be untrusted, before it is built.

    Raises:
        UserError: naming a target that is not allowed.
    """
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        check_targets(child, allowed)
    if isinstance(node, dict) and "_target_" in node and str(node["_target_"]) not in allowed:
        raise UserError(
            f"{node['_target_']} may not be named by a stored config or PNG. Use only files that you trust."
        )


def build(node: Any) -> Any:
    """Build the object of a stored config or PNG metadata, if `ALLOWED_TARGETS` has its class."""
    check_targets(node)
    if isinstance(node, list):
        return [build(item) for item in node]
    if not isinstance(node, dict):
        return node
    arguments = {key: build(value) for key, value in node.items() if key != "_target_"}
    if "_target_" not in node:
        return arguments
    module_name, _, class_name = node["_target_"].rpartition(".")
    return getattr(importlib.import_module(module_name), class_name)(**arguments)


def config_of(part: object) -> dict[str, Any]:
    """Return the config of a sampler or a guidance: the inverse of `build`."""
    arguments = {name: getattr(part, name) for name in inspect.signature(type(part)).parameters}
    return {"_target_": f"latentfaces.diffusion.{type(part).__name__}", **arguments}


def in_words(config: Mapping[str, Any]) -> str:
    """Return a part of a config as its class and its arguments."""
    arguments = ", ".join(f"{key}={value}" for key, value in config.items() if not key.startswith("_"))
    kind = str(config.get("_target_", "")).rpartition(".")[2]
    return f"{kind}({arguments})" if kind else ""


def program(name: str) -> list[str]:
    """Return the command "train" or "sample" in the form in which this process was started."""
    installed = Path(sys.argv[0]).name.startswith("latentfaces-")
    return [f"latentfaces-{name}"] if installed else ["python", f"{name}.py"]


def overrides_of(folder: Path) -> list[str]:
    """Return the overrides of a run's last command; none if they were not kept."""
    import yaml

    path = folder / ".hydra" / "overrides.yaml"
    return [*(yaml.safe_load(path.read_text()) if path.exists() else [])]


def command(folder: Path) -> str:
    """Return the run's last command."""
    return shlex.join([*program("train"), *overrides_of(folder)])


def resume_command(train: list[str], overrides: Sequence[str], folder: Path) -> str:
    """Return the command that resumes the run in `folder`.

    Args:
        train: training command, as from `program`.
        overrides: overrides of the run's command.
        folder: the run's folder, named in the command unless `name` leads to it.
    """
    dropped = ("resume=", "requeue=", "hydra.run.dir=", "hydra.mode=")
    kept = [override for override in overrides if not override.startswith(dropped)]
    above = folder.resolve().parent
    usual = above.name in ("vae", "ldm") and above.parent.name == "outputs"
    if usual and not any(override.startswith("name=") for override in kept):
        kept.append(f"name={folder.name}")
    if not usual or f"name={folder.name}" not in kept:
        kept += [f"hydra.run.dir={folder}", "hydra.mode=RUN"]
    return shlex.join([*train, *kept, "resume=auto"])
