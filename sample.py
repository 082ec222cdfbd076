"""Use a trained run: `python sample.py`, `python sample.py task=interpolate`, `python sample.py --help`."""

import hydra
from omegaconf import DictConfig

from conf.mistakes import one_sentence, run
from conf.schema import register

register()


@hydra.main(version_base="1.3", config_path="conf", config_name="sample")
def main(cfg: DictConfig) -> None:
    """Load one run, do one task with it, print where the pictures are."""
    one_sentence(sample)(cfg)


def sample(cfg: DictConfig) -> None:
    """Build the pipeline and the task, and run it."""
    from conf.launch import drop_if_empty  # torch is imported only once the config is known to compose
    from conf.sampling import prepared_task

    task, pipeline, pictures = prepared_task(cfg)
    try:
        path = task(pipeline, pictures)
    except BaseException:
        drop_if_empty(pictures.folder)
        raise
    if pictures.ranks.rank == 0:
        print(path)


if __name__ == "__main__":
    run(main, "sample")
