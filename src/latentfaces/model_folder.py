"""Model folder: a run as `config.json` and safetensors, which need neither Hydra nor Lightning and hold no pickle.

`latentfaces.export` writes it. It may be untrusted: nothing in it runs.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentfaces.diffusion import Conditioning, NoGuidance, Sampler
from latentfaces.diffusion.guidance import Extrapolation
from latentfaces.errors import UserError, missing_extra, reason
from latentfaces.run import GUIDE, LABELS, Run, build, check_targets, find_run, has_interpolation

CONFIG = "config.json"
FORMAT = 1
WEIGHTS = {"best_vae": "vae", "best_denoiser": "denoiser", GUIDE: "guide"}
"""File, without its suffix, of each file of weights of a run."""
DIFFUSERS_WEIGHTS = Path("vae") / "diffusion_pytorch_model.safetensors"
"""Weights of a VAE of diffusers, which has a folder as diffusers reads it."""
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
MAX_CONFIG = 2**20
PATTERNS = [CONFIG, "*.safetensors", "vae/*", LABELS]
"""Files that are downloaded from a hub."""


@dataclass(frozen=True)
class ModelFolder(Run):
    """Model folder behind the interface of a run."""

    def tuned(self) -> dict[str, Any] | None:
        """Return guidance and sampler. The weights are already those of the tuned average."""
        sampling = self.config.get("sampling")
        return {"guidance": sampling["guidance"], "sampler": sampling["sampler"], "ema": None} if sampling else None

    def path_of(self, weights: str) -> Path:
        if weights == "best_vae" and (self.folder / DIFFUSERS_WEIGHTS).exists():
            return self.folder / DIFFUSERS_WEIGHTS
        return self.folder / f"{WEIGHTS[weights]}.safetensors"

    def module(self, node: str, weights: str) -> Any:
        """Build `model.<node>` with its weights, in evaluation mode.

        Raises:
            UserError: the weights are missing, damaged or of another network.
        """
        path = self.path_of(weights)
        try:
            module = build(self.config["model"][node])
            module.load_state_dict(self.read(path))
            return module.eval().requires_grad_(False)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"{path} is missing or damaged, or does not fit {CONFIG} ({reason(error)}). "
                "Export or download it again."
            ) from error

    def read(self, path: Path) -> dict[str, Tensor]:
        """Read a state dict."""
        try:
            from safetensors.torch import load_file
        except ImportError:
            raise missing_extra(str(path), "hub") from None
        state = load_file(path)
        if path.name != DIFFUSERS_WEIGHTS.name:
            return state
        statistics = {key: torch.tensor(value) for key, value in self.config["latents"].items()}
        return {f"model.{key}": value for key, value in state.items()} | statistics

    def averaged(self, node: str, sigma_rel: float) -> Any:
        raise UserError(f"ema={sigma_rel} has no effect on {self.folder}, which has one average. Leave it out.")


def open_model(place: str | Path) -> ModelFolder:
    """Open a model folder, or download that of a repository ID or ID@REVISION of the hub.

    Raises:
        UserError: there is none, or its config names what is not a part of latentfaces.
    """
    folder = Path(place) if Path(place).is_dir() else download(str(place))
    path = folder / CONFIG
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise ValueError(f"more than {MAX_CONFIG:,} bytes")
        config = json.loads(path.read_text())
        check_targets(config)
        check_config(config)
    except OSError:
        raise UserError(f"{folder} is not a model folder: it has no {CONFIG}. Use latentfaces-export.") from None
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not the config of a model folder ({reason(error)}). Use another folder.") from None
    return ModelFolder(folder, config)


def find_model(wanted: str) -> Run:
    """Find what `run=` names: a model folder, or a run of stage 2 as for `find_run`.

    Raises:
        UserError: there is none.
    """
    return open_model(wanted) if (Path(wanted) / CONFIG).is_file() else find_run(wanted, "ldm")


def check_config(config: dict[str, Any]) -> None:
    """Check a config that may be untrusted, except for the networks. Raise an error of one of many kinds."""
    if config["format"] != FORMAT or config["stage"] not in ("vae", "ldm"):
        raise ValueError(f"not of format {FORMAT}")
    if has_interpolation(config) or not isinstance(config["data"]["resolution"], int):
        raise ValueError("an interpolation, or no resolution")
    if not isinstance(build(config["model"].get("conditioning")), Conditioning | None):
        raise TypeError("no labels")
    if config["stage"] == "ldm":
        guidance, sampler = (build(config["sampling"][key]) for key in ("guidance", "sampler"))
        if not isinstance(sampler, Sampler) or not isinstance(guidance, NoGuidance | Extrapolation):
            raise TypeError("no sampler, or no guidance")


def download(place: str) -> Path:
    """Download a model folder from the hub. Return where it is cached."""
    name, _, revision = place.partition("@")
    if not HUB_ID.fullmatch(name):
        raise UserError(f"{place} is neither a folder nor an ID of the hub, such as me/faces. Name another.")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise missing_extra(f"{place} is no folder. Its download", "hub") from None
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=PATTERNS))
    except Exception as error:  # of the network, of the hub or of the disk
        raise UserError(f"{place} cannot be downloaded ({reason(error)}). Check the ID and the network.") from error
