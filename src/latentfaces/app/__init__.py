"""The page of a run: `python sample.py run=faces task=app`."""

from latentfaces.app.commands import Commands, override
from latentfaces.app.page import build_page
from latentfaces.app.server import Server

__all__ = ["Commands", "Server", "build_page", "override"]
