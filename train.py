"""Train one stage: `python train.py model=vae ...`, then `python train.py model=ldm ...`."""

import hydra
from omegaconf import DictConfig

from conf.mistakes import one_sentence, run
from conf.schema import register

register()


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float:
    """Train, evaluate the best weights on held-out photos, and return the lowest validation loss."""
    return one_sentence(train)(cfg)


def train(cfg: DictConfig) -> float:
    """Prepare the run, build data, model and trainer, fit and test."""
    from conf.launch import prepared_training  # torch is imported only once the config is known to compose
    from latentfaces.training import fit_and_test

    with prepared_training(cfg) as (data, module, trainer, checkpoint):
        return fit_and_test(trainer, module, data, checkpoint, cfg.run_dir)


if __name__ == "__main__":
    run(main, "train")
