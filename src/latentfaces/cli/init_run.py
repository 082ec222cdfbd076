"""Start of a training from the weights of an earlier run or of a pretrained VAE."""

from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor

from latentfaces import diffusion
from latentfaces.autoencoder import VAE, is_pretrained, load_pretrained
from latentfaces.cli.resume import check_same, resumed_run
from latentfaces.cli.vae_run import is_chosen_resolution
from latentfaces.config.compose import compose_config
from latentfaces.config.overrides import leaves_of, overridden_keys
from latentfaces.config.validation import NETWORKS
from latentfaces.diffusion import Conditioning
from latentfaces.errors import UserError
from latentfaces.ranks import is_main_process
from latentfaces.run import PARTS, Run, build, check_targets, find_run
from latentfaces.training.base_module import BaseModule

GROUPS = {
    **NETWORKS,
    "model/schedule": "model.denoiser.schedule",
    "model/time_sampler": "model.loss.time_sampler",
    "model/weighting": "model.loss.weighting",
}
"""Groups, and where their values are in the config."""
OF_THIS_RUN = ("model.denoiser.network.channels", "model.denoiser.network.label_channels")
"""Keys that depend on the VAE and the augmentation of this run."""
FREE = ("dropout", "label_channels", "auxiliary_depth", "skip_connections", "gradient_checkpointing", "flow_map")
"""Options of a network that may differ from those of the earlier run."""
CONDITION = "network.embed_label.weight"
"""Weight of the layer that takes the condition."""


def add_init_run(cfg: DictConfig) -> Run | VAE | None:
    """Set network, noise schedule and loss as in the run `init`, except for what overrides or a recipe change.

    Stage 2 also gets its VAE. At a resume all this comes from the run itself.

    Returns:
        The run or the pretrained VAE whose weights are to be taken, or None.
    """
    check_fast(cfg)
    resumed = resumed_run(cfg)
    if resumed is not None:
        check_same(cfg, "init" if cfg.run is None else "run", cfg.init, resumed.config.get("init"))
        cfg.init = resumed.config.get("init")
    if cfg.init is None:
        return None
    if is_pretrained(cfg.init):
        return add_pretrained(cfg, resumed)
    run = resumed or run_to_start_from(cfg)
    if resumed is None:
        cfg.init = str(run.folder)
        if cfg.stage == "ldm":
            cfg.vae = cfg.vae or cfg.init
    with open_dict(cfg):
        add_config(cfg, run)
    return run if resumed is None else None


def run_to_start_from(cfg: DictConfig) -> Run:
    """Find the run `init`.

    Raises:
        UserError: there is none of this stage, or it is one of model=fast.
    """
    key = "init" if cfg.run is None else "run"
    run = find_run(cfg.init, cfg.stage, key=key)
    if run.stage != cfg.stage:
        raise UserError(f"{key}={cfg.init} is a run of model={run.stage}. Choose one of model={cfg.stage}.")
    if run.is_fast:
        raise UserError(f"{run.folder} is a run of model=fast. Use the run that it was learned from.")
    return run


def add_config(cfg: DictConfig, run: Run) -> None:
    """Set network, noise schedule and loss as in `run`, except for what overrides or a recipe change."""
    if cfg.stage == "vae":
        nodes = ["autoencoder"]
        if not is_chosen_resolution(cfg.data):
            cfg.data.resolution = run.config["data"]["resolution"]
    elif cfg.run is None:
        nodes = ["denoiser", "loss"]
    else:
        nodes = ["denoiser"]  # a flow map has another loss
        add_labels(cfg, run)
    defaults = compose_config("train", [f"model={cfg.stage}"]).model
    for node in nodes:
        earlier = run.config["model"][node]
        check_targets(earlier, PARTS | {f"latentfaces.diffusion.{name}" for name in diffusion.__all__})
        merged = OmegaConf.create(earlier)
        for key, value in changes_of(node, cfg.model[node], defaults[node]):
            OmegaConf.update(merged, key, value)
        cfg.model[node] = merged
    if cfg.run is not None and "auxiliary_depth" in cfg.model.denoiser.network:
        cfg.model.denoiser.network.auxiliary_depth = 0  # a flow map does not train that head


def add_labels(cfg: DictConfig, run: Run) -> None:
    """Set the labels as in `run`, except for those that overrides change."""
    overridden = overridden_keys()
    if "model.labels" not in overridden:
        cfg.model.labels = run.config["model"].get("labels")
    for key in ("labels", "label_types"):
        if not any(f"{override}.".startswith(f"data.{key}.") for override in overridden):
            cfg.data[key] = run.config["data"].get(key)


def changes_of(node: str, values: DictConfig, defaults: DictConfig) -> list[tuple[str, Any]]:
    """Return keys and values of a node of the model that do not come from the earlier run.

    An override or a recipe sets them, or they depend on the VAE and the augmentation of this run.
    """
    overridden = [GROUPS.get(key, key) for key in overridden_keys() if key != "model"]
    usual = dict(leaves_of(defaults))

    def is_changed(key: str, value: Any) -> bool:
        path = f"model.{node}.{key}"
        is_set = any(f"{path}.".startswith(f"{place}.") for place in overridden)
        return is_set or path in OF_THIS_RUN or usual.get(key) != value

    return [(key, value) for key, value in leaves_of(values) if is_changed(key, value)]


