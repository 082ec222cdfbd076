"""`latentfaces-export`: write the model folder of a run."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from latentfaces.cli.errors import one_sentence, run
from latentfaces.config.paths import CONF
from latentfaces.config.schema import ExportConfig, register
from latentfaces.config.secrets import refuse_links
from latentfaces.config.validation import check_keys
from latentfaces.errors import UserError

register()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="export")
def export(cfg: DictConfig) -> None:
    """Export a run, and upload the folder if asked for."""
    one_sentence(export_run)(cfg)


def export_run(cfg: DictConfig) -> None:
    """Export a run, and print where the folder is."""
    from latentfaces.export.folder import export  # imports torch: only once the config composes
    from latentfaces.export.hub import check_push, push
    from latentfaces.run import find_run

    refuse_links(cfg)
    check_keys(cfg, ExportConfig)
    if cfg.push is not None:
        check_push(cfg.push)
    elif cfg.dry_run:
        raise UserError("dry_run=true has no effect without push=ID. Leave it out.")
    folder = export(find_run(cfg.run, "ldm"), Path(cfg.to))
    if cfg.push is not None:
        print(push(folder, cfg.push, cfg.dry_run))
    print(folder)


def main() -> None:
    """Run the command line."""
    run(export, "export")
