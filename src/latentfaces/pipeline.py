"""FacePipeline: a trained run as an object."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentfaces.autoencoder import VAE, Skips
from latentfaces.data.arrays import open_array
from latentfaces.data.images import to_uint8
from latentfaces.diffusion import (
    AutoGuidance,
    Conditioning,
    Denoiser,
    DPMpp2MSampler,
    FlowMapSampler,
    Guidance,
    NoGuidance,
    PerSampleNoise,
    Predictor,
    Sampler,
)
from latentfaces.errors import UserError
from latentfaces.model_folder import open_model
from latentfaces.nn import best_device, weights_hash
from latentfaces.run import GUIDE, LABELS, Run, build, open_run

PIXELS_AT_ONCE = {"cuda": 2**20, "cpu": 2**18}
"""Pixels per call of encoder or decoder: on a CPU 4 images of 256 x 256. More take memory and are hardly faster."""
Name = tuple[int, int]
"""Seed and number of a sample."""
AUTO_WEIGHT = 1.5
"""Default guidance weight of a run with a guide, as in conf/guidance/auto.yaml."""


class FacePipeline:
    """VAE of a run and, in stage 2, the denoiser of its latents.

    Args:
        vae: the trained VAE.
        denoiser: the trained denoiser; None for a run of stage 1, which can only reconstruct.
        resolution: height and width of the images, in pixels.
        device: device of all networks; the best available by default.
        bfloat16: use autocast to bfloat16: faster, but images then depend slightly on the batch size.
        find_guide: loads an early checkpoint of the denoiser, for `AutoGuidance`.
        guidance: guidance of the denoiser; none by default.
        sampler: default sampler; `DPMpp2MSampler(20, eta=1.0)` by default.
        ema: width of the weights' average; None for that of the best weights.
        conditioning: labels of a denoiser that was trained with them.
        label_rows: labels (N, L) of the training images, from which labels that are not requested are drawn.
    """

    def __init__(
        self,
        vae: VAE,
        denoiser: Denoiser | None,
        resolution: int,
        device: torch.device | str | None = None,
        bfloat16: bool = False,
        find_guide: Callable[[], Denoiser] | None = None,
        guidance: Guidance | None = None,
        sampler: Sampler | None = None,
        ema: float | None = None,
        conditioning: Conditioning | None = None,
        label_rows: Tensor | None = None,
    ) -> None:
        self.device, self.bfloat16 = torch.device(device or best_device()), bfloat16
        self.vae = vae.to(self.device)
        self.denoiser = denoiser.to(self.device) if denoiser is not None else None
        self.find_guide = find_guide
        self.resolution = resolution
        self.guidance: Guidance = guidance or NoGuidance()
        self.sampler: Sampler = sampler or DPMpp2MSampler(20, eta=1.0)
        self.ema = ema
        self.conditioning, self.label_rows = conditioning, label_rows
        self.asked = torch.empty(0)
        self.ask({})

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
        """Load the best weights of a run, as from "outputs/ldm/faces".

        Guidance, sampler and ema default to those that task=tune found for the best weights. Without tuning they are
        `AutoGuidance` if the run has a guide, and `DPMpp2MSampler(20, eta=1.0)`, shifted if training was. The tuned
        ema belongs to the tuned guidance, so another guidance ignores both.

        Args:
            run: the run or its folder.
            device, bfloat16: as for the class.
            ema: width of the weights' average, in (0, 0.28), instead of the best weights.
            guidance, sampler: instead of the run's own.

        Raises:
            UserError: the run has no weights for these arguments.
        """
        run = run if isinstance(run, Run) else open_run(run)
        vae, resolution = run.module("autoencoder", "best_vae"), run.config["data"]["resolution"]
        if run.stage == "vae":
            if ema is not None:
                raise UserError(f"ema={ema} has no effect on a run of stage 1. Leave it out.")
            return cls(vae, None, resolution, device, bfloat16)
        tuned = run.tuned() if guidance is None or sampler is None else None
        if guidance is None and tuned:
            guidance, ema = build(tuned["guidance"]), tuned["ema"] if ema is None else ema
        elif guidance is None and run.has_guide:
            guidance = AutoGuidance(AUTO_WEIGHT)
        if sampler is None:
            sampler = build(tuned["sampler"]) if tuned else untuned_sampler(run)
        denoiser = run.module("denoiser", "best_denoiser") if ema is None else run.averaged("denoiser", ema)
        find_guide = partial(run.module, "denoiser", GUIDE) if run.has_guide else None
        conditioning = build(run.config["model"].get("conditioning"))
        rows = label_rows(run.folder / LABELS, conditioning)
        parts = (find_guide, guidance, sampler, ema, conditioning, rows)
        return cls(vae, denoiser, resolution, device, bfloat16, *parts)

    @classmethod
    def from_pretrained(
        cls, place: str | Path, device: torch.device | str | None = None, bfloat16: bool = False
    ) -> "FacePipeline":
        """Load a folder of `latentfaces-export`, or ID or ID@REVISION of the hub, with its guidance and its sampler.

        It needs torch, safetensors, pillow and numpy alone. The folder may be untrusted.

        Raises:
            UserError: there is no such folder, or it is damaged.
        """
        return cls.load(open_model(place), device, bfloat16)

    @cached_property
    def guide(self) -> Denoiser | None:
        """Early checkpoint of the denoiser, loaded at first access."""
        return self.find_guide().to(self.device) if self.find_guide is not None else None

    @property
    def guide_in_use(self) -> Denoiser | None:
        """The guide, if the guidance uses it."""
        return self.guide if self.guidance.uses_guide else None

    def ask(self, labels: Mapping[str, object]) -> None:
        """Request labels, as {"Smiling": 1, "Hair": "blond", "Male": "free"}, for all further samples.

        Labels that are not requested are drawn from the training images; "free" leaves one unknown.

        Raises:
            UserError: the run has no such label or value.
        """
        if self.conditioning is not None:
            self.asked = self.conditioning.parse(labels)
        elif labels:
            raise UserError(
                f"labels.{next(iter(labels))} has no effect: this run was trained without labels. Leave it out, or "
                "train with data.labels=FILE."
            )

    def labels_for(self, names: Sequence[Name]) -> Tensor:
        """Return the labels (n, L) of the samples with these names; not finite where unknown."""
        if self.conditioning is None:
            return torch.empty(len(names), 0)
        rows = torch.empty(0) if self.label_rows is None else self.label_rows
        return self.conditioning.draw(self.asked, rows, names)

    def described_labels(self, names: Sequence[Name]) -> list[dict[str, float | str]]:
        """Return the known labels of the samples with these names, by the names of the labels."""
        return [self.conditioning.describe(row) if self.conditioning else {} for row in self.labels_for(names)]

    def condition(self, labels: Tensor | None = None) -> Tensor | None:
        """Return the condition (n, size) of labels (n, L), by default that of the requested labels: (1, size)."""
        if self.conditioning is None:
            return None
        return self.conditioning(self.asked[None] if labels is None else labels).to(self.device)

    def predictor(self, condition: Tensor | None = None) -> Predictor:
        """Return the guided denoiser for a condition (n, size) or (1, size), by default that of the requested labels.

        Raises:
            UserError: there is no denoiser, or the guidance does not fit it.
        """
        condition = self.condition() if condition is None else condition
        denoiser, guide = self.required_denoiser().given(condition), self.guide_in_use
        return self.guidance(denoiser, guide and guide.given(condition))

    def required_denoiser(self) -> Denoiser:
        """Return the denoiser.

        Raises:
            UserError: the run is of stage 1.
        """
        if self.denoiser is None:
            raise UserError(
                "This run is of stage 1, whose prior decodes to noise. Train stage 2 with `python train.py model=ldm` "
                "and sample that run."
            )
        return self.denoiser

    @property
    def weights(self) -> str:
        """Hashes of the VAE, of the denoiser if there is one, and of the guide if it is used."""
        parts = (self.vae, self.denoiser, self.guide_in_use)
        return "-".join(weights_hash(part) for part in parts if part is not None)

    def compile(self) -> None:
        """Compile the denoiser at its first call, which takes minutes on a CPU."""
        for part in (self.denoiser, self.guide_in_use):
            if part is not None:
                part.compile()

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (c, h, w) of the latents of an image."""
        side = self.resolution // self.vae.downsampling
        return self.vae.latent_channels, side, side

    def draws(self, names: Sequence[Name]) -> Callable[[], Tensor]:
        """Return a source of noise (n, c, h, w) for these names: each row depends on its own name alone."""
        return PerSampleNoise([generator_of(*name) for name in names], self.latent_shape, self.device)

    def noise(self, names: Sequence[Name]) -> Tensor:
        """Return initial noise (n, c, h, w) for these names."""
        return self.draws(names)()

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context with autocast to bfloat16 if the pipeline uses it."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else nullcontext()

    @torch.no_grad()
    def in_parts(self, function: Callable[[slice], Tensor], count: int) -> Tensor:
        """Concatenate the results of a function of slices of `count` images, which are small enough for memory."""
        at_once = max(1, PIXELS_AT_ONCE.get(self.device.type, 2**18) // self.resolution**2)
        with self.autocast():
            return torch.cat([function(slice(start, start + at_once)) for start in range(0, count, at_once)])

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (n, 3, R, R) in [-1, 1] to normalized latents (n, c, h, w), the mode of the posterior."""

        def encoded(part: slice) -> Tensor:
            return self.vae.encode(images[part].to(self.device)).mode()

        return self.vae.normalize(self.in_parts(encoded, len(images)))

    def decode(self, latents: Tensor, skips: Skips | None = None) -> Tensor:
        """Decode normalized latents (n, c, h, w) to images (n, 3, R, R) in [-1, 1].

        Args:
            latents: latents of samples or photos.
            skips: encoder features for the skip connections, see `VAE.decode`.
        """

        def decoded(part: slice) -> Tensor:
            features = None if skips is None else [skip[part] for skip in skips]
            return self.vae.decode(self.vae.denormalize(latents[part]), features)

        return self.in_parts(decoded, len(latents))

    def reconstruct(self, images: Tensor, skips: float = 0.0) -> Tensor:
        """Encode and decode images (n, 3, R, R) in [-1, 1].

        Args:
            images: the images.
            skips: strength, in [0, 1], of the VAE's skip connections; at 0 the decoder sees the latents alone.
        """

        def reconstructed(part: slice) -> Tensor:
            posterior, features = self.vae.encode_with_skips(images[part].to(self.device))
            return self.vae.decode(posterior.mode(), [skips * feature for feature in features] if skips else None)

        return self.in_parts(reconstructed, len(images))

    def sample(
        self,
        noise: Tensor,
        sampler: Sampler,
        fresh: Callable[[], Tensor] | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Map noise (n, c, h, w) to normalized latents; `fresh` as for `Sampler`, `condition` as for `images`."""
        with self.autocast():
            return sampler(self.predictor(condition), noise, fresh)

    def invert(self, images: Tensor, sampler: Sampler, condition: Tensor | None = None) -> Tensor:
        """Map images (n, 3, R, R) in [-1, 1] to noise (n, c, h, w) from which `sampler` generates them approximately.

        `condition` is as for `images`.

        Raises:
            UserError: the sampler adds noise, so it cannot be inverted.
        """
        latents = self.encode(images)
        with self.autocast():
            return sampler.invert(self.predictor(condition), latents)

    def faces(self, names: Sequence[Name], sampler: Sampler, batch_size: int, labels: Tensor | None = None) -> Tensor:
        """Return the samples (n, 3, R, R) uint8 with these names, on the CPU.

        Their labels (n, L) are those of `labels_for` by default.
        """
        condition = self.condition(self.labels_for(names) if labels is None else labels)
        faces = []
        for start in range(0, len(names), batch_size):
            batch = slice(start, start + batch_size)
            draw = self.draws(names[batch])
            faces.append(self.images(draw(), sampler, draw, None if condition is None else condition[batch]))
        return torch.cat(faces)

    def images(
        self,
        noise: Tensor,
        sampler: Sampler,
        fresh: Callable[[], Tensor] | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Map noise (b, c, h, w) to samples (b, 3, R, R) uint8 on the CPU: the one path from noise to images.

        Args:
            noise: initial noise.
            sampler: maps noise to latents.
            fresh: returns further noise of the same shape, for a sampler that adds noise.
            condition: condition (b, size), by default that of the requested labels.
        """
        return to_uint8(self.decode(self.sample(noise, sampler, fresh, condition))).cpu()

    def generate(
        self,
        num_images: int,
        seed: int,
        sampler: Sampler | None = None,
        batch_size: int = 64,
        labels: Mapping[str, object] | None = None,
    ) -> Tensor:
        """Generate samples (num_images, 3, R, R) uint8.

        Sample i depends on (seed, i) alone, to one level of 255 for any batch size.

        Args:
            num_images: number of samples.
            seed: seed of the noise.
            sampler: maps noise to latents; the pipeline's by default.
            batch_size: samples at once.
            labels: request these labels first, see `ask`.
        """
        if labels is not None:
            self.ask(labels)
        names = [(seed, number) for number in range(num_images)]
        return self.faces(names, sampler or self.sampler, batch_size)


def untuned_sampler(run: Run) -> Sampler | None:
    """Return the sampler of a run without tuning; None for that of the class."""
    if run.is_fast:
        return FlowMapSampler()
    if run.config["model"]["loss"]["time_sampler"].get("mean") == "auto":
        return DPMpp2MSampler(20, "auto", eta=1.0)  # shifted as in training
    return None


def label_rows(path: Path, conditioning: Conditioning | None) -> Tensor | None:
    """Read the labels (N, L) of a run's training images, if it has any.

    Raises:
        UserError: the file does not have the labels of the run.
    """
    if conditioning is None or not path.exists():
        return None
    rows = np.array(open_array(path), np.float32)
    if rows.ndim != 2 or rows.shape[1] != len(conditioning.labels):
        raise UserError(f"{path} does not fit the labels in the config of its run. Restore both files.")
    return torch.from_numpy(rows)


def generator_of(seed: int, number: int) -> torch.Generator:
    """Return a CPU generator whose complete state is a hash of (seed, number). `manual_seed` keeps 32 bits only."""
    generator = torch.Generator()
    state = generator.get_state()
    # The serialized Mersenne Twister: 24 bytes of header, then 624 words of 32 bits, each stored in 64.
    state[24 : 24 + 8 * 624].numpy().view(np.uint64)[:] = np.random.SeedSequence((seed, number)).generate_state(624)
    return generator.set_state(state)