def check_fast(cfg: DictConfig) -> None:
    """Check that model=fast has a run to learn from.

    Raises:
        UserError: model=fast and run=RUN come without the other, or with init=... or vae=...
    """
    is_fast = OmegaConf.select(cfg, "model.denoiser.network.flow_map") is not None
    if is_fast and cfg.run is None:
        raise UserError("model=fast needs a trained run of stage 2. Add run=RUN.")
    if cfg.run is not None and not is_fast:
        raise UserError("run=... has no effect without model=fast. Use init=RUN to start from its weights.")
    for key in ("init", "vae"):
        if is_fast and key in overridden_keys():
            raise UserError(f"{key}=... has no effect with model=fast, which takes that of run=RUN. Leave it out.")


def add_pretrained(cfg: DictConfig, run: Run | None) -> VAE | None:
    """Set the network of stage 1 to the pretrained VAE `init`, or at a resume to that of the run.

    Raises:
        UserError: there is no such VAE, or an override has no effect on it.
    """
    if cfg.stage == "ldm":
        raise UserError(f"init={cfg.init} is a VAE. Use vae={cfg.init} with model=ldm.")
    if cfg.trainable in ("last", "norms"):
        raise UserError(f"trainable={cfg.trainable} is for networks of this project. Use trainable=decoder or =all.")
    vae = None
    if run is None:
        config, vae = load_pretrained(cfg.init)
    else:
        config = run.config["model"]["autoencoder"]
        check_targets(config)
    fixed = ["model/autoencoder", "model.autoencoder"]
    if vae is not None and not vae.has_variance:
        fixed += ["annealing", "model.kl_weight", "model.loss.kl_"]
    for key in overridden_keys():
        if key.startswith(tuple(fixed)):
            raise UserError(f"{key} has no effect with init={cfg.init}. Leave it out.")
    with open_dict(cfg):
        cfg.model.autoencoder = config
    return vae


def check_network(cfg: DictConfig, run: Run) -> None:
    """Check that the networks of this run and of the earlier one compute the same function.

    Raises:
        UserError: naming the first difference.
    """
    node, named = "autoencoder" if cfg.stage == "vae" else "denoiser", "init" if cfg.run is None else "run"
    theirs = dict(leaves_of(run.config["model"][node], f"model.{node}"))
    own = dict(leaves_of(cfg.model[node], f"model.{node}", resolve=True))
    for key in {**own, **theirs}:
        if key.rpartition(".")[2] not in FREE and own.get(key) != theirs.get(key):
            raise UserError(
                f"{named}={run.folder} has {key}={theirs.get(key)}, and this run {own.get(key)}. Set it equal."
            )


def take_weights(module: BaseModule, init: Run | VAE, name: str) -> None:
    """Load weights of the run or the VAE `init=<name>` where names and shapes match, and print what was taken."""
    weights, network = next(iter(module.exports().items()))
    state = network.state_dict()
    node = "autoencoder" if weights == "best_vae" else "denoiser"
    before = (init.module(node, weights) if isinstance(init, Run) else init).state_dict()
    taken = {name: value for name, value in before.items() if name in state and state[name].shape == value.shape}
    fresh = [name for name in state if name not in taken]
    if isinstance(init, Run) and CONDITION in state:
        conditioning: Any = module.conditioning
        earlier = build(init.config["model"].get("conditioning"))
        taken[CONDITION] = condition_weight(state[CONDITION], conditioning, before.get(CONDITION), earlier)
    network.load_state_dict(taken, strict=False)
    if is_main_process():
        names = ", ".join([*fresh[:3], *["..."] * (len(fresh) > 3)])
        print(f"init={name}: {len(taken)} weights taken, {len(fresh)} start fresh" + (f" ({names})" if fresh else ""))


def condition_weight(
    own: Tensor, conditioning: Conditioning | None, before: Tensor | None, earlier: Conditioning | None
) -> Tensor:
    """Return the weight (width, n) of the layer of the condition, from that of the earlier run.

    Entries that the earlier run lacks start fresh. From 0 a small learning rate would separate them too slowly.
    """
    weight = own.clone()
    if before is not None:
        known = entries_of(earlier, before.shape[1])
        for column, entry in enumerate(entries_of(conditioning, own.shape[1])):
            if entry in known:
                weight[:, column] = before[:, known.index(entry)]
    return weight


def entries_of(conditioning: Conditioning | None, size: int) -> list[tuple[str, object]]:
    """Return the meaning of each entry of a condition: first those of the augmentation, then those of the labels."""
    labels = conditioning.entries if conditioning is not None else []
    return [*(("", number) for number in range(size - len(labels))), *labels]
