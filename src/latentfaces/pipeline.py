"""A trained run as an object: photos to latents, noise to faces."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentfaces.autoencoder import VAE, Skips
from latentfaces.data.images import to_uint8
from latentfaces.diffusion import (
    AutoGuidance,
    Denoiser,
    DPMpp2MSampler,
    Guidance,
    NoGuidance,
    PerSampleNoise,
    Predictor,
    Sampler,
)
from latentfaces.errors import UserError
from latentfaces.nn import best_device, weights_hash
from latentfaces.run import GUIDE, Run, build, open_run

PIXELS_AT_ONCE = {"cuda": 2**20, "cpu": 2**18}
"""Pixels per call of encoder or decoder: on a CPU 4 faces of 256 x 256. More take memory and are hardly faster."""
AUTO_WEIGHT = 1.5
"""Guidance weight of a run that was not tuned and has a guide, as in conf/guidance/auto.yaml."""


class FacePipeline:
    """A VAE and, for new faces, a denoiser in its latents.

    Args:
        vae: the trained VAE.
        denoiser: the trained denoiser; None for a run of stage 1, which can only reconstruct.
        resolution: height and width of the images, in pixels.
        device: where to compute; the best available by default.
        bfloat16: compute in bfloat16 where that is safe: faster, but images then depend slightly on the batch size.
        guide: an early version of the denoiser, for `AutoGuidance`, or a function that reads it when needed.
        guidance: of the denoiser; none unless given.
        sampler: from noise to latents, where a call names no other; `DPMpp2MSampler(20, eta=1.0)` unless given.
        ema: width of the weights' average; None for that of the best weights.
    """

    def __init__(
        self,
        vae: VAE,
        denoiser: Denoiser | None,
        resolution: int,
        device: torch.device | str | None = None,
        bfloat16: bool = False,
        guide: Denoiser | Callable[[], Denoiser] | None = None,
        guidance: Guidance | None = None,
        sampler: Sampler | None = None,
        ema: float | None = None,
    ) -> None:
        self.device, self.bfloat16 = torch.device(device or best_device()), bfloat16
        self.vae = vae.to(self.device)
        self.denoiser = denoiser.to(self.device) if denoiser is not None else None
        self.find_guide = guide if callable(guide) and not isinstance(guide, Denoiser) else lambda: guide
        self.resolution = resolution
        self.guidance: Guidance = guidance or NoGuidance()
        self.sampler: Sampler = sampler or DPMpp2MSampler(20, eta=1.0)
        self.ema = ema
        self.colliding_seeds = False
        """Draw noise as versions before 0.1 did, to reproduce their images: some (seed, number) shared their noise."""

    @classmethod
    def load(
        cls,
        run: Run | str | Path,
        device: torch.device | str | None = None,
        bfloat16: bool = False,
        ema: float | None = None,
        guidance: Guidance | None = None,
        sampler: Sampler | None = None,
    ) -> "FacePipeline":
        """Load a run's best weights, e.g. from "outputs/ldm/faces".

        Guidance, sampler and ema are the run's own unless given: those that task=tune found for its best weights, else
        `AutoGuidance` where the run has a guide and `DPMpp2MSampler(20, eta=1.0)`. A given guidance leaves out the
        tuned ema too, since the two were found together.

        Args:
            run: the run or its folder.
            device, bfloat16: as for the class.
            ema: width of the weights' average over the training, in (0, 0.28), in place of the best weights.
            guidance, sampler: in place of the run's own.

        Raises:
            UserError: the run lacks what these arguments need.
        """
        run = run if isinstance(run, Run) else open_run(run)
        vae = run.module("autoencoder", "best_vae")
        denoiser = guide = None
        if run.stage == "ldm":
            tuned = (run.tuned() or {}) if guidance is None or sampler is None else {}
            if guidance is None and tuned:
                guidance, ema = build(tuned["guidance"]), tuned["ema"] if ema is None else ema
            elif guidance is None and run.has_weights(GUIDE):
                guidance = AutoGuidance(AUTO_WEIGHT)
            if sampler is None and tuned.get("sampler") is not None:  # earlier versions tuned none
                sampler = build(tuned["sampler"])
            denoiser = run.module("denoiser", "best_denoiser") if ema is None else run.averaged("denoiser", ema)
            guide = partial(run.module, "denoiser", GUIDE) if run.has_weights(GUIDE) else None
        elif ema is not None:
            raise UserError(f"ema={ema} is for runs of stage 2. Leave it out.")
        resolution = run.config["data"]["resolution"]
        return cls(vae, denoiser, resolution, device, bfloat16, guide, guidance, sampler, ema)

    @cached_property
    def guide(self) -> Denoiser | None:
        """The early version, read when it is first asked for."""
        guide = self.find_guide()
        return guide.to(self.device) if guide is not None else None

    @property
    def guide_in_use(self) -> Denoiser | None:
        """The guide, if the guidance uses it."""
        return self.guide if isinstance(self.guidance, AutoGuidance) else None

    @property
    def predictor(self) -> Predictor:
        """The denoiser under the pipeline's guidance.

        Raises:
            UserError: there is no denoiser, or none that this guidance can use.
        """
        if self.denoiser is None:
            raise UserError(
                "this is a run of stage 1, and noise from its prior decodes to noise by design: "
                "train stage 2 with `python train.py model=ldm`, then sample that run"
            )
        try:
            return self.guidance(self.denoiser, self.guide_in_use)
        except ValueError as error:
            raise UserError(str(error)) from error

    @property
    def weights(self) -> str:
        """Names the weights: hashes of the VAE, of the denoiser if there is one, of the guide if it is used."""
        parts = (self.vae, self.denoiser, self.guide_in_use)
        return "-".join(weights_hash(part) for part in parts if part is not None)

    def compile(self) -> None:
        """Compile the denoiser when it is first used, which takes minutes on a CPU."""
        for part in (self.denoiser, self.guide_in_use):
            if part is not None:
                part.compile()

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of a latent."""
        side = self.resolution // self.vae.downsampling
        return self.vae.latent_channels, side, side

    def draws(self, names: Sequence[tuple[int, int]]) -> Callable[[], Tensor]:
        """A source of noise (n, c, h, w) for the faces named by (seed, number): each depends on its own name alone."""
        if self.colliding_seeds:
            generators = [torch.Generator().manual_seed(seed * 1_000_003 + number) for seed, number in names]
        else:
            generators = [generator_of(seed, number) for seed, number in names]
        return PerSampleNoise(generators, self.latent_shape, self.device)

    def noise(self, names: Sequence[tuple[int, int]]) -> Tensor:
        """Start noise (n, c, h, w) of the faces named by (seed, number)."""
        return self.draws(names)()

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute in bfloat16 within this context if the pipeline does; else as the caller does."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else nullcontext()

    def parts(self, count: int) -> Iterator[slice]:
        """So many pictures, a few at a time to bound the memory."""
        at_once = max(1, PIXELS_AT_ONCE.get(self.device.type, 2**18) // self.resolution**2)
        return (slice(start, start + at_once) for start in range(0, count, at_once))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (n, 3, R, R) in [-1, 1] -> normalised latents (n, c, h, w), the posterior's mode.

        Raises:
            ValueError: they are of another shape, or no floats.
        """
        if images.ndim != 4 or images.shape[1] != 3 or len(images) == 0 or not images.is_floating_point():
            raise ValueError(f"images must be (n, 3, R, R) floats in [-1, 1], not {tuple(images.shape)} {images.dtype}")
        with self.autocast():
            parts = [self.vae.encode(images[part].to(self.device)).mode() for part in self.parts(len(images))]
        return self.vae.normalize(torch.cat(parts))

    @torch.no_grad()
    def decode(self, latents: Tensor, skips: Skips | None = None) -> Tensor:
        """Normalised latents (n, c, h, w) -> images (n, 3, R, R) in [-1, 1].

        Args:
            latents: of new faces or of photos.
            skips: the encoder's features of the photos, if the decoder is to see them (see `VAE.decode`).

        Raises:
            ValueError: the latents are of another shape.
        """
        if latents.ndim != 4 or latents.shape[1] != self.vae.latent_channels or len(latents) == 0:
            raise ValueError(f"latents must be (n, {self.vae.latent_channels}, h, w), not {tuple(latents.shape)}")
        images = []
        with self.autocast():
            for part in self.parts(len(latents)):
                features = None if skips is None else [skip[part] for skip in skips]
                images.append(self.vae.decode(self.vae.denormalize(latents[part]), features))
        return torch.cat(images)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, skips: float = 0.0) -> Tensor:
        """Images (n, 3, R, R) in [-1, 1] -> what the VAE makes of them, likewise.

        Args:
            images: the photos.
            skips: strength, in [0, 1], of the VAE's skip connections: at 0 the latents say everything.
        """
        made = []
        with self.autocast():
            for part in self.parts(len(images)):
                posterior, features = self.vae.encode_with_skips(images[part].to(self.device))
                seen = [skips * feature for feature in features] if skips else None
                made.append(self.vae.decode(posterior.mode(), seen))
        return torch.cat(made)

    def sample(self, noise: Tensor, sampler: Sampler, fresh: Callable[[], Tensor] | None = None) -> Tensor:
        """Noise (n, c, h, w) -> normalised latents; `fresh` as for `Sampler`."""
        with self.autocast():
            return sampler(self.predictor, noise, fresh)

    def invert(self, images: Tensor, sampler: Sampler) -> Tensor:
        """Images (n, 3, R, R) in [-1, 1] -> the noise (n, c, h, w) from which `sampler` comes to them, nearly.

        Raises:
            UserError: the sampler cannot be run backwards.
        """
        latents = self.encode(images)
        try:
            with self.autocast():
                return sampler.invert(self.predictor, latents)
        except ValueError as error:
            raise UserError(str(error)) from error

    def faces_from_noise(self, noise: Tensor, sampler: Sampler, batch_size: int = 64) -> Iterator[Tensor]:
        """Noise (n, c, h, w) -> batches of faces (b, 3, R, R) uint8 on the CPU.

        A sampler that adds noise on the way takes, for face i, what it would take for face i of seed 0.
        """
        for start in range(0, len(noise), batch_size):
            part = noise[start : start + batch_size]
            draw = self.draws([(0, number) for number in range(start, start + len(part))])
            draw()  # the first is the start noise
            yield self.images(part, sampler, draw)

    def faces(self, names: Sequence[tuple[int, int]], sampler: Sampler, batch_size: int = 64) -> Iterator[Tensor]:
        """The faces named by (seed, number), in batches (b, 3, R, R) uint8 on the CPU."""
        for start in range(0, len(names), batch_size):
            draw = self.draws(names[start : start + batch_size])
            yield self.images(draw(), sampler, draw)

    def images(self, noise: Tensor, sampler: Sampler, fresh: Callable[[], Tensor]) -> Tensor:
        """Noise (b, c, h, w) -> faces (b, 3, R, R) uint8 on the CPU: the one path from noise to images.

        Args:
            noise: where sampling begins.
            sampler: from noise to latents.
            fresh: further noise of the same shape, for a sampler that adds noise.
        """
        return to_uint8(self.decode(self.sample(noise, sampler, fresh))).cpu()

    def generate(self, num_images: int, seed: int, sampler: Sampler | None = None, batch_size: int = 64) -> Tensor:
        """Generate faces (num_images, 3, R, R) uint8.

        Face i depends on (seed, i) alone, to one level of 255 for any batch size.

        Args:
            num_images: how many.
            seed: names the faces.
            sampler: from noise to latents; the pipeline's unless given.
            batch_size: faces at once.

        Raises:
            ValueError: num_images is below 1.
        """
        if num_images < 1:
            raise ValueError(f"num_images={num_images} must be at least 1")
        names = [(seed, number) for number in range(num_images)]
        return torch.cat(list(self.faces(names, sampler or self.sampler, batch_size)))


def generator_of(seed: int, number: int) -> torch.Generator:
    """Return a CPU generator whose complete state is a hash of (seed, number). `manual_seed` keeps 32 bits only."""
    generator = torch.Generator()
    state = generator.get_state()
    # The serialized Mersenne Twister: 24 bytes of header, then 624 words of 32 bits, each stored in 64.
    state[24 : 24 + 8 * 624].numpy().view(np.uint64)[:] = np.random.SeedSequence((seed, number)).generate_state(624)
    return generator.set_state(state)
