"""`task=app`: the page, and the commands that it runs in this process."""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import rich
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from latentfaces.cli.errors import explain, out_of_memory
from latentfaces.cli.launch_sample import prepared_task
from latentfaces.config.compose import compose_config
from latentfaces.config.overrides import as_text, key_of, overridden_keys, plain
from latentfaces.config.paths import CONF
from latentfaces.config.suggestions import format_error
from latentfaces.config.type_checks import check_types
from latentfaces.errors import UserError, missing_extra
from latentfaces.files import drop_if_empty
from latentfaces.model_folder import find_model
from latentfaces.run import program

SHARED = ("precision", "mark", "mark_certificate", "mark_key")
"""Overrides of task=app that apply to each command of the page."""
CHOICES = {group: sorted(path.stem for path in (CONF / group).glob("*.yaml")) for group in ("sampler", "guidance")}


def serve(cfg: DictConfig) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        UserError: the extra `app` is missing, or an override or the run does not fit.
    """
    if find_spec("gradio") is None:
        raise missing_extra("task=app", "app")
    for key in overridden_keys():
        if key not in ("task", "run", "output", *SHARED) and not key.startswith(("task.", "hydra")):
            raise UserError(f"{key}=... has no effect with task=app. Choose it on the page.")
    check_types(plain(cfg.task), "task")
    server, run = instantiate(cfg.task), find_model(cfg.run)
    if run.stage != "ldm":
        raise UserError(f"run={cfg.run} is of stage 1, which makes no new faces. Choose a run of stage 2.")
    from latentfaces.app import Commands, build_page, override
    from latentfaces.tasks.output import new_folder

    shared = [override for override in HydraConfig.get().overrides.task if key_of(override) in SHARED]
    folder = Path(cfg.output or new_folder(run.folder / "samples" / f"app_{datetime.now():%Y-%m-%d_%H-%M-%S}"))
    commands = Commands([*program("sample"), override("run", run.folder), *shared], folder.resolve(), execute)
    try:
        server(partial(build_page, run, commands, CHOICES))
    finally:
        drop_if_empty(folder)


def execute(overrides: Sequence[str], prepare: Callable[[Any], None]) -> str:
    """Run a command of sample.py in this process. One thread at a time may do so.

    Args:
        overrides: of the command.
        prepare: gets the task before it runs.

    Returns:
        The output of the command.

    Raises:
        UserError: a mistake of the user, as one line.
    """
    overrides = [as_text(override) for override in overrides]
    try:
        cfg = compose_config("sample", overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(format_error(error, "sample", overrides)) from error
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    try:
        with captured() as printed:
            task, pipeline, pictures = prepared_task(cfg)
            with pictures:
                prepare(task)
                task(pipeline, pictures)
    except Exception as error:
        message = explain(error) or out_of_memory(error, cfg)
        if message is None:
            raise
        raise UserError(message) from error
    return printed.getvalue()


@contextlib.contextmanager
def captured() -> Iterator[io.StringIO]:
    """Within this context, capture what is printed, without progress bars."""
    printed, console = io.StringIO(), rich.get_console()
    console.quiet = True
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            yield printed
    finally:
        console.quiet = False
