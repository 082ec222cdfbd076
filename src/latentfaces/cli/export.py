"""`latentfaces-export`: write the model folder of a run."""

from pathlib import Path

from omegaconf import DictConfig

from latentfaces.cli.errors import run
from latentfaces.config.schema import ExportConfig
from latentfaces.config.secrets import refuse_unsafe
from latentfaces.config.type_checks import check_keys
from latentfaces.errors import UserError


def export(cfg: DictConfig) -> None:
    """Export a run, upload the folder if asked for, and print where it is."""
    from latentfaces.export.folder import export as export_run  # imports torch: only once the config composes
    from latentfaces.export.hub import check_push, push
    from latentfaces.run import find_run

    refuse_unsafe(cfg)
    check_keys(cfg, ExportConfig)
    if cfg.push is not None:
        check_push(cfg.push)
    elif cfg.dry_run:
        raise UserError("dry_run=true has no effect without push=ID. Leave it out.")
    folder = export_run(find_run(cfg.run, "ldm"), Path(cfg.to))
    if cfg.push is not None:
        print(push(folder, cfg.push, cfg.dry_run))
    print(folder)


def main() -> None:
    """Run the command line."""
    run(export, "export")
