"""VAEs of other projects behind the interface of `VAE`.

`vae=taesd:FOLDER` needs no other package. diffusers is imported only in this file, and only when it is needed.
"""

import contextlib
import inspect
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from latentfaces.autoencoder.posterior import DiagonalGaussian
from latentfaces.autoencoder.vae import VAE, Skips
from latentfaces.errors import UserError, missing_extra, reason
from latentfaces.nn import weights_hash

Kind = Literal["AutoencoderKL", "AutoencoderTiny"]
ZERO_VARIANCE = -30.0
"""Log-variance of an autoencoder without a posterior: the lowest of `DiagonalGaussian`."""


class PretrainedVAE(VAE):
    """VAE whose `latent_mean` and `latent_std` are those of the user's images, not those of its training.

    Args:
        latent_channels: channels of the latents.
        downsampling: pixels per latent along each side.
        source: where the weights are from.
        licence: licence of the weights, if known.
    """

    skip_connections = False

    def __init__(self, latent_channels: int, downsampling: int, source: str, licence: str | None) -> None:
        nn.Module.__init__(self)  # without the networks of VAE
        self.latent_channels, self.downsampling = latent_channels, downsampling
        self.source, self.licence = source, licence
        self.register_buffer("latent_mean", torch.zeros(latent_channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(latent_channels, 1, 1))

    def posterior(self, images: Tensor) -> DiagonalGaussian:
        """Encode images (b, 3, R, R) in [-1, 1]; R is a multiple of `downsampling`."""
        raise NotImplementedError

    def encode_with_skips(self, images: Tensor) -> tuple[DiagonalGaussian, Skips]:
        self.check_size(images)
        return self.posterior(images), []

    def encode_with_features(self, images: Tensor) -> tuple[DiagonalGaussian, Skips]:
        """Encode images to the posterior and the inputs of the strided convolutions."""
        maps: Skips = []
        strided = [layer for layer in self.encoder.modules() if isinstance(layer, nn.Conv2d) and layer.stride[0] == 2]
        hooks = [layer.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0])) for layer in strided]
        try:
            return self.encode(images), maps
        finally:
            for hook in hooks:
                hook.remove()

    @property
    def last_layer(self) -> Tensor:
        return [layer for layer in self.decoder.modules() if isinstance(layer, nn.Conv2d)][-1].weight

    def compile(self, *args: Any, **kwargs: Any) -> None:
        self.posterior = torch.compile(self.posterior, *args, **kwargs)  # type: ignore[method-assign]
        self.decode = torch.compile(self.decode, *args, **kwargs)  # type: ignore[method-assign]

    @property
    def cache_key(self) -> str:
        return weights_hash(nn.ModuleList(self.children()))  # without the statistics, which the cache gives

    @property
    def measured(self) -> bool:
        """Whether `measure` has been called, also before the weights were saved."""
        return bool(self.latent_mean.any())

    def measure(self, batches: Iterable[Tensor]) -> None:
        """Set `latent_mean` and `latent_std` to those of samples of posteriors.

        Args:
            batches: means and stds of the posterior, (b, 2, c, h, w) each.
        """
        sums = torch.zeros(3, self.latent_channels, dtype=torch.float64)
        for moments in batches:
            mean, std = moments.double().unbind(1)
            sums += torch.stack([x.sum((0, 2, 3)) for x in (torch.ones_like(mean), mean, mean**2 + std**2)]).cpu()
        count, first, second = sums.view(3, -1, 1, 1)
        self.latent_mean.copy_(first / count)
        variance = second / count - (first / count) ** 2
        self.latent_std.copy_(variance.clamp(min=1e-10).sqrt())  # a constant channel is normalized to 0


class Clamp(nn.Module):
    """Keep latents within -3 and 3."""

    def forward(self, latents: Tensor) -> Tensor:
        return 3 * torch.tanh(latents / 3)


