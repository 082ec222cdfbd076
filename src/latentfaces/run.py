"""One training run as a folder: its config, its weights, whether it is finished."""

import contextlib
import hashlib
import importlib
import inspect
import json
import shlex
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from latentfaces.errors import UserError
from latentfaces.posthoc_ema import rebuild, snapshots_in

CONFIG, RESULT, TUNED = "config.yaml", "result.json", "tuned.json"
PRUNING = "pruning.json"
GUIDE = "guide_denoiser"
SNAPSHOTS = Path("checkpoints") / "ema"
ALLOWED_TARGETS = {
    "latentfaces.autoencoder": {"VAE"},
    "latentfaces.diffusion": {
        *("Denoiser", "DiT", "UNet", "EDM", "RectifiedFlow", "VPCosine", "VPLinear"),
        *("DDIMSampler", "DDPMSampler", "DPMpp2MSampler", "EulerSampler", "HeunSampler"),
        *("AutoGuidance", "InternalGuidance", "NoGuidance"),
    },
    "latentfaces.tasks": {
        *("Edit", "Generate", "Inpaint", "Interpolate", "Invert"),
        *("Neighbours", "Reconstruct", "Variations"),
    },
}
"""Parts that a stored config or an image's metadata may ask for. Evaluate is none: it runs a network from a file."""
MOVED = {
    "conf.sweeps.SweepReport": "latentfaces.cli.sweeps.SweepReport",
    **{
        f"latentfaces.training.strategies.{name}": f"latentfaces.training.distributed.strategies.{name}"
        for name in ("DDP", "FSDP")
    },
}
"""Classes that run folders of earlier versions know by another name."""
PARTS = {f"{module}.{name}" for module, names in ALLOWED_TARGETS.items() for name in names}
DATA = {f"latentfaces.data.FFHQDataModule.{maker}" for maker in ("from_drawn_faces", "from_ffhq", "from_photos")}


def read_result(folder: Path) -> dict[str, Any]:
    """Return the content of result.json, or {} if it is missing or unreadable."""
    try:
        result: dict[str, Any] = json.loads((folder / RESULT).read_text())
    except (OSError, ValueError):
        return {}
    return result


@dataclass(frozen=True)
class Run:
    """A folder `outputs/<vae|ldm>/<name>` that train.py wrote.

    Args:
        folder: the folder.
        config: what is in its config.yaml: the composed config, every reference resolved.
    """

    folder: Path
    config: dict[str, Any]

    @property
    def stage(self) -> str:
        """ "vae" or "ldm"."""
        return self.config["stage"]

    @property
    def finished(self) -> bool:
        """Whether training came to its end."""
        return bool(self.result())

    def result(self) -> dict[str, Any]:
        """Return the metrics and the verdict of a finished run, or nothing."""
        return read_result(self.folder)

    def tuned(self) -> dict[str, Any] | None:
        """Return "guidance" and "ema" that task=tune found for the present best weights, or None."""
        path = self.folder / TUNED
        if not path.exists():
            return None
        found = json.loads(path.read_text())
        check_targets(found)
        return found if found["of"] == self.stamp("best_denoiser") else None

    def stamp(self, name: str) -> str:
        """12 hexadecimal digits that change with `checkpoints/<name>.pth`."""
        return hashlib.sha256((self.folder / "checkpoints" / f"{name}.pth").read_bytes()).hexdigest()[:12]

    def has_weights(self, name: str) -> bool:
        """Whether `checkpoints/<name>.pth` is there."""
        return (self.folder / "checkpoints" / f"{name}.pth").exists()

    @property
    def has_snapshots(self) -> bool:
        """Whether training left what `averaged` needs."""
        return len(snapshots_in(self.folder / SNAPSHOTS)) > 1

    def module(self, node: str, weights: str) -> Any:
        """Build `model.<node>` of the config and load `checkpoints/<weights>.pth` into it, ready for evaluation.

        Raises:
            UserError: the weights are missing, damaged or of another shape.
        """
        path = self.folder / "checkpoints" / f"{weights}.pth"
        if not path.exists():
            raise UserError(f"{path} is missing: the run stopped before its first validation; train it again")
        return self.filled(node, path, lambda: torch.load(path, weights_only=True, map_location="cpu"))

    def averaged(self, node: str, sigma_rel: float) -> Any:
        """Build `model.<node>` with the average of another width than the run exported, ready for evaluation.

        Args:
            node: the one that was trained.
            sigma_rel: width of the average, in (0, 0.28), see `latentfaces.posthoc_ema`.

        Raises:
            UserError: the run's snapshots cannot give it.
        """
        folder = self.folder / SNAPSHOTS
        state = rebuild(folder, sigma_rel)
        return self.filled(node, folder, lambda: state)

    def filled(self, node: str, path: Path, read: Callable[[], dict[str, Tensor]]) -> Any:
        """Build `model.<node>` with the state dict that `read` finds at `path`, ready for evaluation."""
        module = build(self.config["model"][node])
        assert isinstance(module, nn.Module)
        try:
            module.load_state_dict(read())
        except Exception as error:
            raise UserError(
                f"{path} does not fit {CONFIG} beside it, or is damaged ({type(error).__name__})"
            ) from error
        return module.eval().requires_grad_(False)


