"""Every file of every group composes and builds."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from latentfaces.config.compose import compose_config
from latentfaces.config.overrides import as_text
from latentfaces.config.type_checks import check_types

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
GROUPS = {
    "model/autoencoder": "model=vae",
    "model/loss": "model=vae",
    "annealing": "model=vae",
    "data": "model=vae",
    "model/denoiser": "model=ldm",
    "model/schedule": "model=ldm",
    "model/time_sampler": "model=ldm",
    "model/weighting": "model=ldm",
    "model/optimizer": "model=ldm",
    "model/augmentation": "model=ldm",
    "callbacks": "model=vae",
    "pruning": "model=vae",
    "strategy": "model=vae",
    "logger": "model=vae",
}


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed(name: str, overrides: list[str]) -> DictConfig:
    """The config, with what only a running job knows filled in."""
    cfg = compose_config(name, overrides)
    with open_dict(cfg):
        cfg.pop("hydra")
        if name == "train":
            cfg.run_dir = "outputs/somewhere"
            if cfg.stage == "ldm":
                cfg.model.autoencoder = {"_target_": "latentfaces.autoencoder.VAE", "latent_channels": 4}
                cfg.data.resolution = 64
    return cfg


@pytest.mark.parametrize(("group", "option"), [(group, option) for group in GROUPS for option in options(group)])
def test_each_option_composes_and_builds(group: str, option: str, squeezenet: Path) -> None:
    if (group, option) == ("data", "from_vae"):
        overrides = ["model=ldm"]
    else:
        overrides = [GROUPS[group], f"{group}={option}"]
        overrides += ["data.root=photos"] if (group, option) == ("data", "folder") else []
    cfg = composed("train", overrides)
    check_types(OmegaConf.to_container(cfg, resolve=True))
    if (group, option) in (("model/loss", "perceptual"), ("model/loss", "adversarial")):
        cfg.model.loss.perceptual.net = "squeeze"  # a small file replaces the one from the internet
        cfg.model.loss.perceptual.weights = str(squeezenet)
        assert instantiate(cfg.model).loss.perceptual is not None
        cfg.model.loss.perceptual = None  # it cannot be loaded without memory
    with torch.device("meta"):  # sizes without the memory
        module = instantiate(cfg.model)
    assert sum(p.numel() for p in module.network.parameters()) > 0
    if group in ("callbacks", "pruning"):
        assert len(instantiate(cfg.callbacks)) == len(cfg.callbacks)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model=vae", "data=folder"], 8),
        (["model=ldm"], 64),
        (["model=ldm", "data=folder"], 64),
        (["model=ldm", "data=folder", "experiment=faces64_cpu"], 32),
        (["model=ldm", "data=folder", "data.batch_size=8"], 8),
    ],
)
def test_batches_of_latents_are_larger_than_those_of_pictures(overrides: list[str], expected: int) -> None:
    root = ["data.root=photos"] if "data=folder" in overrides else []
    assert composed("train", [*overrides, *root]).data.batch_size == expected


@pytest.mark.parametrize("option", options("sampler"))
@pytest.mark.parametrize("task", ["generate", "interpolate"])
def test_each_sampler_builds_with_each_task_that_samples(task: str, option: str) -> None:
    cfg = composed("sample", [f"task={task}", f"sampler={option}"])
    assert instantiate(cfg.task).sampler.num_steps == cfg.sampler.num_steps


def test_every_task_is_in_its_group() -> None:
    from latentfaces import tasks

    # app is the page of the others; identify needs no run; remake does what the picture's task was
    assert set(options("task")) - {"app", "identify", "remake"} == {
        name.lower() for name in tasks.__all__ if name != "PictureFolder"
    }


@pytest.mark.parametrize("stage", ["vae", "ldm"])
@pytest.mark.parametrize("experiment", options("experiment"))
def test_each_experiment_builds_for_both_stages(experiment: str, stage: str) -> None:
    cfg = composed("train", [f"model={stage}", f"experiment={experiment}"])
    check_types(OmegaConf.to_container(cfg.model, resolve=True))
    if stage == "vae" and cfg.model.loss.perceptual is not None:  # weights may be from the internet
        OmegaConf.set_struct(cfg, False)
        cfg.model.loss.perceptual._target_ += ".untrained"
        cfg.model.loss.perceptual.pop("weights", None)
    with torch.device("meta"):
        instantiate(cfg.model)
    assert cfg.trainer.max_time or cfg.trainer.max_steps > 0 or cfg.trainer.max_epochs > 0


def test_annealing_is_chosen_bare_and_by_key() -> None:
    bare = composed("train", ["model=vae", "annealing=cyclical"])
    by_key = composed("train", ["model=vae", "annealing@model.kl_weight=cosine"])
    assert bare.model.kl_weight._target_ == "latentfaces.annealing.Cyclical"
    assert by_key.model.kl_weight._target_ == "latentfaces.annealing.Cosine"


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def documented_commands() -> list[str]:
    """Every train.py and sample.py line of the shell blocks of the README and of docs/."""
    blocks = [block for page in PAGES for block in re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), re.DOTALL)]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    commands = [line.split("#")[0].strip() for line in lines if re.match(r"python (train|sample)\.py", line)]
    return list(dict.fromkeys(commands))


def first_job(overrides: list[str]) -> list[str]:
    """Return the overrides of the first job of a sweep; of other commands, all overrides."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    for number, override in enumerate(parsed):
        if override.is_interval_sweep():
            overrides[number] = f"{override.get_key_element()}={override.value().start}"
        elif override.is_sweep_override():
            overrides[number] = f"{override.get_key_element()}={next(override.sweep_string_iterator())}"
    return overrides


def recipe_commands() -> list[str]:
    """Every train.py and sample.py line of the opening comments of the recipes."""
    text = "".join(path.read_text() for path in sorted((CONF / "experiment").glob("*.yaml")))
    return re.findall(r"^#   (python (?:train|sample)\.py .*)$", text, re.MULTILINE)


def help_commands() -> list[str]:
    """Every train.py and sample.py line that --help prints."""
    text = "".join((CONF / name).read_text() for name in ("train.yaml", "sample.yaml"))
    return re.findall(r"^ +(python (?:train|sample)\.py .*)$", text, re.MULTILINE)


@pytest.mark.parametrize("group", ["task", "sampler", "guidance"])
def test_the_help_of_sample_lists_every_option(group: str) -> None:
    template = OmegaConf.load(CONF / "sample.yaml").hydra.help.template
    listed = re.search(rf"^{group}=(.*?)^(?=\w|$)", template, re.MULTILINE | re.DOTALL)
    assert listed
    assert re.findall(r"\w+", listed[1]) == sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("command", [*documented_commands(), *recipe_commands(), *help_commands()])
def test_each_documented_command_composes(command: str) -> None:
    script, *overrides = shlex.split(command)[1:]
    assert composed(script.removesuffix(".py"), first_job([as_text(o) for o in overrides if o != "-m"])) is not None


def test_documents_have_commands() -> None:
    assert len(documented_commands()) >= 20
    assert len(recipe_commands()) >= 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_link_between_documents_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text())
    targets = [(page.parent / name if name else page, anchor) for name, anchor in links]
    assert [path for path, _ in targets if not path.exists()] == []
    assert [target for target in targets if target[1] and target[1] not in anchors(target[0])] == []


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
