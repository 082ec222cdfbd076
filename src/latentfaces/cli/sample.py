"""`latentfaces-sample` and `sample.py`: run one task with a trained run."""

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from latentfaces.cli.errors import run


def sample(cfg: DictConfig) -> None:
    """Load a run, run one task with it, and print where the outputs are."""
    from latentfaces.cli.launch_sample import identify, prepared_task  # imports torch: only once the config composes

    if HydraConfig.get().runtime.choices["task"] == "identify":
        print(*identify(cfg), sep="\n")
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