class Block(nn.Module):
    """Residual block of three convolutions. `pool` adds a branch of wider 1 x 1 convolutions with a group norm."""

    def __init__(self, pool: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv(), nn.ReLU(), conv(), nn.ReLU(), conv())
        if pool:
            wide, narrow = nn.Conv2d(64, 256, 1, bias=False), nn.Conv2d(256, 64, 1, bias=False)
            self.pool = nn.Sequential(wide, nn.GroupNorm(4, 256), nn.ReLU(), narrow)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "pool"):
            x = x + self.pool(x)
        return torch.relu(x + self.conv(x))


def conv(in_channels: int = 64, out_channels: int = 64, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """Build a 3 x 3 convolution."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=bias)


class TAESD(PretrainedVAE):
    """Tiny autoencoder of the taesd family (https://github.com/madebyollin/taesd): R -> R / 8, zero variance.

    Args:
        latent_channels: 4 for the latents of SD and SDXL, 16 for SD3 and FLUX.1, 32 for FLUX.2.
        pooled: whether the blocks at the lowest resolution have the second branch, as those of TAEF2.
        source, licence: see `PretrainedVAE`.
    """

    has_variance = False

    def __init__(
        self, latent_channels: int = 4, pooled: bool = False, source: str = "", licence: str | None = None
    ) -> None:
        super().__init__(latent_channels, 8, source, licence)
        down: list[nn.Module] = [conv(3), Block()]
        up: list[nn.Module] = [Clamp(), conv(latent_channels), nn.ReLU()]
        for number in range(3):
            down += [conv(stride=2, bias=False), *(Block(pooled and number == 2) for _ in range(3))]
            up += [*(Block(pooled and number == 0) for _ in range(3)), nn.Upsample(scale_factor=2), conv(bias=False)]
        self.encoder = nn.Sequential(*down, conv(out_channels=latent_channels))  # type: ignore[assignment]
        self.decoder = nn.Sequential(*up, Block(), conv(out_channels=3))  # type: ignore[assignment]

    def posterior(self, images: Tensor) -> DiagonalGaussian:
        return without_variance(self.encoder(images / 2 + 0.5))

    def decode(self, latents: Tensor, skips: Skips | None = None) -> Tensor:
        return 2 * self.decoder(latents).float() - 1


class DiffusersVAE(PretrainedVAE):
    """VAE of diffusers.

    Args:
        kind: its class.
        latent_channels, downsampling, source, licence: see `PretrainedVAE`.
        config: other arguments of its class.
    """

    def __init__(
        self,
        kind: Kind,
        latent_channels: int,
        downsampling: int,
        source: str = "",
        licence: str | None = None,
        **config: Any,
    ) -> None:
        super().__init__(latent_channels, downsampling, source, licence)
        for name, value in config.items():
            if isinstance(value, Sequence) and not isinstance(value, str):
                config[name] = [*value]  # a list of OmegaConf
        self.has_variance = kind == "AutoencoderKL"
        self.model = diffusers_class(kind)(latent_channels=latent_channels, **config)

    @property
    def encoder(self) -> nn.Module:  # type: ignore[override]
        """Encoder, with the convolution after it if there is one."""
        after = getattr(self.model, "quant_conv", None)
        return nn.Sequential(self.model.encoder, *([] if after is None else [after]))

    @property
    def decoder(self) -> nn.Module:  # type: ignore[override]
        """Decoder, with the convolution before it if there is one."""
        before = getattr(self.model, "post_quant_conv", None)
        return nn.Sequential(*([] if before is None else [before]), self.model.decoder)

    def posterior(self, images: Tensor) -> DiagonalGaussian:
        encoded = self.model.encode(images)
        if self.has_variance:
            return DiagonalGaussian.from_moments(encoded.latent_dist.parameters)
        return without_variance(encoded.latents)

    def decode(self, latents: Tensor, skips: Skips | None = None) -> Tensor:
        return self.model.decode(latents).sample.float()


def without_variance(latents: Tensor) -> DiagonalGaussian:
    """Return the posterior of an autoencoder that has only latents."""
    return DiagonalGaussian(latents.float(), torch.full_like(latents, ZERO_VARIANCE, dtype=torch.float32))


def diffusers_class(kind: str) -> Any:
    """Return a class of diffusers, which may be named by an untrusted file."""
    if kind not in get_args(Kind):
        raise UserError(f"{kind} is no VAE that can be used. Choose one of {', '.join(get_args(Kind))}.")
    try:
        import diffusers
    except ImportError as error:
        raise missing_extra("This VAE", "diffusers") from error
    diffusers.utils.logging.set_verbosity_error()  # its warnings come as errors from here
    return getattr(diffusers, kind)


def load_diffusers(place: str) -> tuple[dict[str, Any], PretrainedVAE]:
    """Load FOLDER_OR_HUB_ID, with @REVISION for a version of the hub and #SUBFOLDER for a part of a pipeline."""
    name, _, subfolder = place.partition("#")
    path = Path(name).expanduser()
    repository, _, revision = (str(path), "", "") if path.exists() else name.partition("@")
    options = {"subfolder": subfolder or None, "revision": revision or None}
    general = diffusers_class("AutoencoderKL")
    try:
        config, commit = general.load_config(repository, return_commit_hash=True, **options)
        kind = diffusers_class(config.get("_class_name"))
        model, found = kind.from_pretrained(
            repository, torch_dtype=torch.float32, low_cpu_mem_usage=False, output_loading_info=True, **options
        )
        if lost := [*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]]:
            raise ValueError(f"{lost[0]} is not in both its config.json and its weights")
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"diffusers:{place} is not a VAE of diffusers, is damaged, or cannot be downloaded "
            f"({reason(error)}). Give a folder with config.json, or ID#vae for a pipeline of the hub."
        ) from error
    licence = None
    with contextlib.suppress(Exception):  # the card is optional, and may be anything
        from huggingface_hub import ModelCard

        licence = ModelCard.load(path / "README.md" if path.exists() else repository).data.license
    source = f"diffusers:{place}" + (f" at {commit}" if commit else "")
    return wrap(kind.__name__, config, model.state_dict(), source, licence)


