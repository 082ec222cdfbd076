"""Settings of the test session."""

import gc
import os
import shutil
import signal
import tempfile
from multiprocessing.util import Finalize

if gc.isenabled():
    gc.disable()  # until the tests are collected, as imports leave little garbage
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as for jobs in a shell's background: some tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the cores are shared out already; before torch is imported
else:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # where pytest's own folders stay
    os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="latentfaces-")  # for what libraries leave
    Finalize(None, shutil.rmtree, (tempfile.tempdir, True), exitpriority=-101)  # after multiprocessing's folder in it

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # The controller of pytest-xdist runs no test. It starts its workers sooner without importing torch.
    if "PYTEST_XDIST_WORKER" in os.environ or not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("helpers.fixtures")


def pytest_collection_finish() -> None:
    gc.freeze()  # what was imported and collected stays, and need not be visited again
    gc.enable()
