"""ONNX of the decoder and of one evaluation of the guided denoiser, with a sampler that needs no torch."""

import contextlib
import importlib.util
import io
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from latentfaces.autoencoder import VAE
from latentfaces.diffusion import AutoGuidance, Denoiser, Guidance, InternalGuidance, LabelGuidance
from latentfaces.diffusion.schedule import per_sample
from latentfaces.errors import missing_extra, no_room, reason
from latentfaces.export.plan import sampling_plan
from latentfaces.marks import GENERATED, xmp
from latentfaces.pipeline import FacePipeline

PLAN, SAMPLER = "sampling.json", "sample_onnx.py"
NEEDED = ("onnx", "onnxscript")


class Decode(nn.Module):
    """Decoder: maps normalized latents (b, c, h, w) to images (b, 3, R, R) in [-1, 1]."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        return self.vae.decode(self.vae.denormalize(latents))


class Denoise(nn.Module):
    """Guided denoiser: maps x_t (b, c, h, w), t (b,), guided (b,), 1 or 0, and the condition (b, n) to the prediction.

    A model without labels has no condition. A flow map has t_next (b,), the end of the step, and no guidance.
    """

    def __init__(self, denoiser: Denoiser, guide: Denoiser | None, guidance: Guidance) -> None:
        super().__init__()
        self.denoiser, self.guide, self.guidance = denoiser, guide, guidance

    def forward(
        self, x_t: Tensor, t: Tensor, guided: Tensor, condition: Tensor | None = None, t_next: Tensor | None = None
    ) -> Tensor:
        if t_next is not None:
            return self.denoiser(x_t, t, condition, t_next)
        guidance, guide = self.guidance, self.guide
        if isinstance(guidance, InternalGuidance):
            prediction, weaker = self.denoiser.heads(x_t, t, condition)
            return prediction + per_sample(guided) * (guidance.weight - 1) * (prediction - weaker)
        prediction = self.denoiser(x_t, t, condition)
        away = torch.zeros_like(prediction)
        if isinstance(guidance, AutoGuidance | LabelGuidance) and guide is not None:
            weight = guidance.weight if isinstance(guidance, AutoGuidance) else guidance.auto_weight
            away = away + (weight - 1) * (prediction - guide(x_t, t, condition))
        if isinstance(guidance, LabelGuidance):
            assert condition is not None
            away = away + (guidance.weight - 1) * (prediction - self.denoiser(x_t, t, torch.zeros_like(condition)))
        return prediction + per_sample(guided) * away


def decoder_program(pipeline: FacePipeline) -> ExportedProgram:
    """Export `Decode` with torch.export, for any batch size."""
    latents = torch.zeros(2, *pipeline.latent_shape, device=pipeline.device)
    return torch.export.export(Decode(pipeline.vae).eval(), (latents,), dynamic_shapes=({0: Dim("batch")},))


def denoiser_program(pipeline: FacePipeline) -> ExportedProgram:
    """Export `Denoise` with torch.export, for any batch size."""
    assert pipeline.denoiser is not None
    module = Denoise(pipeline.denoiser, pipeline.guide_in_use, pipeline.guidance).eval()
    x_t = torch.zeros(2, *pipeline.latent_shape, device=pipeline.device)
    t = torch.full((2,), 0.5, device=pipeline.device)
    inputs = {"x_t": x_t, "t": t, "guided": torch.ones_like(t)}
    if pipeline.conditioning is not None:
        inputs["condition"] = x_t.new_zeros(2, pipeline.conditioning.size)
    ends = {"t_next": torch.zeros_like(t)} if pipeline.denoiser.is_flow_map else {}
    shapes = {name: {0: Dim("batch")} for name in [*inputs, *ends]}
    return torch.export.export(module, tuple(inputs.values()), ends, dynamic_shapes=shapes)


def write_onnx(pipeline: FacePipeline, folder: Path) -> None:
    """Write decoder.onnx and, in stage 2, denoiser.onnx with the plan and the sampler that follows it.

    Prints one line for what cannot be exported.
    """
    if any(importlib.util.find_spec(name) is None for name in NEEDED):
        print(missing_extra("ONNX is left out. It", "onnx"))
        return
    parts = {"decoder": decoder_program}
    if pipeline.denoiser is not None:
        parts["denoiser"] = denoiser_program
    for name, program in parts.items():
        path = folder / f"{name}.onnx"
        try:
            with torch.no_grad(), quiet():
                torch.onnx.export(program(pipeline), f=path, external_data=False, verbose=False)
        except Exception as error:  # of the many kinds of torch.export
            path.unlink(missing_ok=True)
            if no_room(error):
                raise
            cause = f"{type(error).__name__}: {reason(error)}"
            print(f"{name}.onnx is left out: this network cannot be exported ({cause}).")
            return
    if pipeline.denoiser is not None:
        plan = {
            "latent_shape": pipeline.latent_shape,
            "condition_size": pipeline.conditioning.size if pipeline.conditioning else 0,
            "steps": sampling_plan(pipeline.predictor(), pipeline.sampler, pipeline.latent_shape),
            "xmp": xmp(GENERATED),
        }
        (folder / PLAN).write_text(json.dumps(plan))
        shutil.copyfile(Path(__file__).with_name(SAMPLER), folder / SAMPLER)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide what the exporter prints and warns of in every export."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