def wrap(
    kind: str, config: dict[str, Any], state: dict[str, Tensor], source: str, licence: str | None
) -> tuple[dict[str, Any], PretrainedVAE]:
    """Build a `DiffusersVAE` from its weights and a config of diffusers, of which the known arguments are kept."""
    known = inspect.signature(diffusers_class(kind)).parameters
    arguments = {name: config.get(name, known[name].default) for name in known}
    if "{" in json.dumps([licence, *arguments.values()]):  # Hydra would build a _target_ or resolve an interpolation
        raise UserError(f"{source} has nested values in its config.json. Use only files that you trust.")
    widths = arguments["encoder_block_out_channels" if kind == "AutoencoderTiny" else "block_out_channels"]
    arguments |= {"kind": kind, "downsampling": 2 ** (len(widths) - 1), "source": source, "licence": licence}
    vae = DiffusersVAE(**arguments)
    fill(vae, {f"model.{name}": value for name, value in state.items()}, source, f"an {kind} of the usual layout")
    return {"_target_": "latentfaces.autoencoder.DiffusersVAE", **arguments}, vae


def load_ldm(place: str) -> tuple[dict[str, Any], PretrainedVAE]:
    """Load the VAE of a checkpoint of CompVis (`first_stage_model.*`) or of a file with the VAE alone."""
    diffusers_class("AutoencoderKL")
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    state = {name.removeprefix("first_stage_model."): x for name, x in read_weights(Path(place).expanduser()).items()}
    parts = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
    state = {name: value for name, value in state.items() if name.startswith(parts)}
    widths = [state[name].shape[0] for n in range(32) if (name := f"encoder.down.{n}.block.0.conv2.weight") in state]
    if not widths or "decoder.conv_in.weight" not in state:
        raise UserError(f"ldm:{place} has no first_stage_model with encoder and decoder. Choose another file.")
    config = {
        "block_out_channels": widths,
        "layers_per_block": sum(name.startswith("encoder.down.0.") and name.endswith("conv2.weight") for name in state),
        "latent_channels": state["decoder.conv_in.weight"].shape[1],
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "use_quant_conv": "quant_conv.weight" in state,
        "use_post_quant_conv": "post_quant_conv.weight" in state,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in state,
    }
    return wrap("AutoencoderKL", config, convert_ldm_vae_checkpoint(state, config), f"ldm:{place}", None)


