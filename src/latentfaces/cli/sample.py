"""`latentfaces-sample` and `sample.py`: run one task with a trained run."""

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from latentfaces.cli.errors import one_sentence, run
from latentfaces.config.paths import CONF
from latentfaces.config.schema import register

register()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="sample")
def sample(cfg: DictConfig) -> None:
    """Load a run, run one task with it, and print where the outputs are."""
    one_sentence(run_task)(cfg)


def run_task(cfg: DictConfig) -> None:
    """Build the pipeline and the task, then run the task."""
    from latentfaces.cli.launch_sample import identified, prepared_task  # imports torch: only once the config composes

    if HydraConfig.get().runtime.choices["task"] == "identify":
        print(*identified(cfg), sep="\n")
        return
    if HydraConfig.get().runtime.choices["task"] == "app":
        from latentfaces.cli.launch_app import serve

        serve(cfg)
        return
    task, pipeline, pictures = prepared_task(cfg)
    with pictures:
        path = task(pipeline, pictures)
    if pictures.ranks.rank == 0:
        print(path)


def main() -> None:
    """Run the command line."""
    run(sample, "sample")
