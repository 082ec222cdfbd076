"""ONNX: the same faces with numpy and onnxruntime."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.stand_ins import SCHEDULES, White
from PIL import Image
from torch import Tensor

from latentfaces.autoencoder import TAESD, VAE
from latentfaces.data.images import to_uint8
from latentfaces.diffusion import (
    AutoGuidance,
    Conditioning,
    DDIMSampler,
    DDPMSampler,
    Denoiser,
    DiT,
    DPMpp2MSampler,
    EulerSampler,
    FlowMapSampler,
    Guidance,
    HeunSampler,
    LabelGuidance,
    NoGuidance,
    NoiseSchedule,
    Predictor,
    RectifiedFlow,
    Sampler,
)
from latentfaces.export import onnx
from latentfaces.export.onnx import decoder_program, denoiser_program, write_onnx
from latentfaces.export.plan import sampling_plan
from latentfaces.labels import Label
from latentfaces.marks import GENERATED
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks.identify import read_source

sample_onnx = pytest.importorskip("latentfaces.export.sample_onnx", exc_type=ImportError)
SAMPLERS = [
    EulerSampler(5),
    HeunSampler(5),
    DDIMSampler(5, eta=0.5),
    DDPMSampler(5),
    DPMpp2MSampler(5),
    DPMpp2MSampler(5, shift=2.0, eta=1.0),
    DPMpp2MSampler(5, shift="auto"),
]


def flow_map() -> Denoiser:
    """Flow map with random weights."""
    torch.manual_seed(0)
    network = DiT(4, 16, 1, 2, 2, flow_map=True)
    for parameter in network.parameters():  # the initial network returns 0
        torch.nn.init.normal_(parameter, std=0.3)
    return Denoiser(network, RectifiedFlow()).eval().requires_grad_(False)


def floats(pipeline: FacePipeline, names: list[tuple[int, int]]) -> Tensor:
    draw = pipeline.draws(names)
    return pipeline.decode(pipeline.sample(draw(), pipeline.sampler, draw)).cpu()


def test_faces_are_ours(exported: Path) -> None:
    names = [(0, 0), (0, 1), (2**31, 7)]
    ours = floats(FacePipeline.from_pretrained(exported / "out", device="cpu"), names).numpy()
    theirs = sample_onnx.sample(exported / "out", names)
    assert np.abs(ours - theirs).max() < 1e-3
    assert np.abs(ours[0] - ours[1]).max() > 0.03  # they depend on the noise
    assert np.abs(sample_onnx.sample(exported / "out", names[1:2]) - ours[1:2]).max() < 1e-3


def test_the_shipped_script_needs_nothing_of_ours(exported: Path, tmp_path: Path) -> None:
    script = exported / "out" / "sample_onnx.py"
    text = script.read_text()
    assert "torch" not in text.replace("torch.randn", "")
    assert "latentfaces" not in text
    assert len(text.splitlines()) <= 60
    subprocess.run([sys.executable, script, "17", "5"], cwd=tmp_path, check=True)  # more than a batch of 16
    ours = to_uint8(floats(FacePipeline.from_pretrained(exported / "out", device="cpu"), [(5, 0), (5, 16)]))
    made = [np.asarray(Image.open(tmp_path / f"{number:05d}.png")).transpose(2, 0, 1) for number in (0, 16)]
    assert (ours.int() - torch.from_numpy(np.stack(made)).int()).abs().max() <= 1
    assert len(list(tmp_path.glob("*.png"))) == 17
    assert read_source(tmp_path / "00000.png") == GENERATED


@pytest.mark.parametrize("shape", [(4, 8, 8), (3, 5, 5), (1, 4, 4)])
def test_noise_is_that_of_torch(shape: tuple[int, int, int], exported: Path) -> None:
    pipeline = FacePipeline.from_pretrained(exported / "out", device="cpu")
    pipeline.__dict__["latent_shape"] = shape
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FacePipeline, "latent_shape", shape)
        draw = pipeline.draws([(3, 4)])
    bits = np.random.MT19937()
    key = np.random.SeedSequence((3, 4)).generate_state(624)
    bits.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": 624}}
    for _ in range(2):
        ours = draw().numpy().reshape(-1)
        assert np.abs(sample_onnx.gaussian(bits, ours.size) - ours).max() < 1e-5


def replay(plan: list[dict[str, Any]], predictor: Predictor, noises: list[Tensor]) -> Tensor:
    """Follow a plan."""
    terms: list[Tensor] = []
    for step in plan:
        if step["kind"] == "noise":
            terms.append(noises.pop(0))
            continue
        x = torch.stack([weight * term for weight, term in zip(step["x"], terms, strict=True)]).sum(0)
        if step["kind"] == "latents":
            return x
        terms.append(predictor.predict(x, step["t"]))
    raise AssertionError


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_a_plan_is_its_sampler(sampler: Sampler, schedule: NoiseSchedule) -> None:
    predictor = AutoGuidance(2.0, start=0.8)(White(0.5, schedule), White(0.7, schedule))
    torch.manual_seed(0)
    noises = [torch.randn(2, 4, 48, 48, dtype=torch.float64) for _ in range(6)]
    queue = noises[1:]
    expected = sampler(predictor, noises[0], lambda: queue.pop(0))
    plan = sampling_plan(predictor, sampler, (4, 48, 48))
    assert torch.allclose(replay(plan, predictor, [*noises]), expected, atol=1e-6)
    guided = [step["guided"] for step in plan if step["kind"] == "denoise"]
    assert 0 < sum(guided) < len(guided)
    assert json.loads(json.dumps(plan)) == plan


def test_programs_of_torch_export_take_any_batch(exported: Path) -> None:
    pipeline = FacePipeline.from_pretrained(exported / "out", device="cpu")
    x, t = pipeline.noise([(0, number) for number in range(5)]), torch.full((5,), 0.25)
    images = decoder_program(pipeline).module()(x)
    assert torch.allclose(images, pipeline.decode(x), atol=1e-5)
    denoise = denoiser_program(pipeline).module()
    assert torch.allclose(denoise(x, t, torch.ones(5)), pipeline.predictor().predict(x, 0.25), atol=1e-5)
    assert pipeline.denoiser is not None
    assert torch.allclose(denoise(x, t, torch.zeros(5)), pipeline.denoiser.predict(x, 0.25), atol=1e-5)


@pytest.mark.parametrize("guidance", [LabelGuidance(2.0, auto_weight=1.5), NoGuidance()])
def test_labels_are_an_input_of_the_program(guidance: Guidance) -> None:
    torch.manual_seed(0)
    conditioning = Conditioning([Label("Smiling", "binary"), Label("Hair", "category", ("dark", "blond"))])

    def denoiser() -> Denoiser:
        network = DiT(4, 16, 1, 2, 2, label_channels=conditioning.size)
        for parameter in network.parameters():  # the initial network returns 0
            torch.nn.init.normal_(parameter, std=0.3)
        return Denoiser(network, RectifiedFlow()).eval().requires_grad_(False)

    vae = VAE(4, 8, (1, 2), 1, attention=False).eval()
    options = {"find_guide": denoiser, "guidance": guidance, "conditioning": conditioning}
    pipeline = FacePipeline(vae, denoiser(), 16, "cpu", **options)  # type: ignore[arg-type]
    x, t = torch.randn(3, *pipeline.latent_shape), torch.full((3,), 0.5)
    condition = conditioning(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, torch.nan]]))
    guided = denoiser_program(pipeline).module()(x, t, torch.ones(3), condition)
    expected = pipeline.predictor(condition).predict(x, 0.5)
    assert torch.allclose(guided, expected, atol=1e-5)
    assert (expected[0] - pipeline.predictor(condition[[1, 1, 1]]).predict(x, 0.5)[0]).abs().max() > 0.01


@pytest.mark.parametrize("num_steps", [1, 4])
def test_a_plan_of_a_flow_map_is_its_sampler(num_steps: int) -> None:
    denoiser, sampler = flow_map(), FlowMapSampler(num_steps)
    noise = torch.randn(2, 4, 8, 8)
    plan = sampling_plan(denoiser, sampler, noise.shape)
    terms = [noise.double()]
    for step in plan[1:]:
        x = sum(weight * term for weight, term in zip(step["x"], terms, strict=True))
        if step["kind"] == "latents":
            assert torch.allclose(x, sampler(denoiser, noise).double(), atol=1e-5)
        else:
            t, t_next = (torch.full((2,), step[key]) for key in ("t", "t_next"))
            terms.append(denoiser(x.float(), t, None, t_next).double())
    assert len(terms) == 1 + num_steps


def test_few_steps_on_a_pretrained_vae_give_our_faces(tmp_path: Path) -> None:
    pipeline = FacePipeline(TAESD(4).eval(), flow_map(), 32, "cpu", sampler=FlowMapSampler(2))
    write_onnx(pipeline, tmp_path)
    ours = floats(pipeline, [(0, 0), (0, 1)]).numpy()
    assert np.abs(ours - sample_onnx.sample(tmp_path, [(0, 0), (0, 1)])).max() < 1e-3
    assert np.abs(ours[0] - ours[1]).max() > 0.01


def test_what_cannot_be_exported_is_one_line(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = FacePipeline.from_pretrained(exported / "out", device="cpu")

    def fail(pipeline: FacePipeline) -> Any:
        raise torch.fx.experimental.symbolic_shapes.ConstraintViolationError("no\nbatch")

    monkeypatch.setattr(onnx, "decoder_program", fail)
    write_onnx(pipeline, tmp_path)
    said = "decoder.onnx is left out: this network cannot be exported (ConstraintViolationError: no batch).\n"
    assert capsys.readouterr().out == said
    monkeypatch.setattr(onnx, "NEEDED", ("not_installed",))
    write_onnx(pipeline, tmp_path)
    assert "pip install 'latentfaces[onnx]'" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
