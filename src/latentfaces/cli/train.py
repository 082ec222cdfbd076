"""`latentfaces-train` and `train.py`: train one stage."""

import hydra
from omegaconf import DictConfig

from latentfaces.cli.errors import one_sentence, run
from latentfaces.config.paths import CONF
from latentfaces.config.schema import register

register()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def train(cfg: DictConfig) -> float:
    """Train, test the best weights on held-out images, and return the lowest validation loss."""
    return one_sentence(fit)(cfg)


def fit(cfg: DictConfig) -> float:
    """Build data, module and trainer, then fit and test."""
    from latentfaces.cli.launch_train import prepared_training  # imports torch: only once the config composes
    from latentfaces.training import fit_and_test

    with prepared_training(cfg) as (data, module, trainer, checkpoint):
        return fit_and_test(trainer, module, data, checkpoint, cfg.run_dir)


def main() -> None:
    """Run the command line."""
    run(train, "train")