def load_taesd(place: str) -> tuple[dict[str, Any], PretrainedVAE]:
    """Load FOLDER, or FOLDER#NAME where it has several, with `NAME_encoder.pth` and `NAME_decoder.pth`."""
    path, _, name = place.partition("#")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"taesd:{place}: there is no folder {folder}. Correct the path.")
    names = sorted(file.name.removesuffix("_encoder.pth") for file in folder.glob(f"{name or '*'}_encoder.pth"))
    if len(names) != 1:
        found = f"of {', '.join(names)}: add #NAME" if names else "none: taesd:FOLDER needs NAME_encoder.pth there"
        raise UserError(f"taesd:{path} must have one VAE of the taesd family, but has {found}.")
    halves: dict[str, Tensor] = {}
    for half in ("encoder", "decoder"):
        state = read_weights(folder / f"{names[0]}_{half}.pth")
        halves |= {f"{half}.{key}": value for key, value in state.items()}
    last = halves.get("decoder.1.weight", torch.empty(0))
    arguments: dict[str, Any] = {
        "latent_channels": last.shape[1] if last.ndim == 4 else 4,
        "pooled": any(".pool." in key for key in halves),
        "source": f"taesd:{place}",
        "licence": "MIT",
    }
    vae = TAESD(**arguments)
    fill(vae, halves, f"{folder}/{names[0]}_*.pth", "a VAE of the taesd family with R / 8 latents")
    return {"_target_": "latentfaces.autoencoder.TAESD", **arguments}, vae


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict that cannot run code.

    Raises:
        UserError: the file is missing, damaged, or something else.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state)
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise TypeError("not a state dict")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist. Download it, or correct the path.") from None
    except Exception as error:
        raise UserError(
            f"{path} is damaged or not a file of weights ({type(error).__name__}). Download it again."
        ) from error
    return state


def fill(vae: PretrainedVAE, state: dict[str, Tensor], name: str, expected: str) -> None:
    """Load weights, all but the statistics.

    Raises:
        UserError: they are of another network.
    """
    statistics = {key: vae.get_buffer(key) for key in ("latent_mean", "latent_std")}
    try:
        vae.load_state_dict({key: value.float() for key, value in state.items()} | statistics)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise UserError(f"{name} is not {expected} ({first[:200]}). Choose another VAE.") from None


LOADERS: dict[str, Callable[[str], tuple[dict[str, Any], PretrainedVAE]]] = {
    "diffusers": load_diffusers,
    "ldm": load_ldm,
    "taesd": load_taesd,
}


def is_pretrained(name: str) -> bool:
    """Return whether `vae=<name>` or `init=<name>` is not a run."""
    return name.partition(":")[0] in LOADERS


def load_pretrained(name: str) -> tuple[dict[str, Any], PretrainedVAE]:
    """Load the VAE of `vae=<name>` or `init=<name>`.

    Returns:
        The config that builds its network, and the VAE.

    Raises:
        UserError: there is none, it is damaged, or it does not return images of the size that it is given.
    """
    kind, _, place = name.partition(":")
    config, vae = LOADERS[kind](place)
    vae.eval().requires_grad_(False)
    images = torch.zeros(1, 3, vae.downsampling, vae.downsampling)
    with contextlib.suppress(RuntimeError):  # of a network for other numbers of channels
        if vae.decode(vae.encode(images).mean).shape == images.shape:
            return config, vae
    raise UserError(f"{name} does not map RGB images to RGB images of the same size. Choose another VAE.")
