"""Files of VAEs of other projects, with random weights."""

from pathlib import Path
from typing import Any

import torch

from latentfaces.autoencoder import TAESD


def write_taesd(folder: Path, name: str = "tiny", **options: Any) -> TAESD:
    """Write `<name>_encoder.pth` and `<name>_decoder.pth`, and return the network."""
    torch.manual_seed(0)
    vae = TAESD(**options)
    folder.mkdir(exist_ok=True)
    for half in ("encoder", "decoder"):
        torch.save(getattr(vae, half).state_dict(), folder / f"{name}_{half}.pth")
    return vae
