"""Files of VAEs of other projects, with random weights."""

import re
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


LEVELS = 3
KL = {
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * LEVELS,
    "up_block_types": ("UpDecoderBlock2D",) * LEVELS,
    "layers_per_block": 2,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "sd": ("AutoencoderKL", {**KL, "latent_channels": 4, "scaling_factor": 0.18215}),
    "sdxl": ("AutoencoderKL", {**KL, "latent_channels": 4, "scaling_factor": 0.13025, "force_upcast": True}),
    "sd3": (
        "AutoencoderKL",
        {**KL, "latent_channels": 16, "shift_factor": 0.06, "use_quant_conv": False, "use_post_quant_conv": False},
    ),
    "tiny": ("AutoencoderTiny", {"latent_channels": 16}),
}


def write_diffusers(folder: Path, kind: str = "sd", **options: Any) -> Any:
    """Write a VAE as diffusers does, and return it."""
    import diffusers

    torch.manual_seed(0)
    name, config = KINDS[kind]
    vae = getattr(diffusers, name)(**config).eval()
    vae.save_pretrained(folder, **options)
    return vae


COMPVIS_NAMES = (
    (r"down_blocks\.(\d+)\.resnets", r"down.\1.block"),
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d+)", lambda found: f"up.{LEVELS - 1 - int(found[1])}"),
    (r"(up\.\d+)\.resnets", r"\1.block"),
    (r"upsamplers\.0", "upsample"),
    (r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}"),
    (r"mid_block\.attentions\.0\.", "mid.attn_1."),
    (r"group_norm", "norm"),
    (r"to_out\.0", "proj_out"),
    (r"to_([qkv])", r"\1"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
)


def compvis_state(vae: Any) -> dict[str, torch.Tensor]:
    """Return the weights of an AutoencoderKL under the names of CompVis, whose attention has 1 x 1 convolutions."""
    state = {}
    for name, value in vae.state_dict().items():
        is_product = ".attentions." in name and value.ndim == 2
        for pattern, replacement in COMPVIS_NAMES:
            name = re.sub(pattern, replacement, name)
        state[f"first_stage_model.{name}"] = value[:, :, None, None] if is_product else value
    return state


def write_compvis(path: Path, kind: str = "sd") -> Any:
    """Write a checkpoint of CompVis with a VAE and a part of a denoiser, and return the VAE."""
    vae = write_diffusers(path.parent / "original", kind)
    others = {"model.diffusion_model.out.2.weight": torch.zeros(4, 4), "first_stage_model.loss.logvar": torch.zeros(())}
    torch.save({"state_dict": compvis_state(vae) | others, "global_step": 1}, path)
    return vae
