"""Imports and caches of a command, for the process that commands are forked from."""

import contextlib
import gc
import io

import matplotlib.pyplot  # noqa: F401
import PIL.Image
import pydantic.type_adapter  # noqa: F401
import torchmetrics  # noqa: F401
import wandb.sdk.launch.inputs.internal  # noqa: F401 # with all that a run of W&B imports
from helpers.commands import SHORT, TINY_LDM, TINY_VAE, run_command

import latentfaces.cli.launch_train
import latentfaces.cli.sweeps
import latentfaces.data.datamodule
import latentfaces.training  # noqa: F401

PIL.Image.init()
for stage in (TINY_VAE, TINY_LDM):
    with contextlib.redirect_stdout(io.StringIO()):
        run_command("train.py", *stage, *SHORT, "--cfg", "job")  # Hydra's plugins, its parser and the config files
gc.collect()
gc.freeze()  # a forked process does not visit these objects again, which would copy their pages
