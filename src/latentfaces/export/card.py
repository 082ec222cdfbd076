"""Model card: README.md of a model folder. It has only figures that the run has."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from latentfaces import __version__
from latentfaces.autoencoder import PretrainedVAE, is_pretrained
from latentfaces.errors import UserError
from latentfaces.evaluation.protocol import RESULT, as_markdown
from latentfaces.files import read_json
from latentfaces.pipeline import FacePipeline
from latentfaces.run import Run, config_of, in_words, open_run

FFHQ_TERMS = "CC BY-NC-SA 4.0"
"""License of FFHQ, whose images are for non-commercial use alone."""
METRICS = {
    "fid": "FID",
    "frechet_distance": "Frechet distance",
    "kernel_distance": "kernel distance",
    "precision": "precision",
    "recall": "recall",
}
AUDIT = {
    "memorized_fraction": "fraction with a nearer training image than 99 % of held-out images have",
    "duplicates": "fraction with a nearer other sample than 99 % of held-out images have among themselves",
}
RESULTS = {"test/loss": "loss of held-out images", "test/psnr": "PSNR, dB", "test/ssim": "SSIM", "test/lpips": "LPIPS"}


def model_card(run: Run, pipeline: FacePipeline, files: Sequence[str]) -> str:
    """Return the model card of a run as Markdown."""
    data, weights = data_of(run), pipeline.weights
    evaluation, row = newest(run, "metrics.json", weights), newest(run, RESULT, weights)
    sections = {
        "": summary(run, pipeline),
        "Use": usage(pipeline, files),
        "Training data": training_data(data),
        "Training": table(recipe(run, pipeline)),
        "Metrics": metrics(run, evaluation),
        "Numbers as reported in papers": as_markdown(row) if row else "",
        "Memorization audit": audit(evaluation),
        "Intended use": INTENDED_USE,
        "Limits": limits(pipeline, data),
    }
    parts = [f"## {title}\n\n{text}" if title else text for title, text in sections.items() if text]
    return "\n\n".join([front_matter(data, pipeline), *parts]) + "\n"


INTENDED_USE = """Research on generative models, teaching, and images of people who do not exist.
Do not use the images to deceive, to harass, or to represent a real person.
Image files are marked as generated (IPTC `DigitalSourceType`). Keep the mark when you publish one."""


Manifest = Mapping[str, Any]
"""Manifest of a pack; empty where it is not on this machine."""


def data_of(run: Run) -> list[Manifest]:
    """Return the manifests of the images of the run, and of the earlier runs that its weights are from."""
    pack = run.config.get("pack")
    manifests: list[Manifest] = [read_json(Path(pack) / "manifest.json") if pack else {}]
    for name in (run.config.get("vae"), run.config.get("init")):
        if name is not None and not is_pretrained(name):
            try:
                manifests += data_of(open_run(name))
            except UserError:
                manifests.append({})
    return manifests


def licence_of(manifest: Manifest) -> str | None:
    """Return the terms of the images, if they are known."""
    return manifest.get("source", {}).get("licence")


def hub_license(data: Sequence[Manifest]) -> str:
    """Return the license as hubs name it. What comes from FFHQ is under its license."""
    return "cc-by-nc-sa-4.0" if FFHQ_TERMS in map(licence_of, data) else "other"


def front_matter(data: Sequence[Manifest], pipeline: FacePipeline) -> str:
    """Return the header that hubs read."""
    tag = "" if pipeline.denoiser is None else "pipeline_tag: unconditional-image-generation\n"
    return f"---\nlibrary_name: latentfaces\n{tag}license: {hub_license(data)}\ntags: [latent-diffusion, faces]\n---"


def summary(run: Run, pipeline: FacePipeline) -> str:
    """Return title and first sentence."""
    what = "VAE" if pipeline.denoiser is None else "Latent diffusion model"
    size = f"{pipeline.resolution} x {pipeline.resolution} pixels"
    image = "" if pipeline.denoiser is None else "\n\n![Samples of seed 0](grid.png)"
    return f"# {run.config.get('name', 'faces')}\n\n{what} of faces, {size}, trained with latentfaces.{image}"


def usage(pipeline: FacePipeline, files: Sequence[str]) -> str:
    """Return the commands that sample."""
    call = "images = pipeline.reconstruct(images)  # (n, 3, R, R) in [-1, 1]"
    if pipeline.denoiser is not None:
        call = "faces = pipeline.generate(16, seed=0)  # (16, 3, R, R) uint8"
    text = (
        "```python\nfrom latentfaces.pipeline import FacePipeline\n\n"
        f'pipeline = FacePipeline.from_pretrained("FOLDER_OR_HUB_ID")\n{call}\n```'
    )
    if "sample_onnx.py" in files:
        text += (
            "\n\nWithout torch, the same faces:\n\n```bash\npython sample_onnx.py 16 0  # number of images, seed\n```"
        )
    return text


def training_data(data: Sequence[Manifest], product: str = "these weights") -> str:
    """Return what the images are, and their terms, which also apply to the product."""
    first, *earlier = dict.fromkeys(map(described_data, data))  # without repetitions
    parts = [first]
    if earlier:
        parts += ["The VAE, or the run that training started from, was trained on other images:", *earlier]
    words = [word for manifest in data for word in (licence_of(manifest) or "").upper().replace("-", " ").split()]
    if "NC" in words:  # non-commercial
        parts.append(f"The license of the images excludes commercial use. That applies to {product} too.")
    return "\n\n".join(parts)


def described_data(manifest: Manifest) -> str:
    """Return number, name and terms of images."""
    if not manifest:
        return "Not recorded: the pack was not on this machine."
    held_out = len(manifest["split"]["val"])
    return table(
        {
            "images": f"{manifest['num_images']:,}, of which {held_out:,} were held out",
            "source": manifest.get("source", {}).get("name", "not recorded"),
            "license": licence_of(manifest) or "not recorded",
        }
    )


def recipe(run: Run, pipeline: FacePipeline) -> dict[str, str]:
    """Return how the run was trained, and how it samples."""
    config, result = run.config, run.result()
    model, networks = config["model"], {"VAE": pipeline.vae, "denoiser": pipeline.denoiser}
    rows = {name: described(part) for name, part in networks.items() if part is not None}
    if isinstance(pipeline.vae, PretrainedVAE):
        rows["VAE is from"] = f"{without_path(pipeline.vae.source)} (license: {pipeline.vae.licence or 'not recorded'})"
    if pipeline.denoiser is not None:
        rows["noise schedule, target"] = f"{type(pipeline.denoiser.schedule).__name__}, {pipeline.denoiser.target}"
        rows["sampler"] = in_words(config_of(pipeline.sampler))
        rows["guidance"] = in_words(config_of(pipeline.guidance))
        rows["average of the weights"] = "best weights" if pipeline.ema is None else f"ema={pipeline.ema:.3g}"
    rows["optimizer"] = in_words(model.get("optimizer") or {})
    rows["batch size"] = str(config.get("data", {}).get("batch_size", ""))
    rows["steps"] = f"{result['steps']:,}" if "steps" in result else ""
    rows["hours"] = f"{result['minutes'] / 60:.2f}, this stage alone" if "minutes" in result else ""
    rows["precision"] = str(config.get("trainer", {}).get("precision", ""))
    rows["latentfaces"] = f"{config.get('version', 'before 0.1.0')}, exported by {__version__}"
    return {key: value for key, value in rows.items() if value}


def without_path(source: str) -> str:
    """Return where a pretrained VAE is from, without the path of a folder of this machine."""
    kind, _, place = source.partition(":")
    is_of_hub = re.fullmatch(r"[^/~.][^/]*/.+ at [0-9a-f]{40}", place)  # with its commit
    return source if is_of_hub else f"{kind}:{Path(place).name}"


def described(module: nn.Module) -> str:
    """Return class and size of a network."""
    network = getattr(module, "network", module)
    count = sum(parameter.numel() for parameter in module.parameters())
    return f"{type(network).__name__}, {count:,} parameters"


def newest(run: Run, name: str, weights: str) -> dict[str, Any]:
    """Return the newest file `name` of task=evaluate that measured these weights; empty if there is none."""
    return next((found for _, found in run.evaluations(name) if found.get("weights") == weights), {})


def metrics(run: Run, found: Mapping[str, Any]) -> str:
    """Return the metrics of training, and those of task=evaluate."""
    result = run.result()
    rows = {name: f"{result[key]:.4g}" for key, name in RESULTS.items() if key in result}
    rows |= {name: f"{found[key]:.4g}" for key, name in METRICS.items() if key in found}
    if not rows:
        return "Not measured."
    if found:
        rows["compared"] = f"{found['num_images']:,} {found['kind']} with {found['num_photos']:,} held-out images"
        rows["features"] = Path(str(found["features"])).name
        rows |= found.get("sampling", {})
    return table(rows)


def audit(found: Mapping[str, Any]) -> str:
    """Return whether samples repeat training images."""
    rows = {name: f"{found[key]:.4g}" for key, name in AUDIT.items() if key in found}
    return table(rows) + "\n\nBoth are 0.01 for new real images." if rows else "Not measured."


def limits(pipeline: FacePipeline, data: Sequence[Manifest]) -> str:
    """Return what the model cannot do."""
    lines = [
        f"- Images have {pipeline.resolution} x {pipeline.resolution} pixels.",
        "- Faces follow the training images: groups that are rare there are rare and worse here.",
        "- A generated face may resemble a real person by chance, or by memorization.",
    ]
    if None in map(licence_of, data):
        lines.append("- The terms of the training images are not recorded. Check them before you publish the weights.")
    return "\n".join(lines)


def table(rows: Mapping[str, str]) -> str:
    """Return a table of two columns."""
    lines = [f"| {key} | {value.replace('|', '/')} |" for key, value in rows.items()]
    return "\n".join(["| | |", "| --- | --- |", *lines])
