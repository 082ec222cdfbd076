"""`latentfaces-train` and `train.py`: train one stage."""

from omegaconf import DictConfig

from latentfaces.cli.errors import run


def train(cfg: DictConfig) -> float:
    """Train, test the best weights on held-out images, and return the lowest validation loss."""
    from latentfaces.cli.launch_train import prepared_training  # imports torch: only once the config composes
    from latentfaces.training import fit_and_test

    with prepared_training(cfg) as (data, module, trainer, checkpoint):
        return fit_and_test(trainer, module, data, checkpoint, cfg.run_dir)


def main() -> None:
    """Run the command line."""
    run(train, "train")
