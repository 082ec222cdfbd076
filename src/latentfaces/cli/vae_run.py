"""Choice of the trained VAE that stage 2 uses."""

from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from latentfaces.autoencoder import VAE, is_pretrained, load_pretrained
from latentfaces.cli.resume import check_same, resumed_run
from latentfaces.config.overrides import overridden_keys
from latentfaces.config.paths import CONF
from latentfaces.errors import UserError
from latentfaces.ranks import is_main_process
from latentfaces.run import DATA, Run, check_targets, find_run


def add_trained_vae(cfg: DictConfig) -> Run | VAE:
    """Set the VAE of stage 2 and, unless other data is chosen, the data that it was trained on.

    Returns:
        The run that has the VAE: one of stage 1, or at a resume the run itself, which has a copy. A pretrained VAE at
        the start of its run.
    """
    for key in overridden_keys():
        if key.startswith("model.autoencoder"):
            raise UserError(f"{key} has no effect on a trained VAE. Leave it out.")
    own_data = cfg.data if "_target_" in cfg.data else None
    resolution_chosen = own_data is not None and is_chosen_resolution(own_data)

    def suits(run: Run) -> bool:
        keys = ("root", "num_images", *["resolution"] * resolution_chosen)
        return own_data is None or all(run.config["data"].get(key) == own_data.get(key) for key in keys)

    if (run := resumed_run(cfg)) is not None:
        trained = run.config["vae"]
        check_same(cfg, "vae", cfg.vae, trained)
    elif cfg.vae is not None and is_pretrained(cfg.vae):
        if own_data is None:
            raise UserError(f"vae={cfg.vae} has no images. Add data=folder data.root=IMAGES")
        with open_dict(cfg):
            cfg.model.autoencoder, vae = load_pretrained(cfg.vae)
        return vae
    else:
        run = find_run(cfg.vae or "latest", "vae", suits=suits)
        if run.stage != "vae" and cfg.vae != cfg.init:
            raise UserError(f"vae={cfg.vae} is a run of stage 2. Choose one of stage 1.")
        trained = str(run.folder)
    check_targets(run.config["model"]["autoencoder"])  # a stored config is not trusted
    if own_data is None:
        check_targets(run.config["data"], DATA)
    with open_dict(cfg):
        cfg.vae = trained
        cfg.model.autoencoder = run.config["model"]["autoencoder"]
        if own_data is None:
            cfg.data = OmegaConf.merge(run.config["data"], cfg.data)
            if "data.seed" not in overridden_keys() and (run.stage == "vae" or cfg.seed != run.config["seed"]):
                cfg.data.seed = cfg.seed  # batches in the order of this run's seed
        elif not resolution_chosen:  # other images at the VAE's resolution
            cfg.data.resolution = run.config["data"]["resolution"]
    if is_main_process():
        size = run.config["data"]["resolution"]
        print(f"VAE: {trained}" + (f", trained at {size} pixels" if size != cfg.data.resolution else ""))
    return run


def is_chosen_resolution(data: DictConfig) -> bool:
    """Return whether the user or a recipe chose the resolution."""
    defaults: Any = [OmegaConf.load(path) for path in (CONF / "data").glob("*.yaml")]
    usual = {choice.get("_target_"): choice.get("resolution") for choice in defaults}
    return "data.resolution" in overridden_keys() or data.resolution != usual.get(data._target_)