def open_run(folder: str | Path) -> Run:
    """The run in `folder`.

    Raises:
        UserError: there is none.
    """
    folder = Path(folder)
    try:
        config = yaml.safe_load((folder / CONFIG).read_text())
    except OSError:
        raise UserError(f"{folder} is not a run: it has no {CONFIG}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        config = None
    if not isinstance(config, dict) or "stage" not in config:
        raise UserError(f"{folder / CONFIG} is not the config of a run: restore it, or name another run")
    if refers(config):  # train.py writes values; a reference would fetch this machine's own, as ${oc.env:TOKEN} does
        raise UserError(f"{folder / CONFIG} refers to values that are not in it: restore it, or name another run")
    config.get("data", {}).pop("num_workers", None)  # a key of earlier versions
    return Run(folder, translated(config))


def translated(node: Any) -> Any:
    """A stored config with each moved `_target_` replaced by its present name."""
    if isinstance(node, dict):
        return {key: translated(value) for key, value in node.items()}
    if isinstance(node, list):
        return [translated(value) for value in node]
    return MOVED.get(node, node) if isinstance(node, str) else node


def refers(node: Any) -> bool:
    """Whether a stored config refers to values that are not in it."""
    if isinstance(node, dict | list):
        return any(map(refers, node.values() if isinstance(node, dict) else node))
    return isinstance(node, str) and "${" in node


def find_run(
    wanted: str, stage: str, outputs: str | Path = "outputs", suits: Callable[[Run], bool] = lambda run: True
) -> Run:
    """The run that `wanted` names: a folder, a name below `outputs/<stage>`, or "latest".

    Args:
        wanted: what the person typed.
        stage: "vae" or "ldm", where names are looked up.
        outputs: the folder of all runs.
        suits: which runs "latest" may choose from, beside being finished.

    Raises:
        UserError: there is none.
    """
    here = Path(outputs) / stage
    key = "vae" if stage == "vae" else "run"
    if wanted == "latest":
        runs = [run for run in runs_in(here) if run.finished and suits(run)]
        if not runs:
            raise UserError(
                f"{here} has no finished run that fits: train one with `python train.py model={stage}`, "
                f"or name a folder with {key}=FOLDER"
            )
        return max(runs, key=lambda run: (run.folder / RESULT).stat().st_mtime)
    for folder in folders_named(wanted, stage, outputs):
        if (folder / CONFIG).exists():
            return open_run(folder)
    known = ", ".join(sorted(run.folder.name for run in runs_in(here))) or "none"
    raise UserError(f"{key}={wanted} is neither a run's folder nor a name in {here} (there: {known})")


def folders_named(wanted: str, stage: str, outputs: str | Path = "outputs") -> list[Path]:
    """Return the candidates for a run: the folder itself, then the run of this name below `outputs/<stage>`."""
    return [Path(wanted), Path(outputs) / stage / wanted]


def runs_in(folder: Path) -> Iterator[Run]:
    """All runs directly below `folder` whose config can be read."""
    for config in sorted(folder.glob(f"*/{CONFIG}")):
        with contextlib.suppress(UserError):  # one broken run must not hide the others
            yield open_run(config.parent)


def check_targets(node: Any, allowed: Container[str] = PARTS) -> None:
    """Look for anything that is not allowed in a stored config, or a picture's text, before it is built.

    Either may come from a stranger, and must not be able to run anything else.

    Args:
        node: a part of it.
        allowed: the values that `_target_` may have.

    Raises:
        UserError: naming the stranger.
    """
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        check_targets(child, allowed)
    if isinstance(node, dict) and "_target_" in node and str(node["_target_"]) not in allowed:
        raise UserError(f"{node['_target_']} is not a part of latentfaces that a stored config or picture may ask for")


def build(node: Any) -> Any:
    """Build the object that a stored config or a PNG's text describes, if `ALLOWED_TARGETS` has it."""
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


def train_program() -> list[str]:
    """Return the program that trains, in the form in which this process was started."""
    installed = Path(sys.argv[0]).name.startswith("latentfaces-")
    return ["latentfaces-train"] if installed else ["python", "train.py"]


def overrides_of(folder: Path) -> list[str]:
    """Return the overrides of a run's first command, or none if they were not kept."""
    path = folder / ".hydra" / "overrides.yaml"
    return [*(yaml.safe_load(path.read_text()) if path.exists() else [])]


def command(folder: Path) -> str:
    """Return the run's first command."""
    return shlex.join([*train_program(), *overrides_of(folder)])


def resume_command(program: list[str], overrides: Sequence[str], folder: Path) -> str:
    """Return the command that resumes the run in `folder`.

    Args:
        program: what to start, as `train_program` returns it.
        overrides: those of the run's command.
        folder: the run's folder. It is named in the command where `name` alone would not lead to it.
    """
    dropped = ("resume=", "requeue=", "hydra.run.dir=", "hydra.mode=")
    kept = [override for override in overrides if not override.startswith(dropped)]
    above = folder.resolve().parent
    usual = above.name in ("vae", "ldm") and above.parent.name == "outputs"
    if usual and not any(override.startswith("name=") for override in kept):
        kept.append(f"name={folder.name}")
    if not usual or f"name={folder.name}" not in kept:
        kept += [f"hydra.run.dir={folder}", "hydra.mode=RUN"]
    return shlex.join([*program, *kept, "resume=auto"])
