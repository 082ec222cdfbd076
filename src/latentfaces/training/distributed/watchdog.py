"""Watchdog of ranks: if one fails, all end."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import torch.distributed as dist

from latentfaces.errors import UserError
from latentfaces.ranks import is_main_process

GRACE = 5.0
"""Seconds for a rank to end by itself after another one failed."""
LOOK_EVERY = 0.5
STOPPED = (0, 130, 138, 140, 143)
"""Exit statuses of ranks that did not fail: finished, or stopped by a signal on all ranks."""


class RankError(UserError):
    """Another rank failed first, and has printed its error."""


class RankWatch(threading.Thread):
    """Within this context, end this process if another rank fails, since some backends would wait for it.

    Args:
        children: ranks that this process started, from local rank 1 on.
    """

    def __init__(self, children: Sequence["subprocess.Popen[Any]"]) -> None:
        super().__init__(daemon=True, name="rank-watch")
        self.children = children
        self.over = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.over.set()
        if not isinstance(error, Exception):  # a stop is no failure: all ranks stop together
            return
        # A backend raises a RuntimeError, perhaps before the rank that failed is seen to have ended.
        limit = time.monotonic() + (GRACE if isinstance(error, RuntimeError) else 0)
        while (failure := self.failure()) is None and time.monotonic() < limit:
            time.sleep(LOOK_EVERY / 5)
        if failure is None:
            if dist.is_initialized():
                self.store.set("failed", str(dist.get_rank()))
        elif is_main_process():
            raise RankError(f"{failure}. Its own output has the error.") from None
        else:
            sys.exit(1)

    def run(self) -> None:
        while not self.over.wait(LOOK_EVERY):
            if (failure := self.failure()) is None:
                continue
            if not self.over.wait(GRACE):
                for child in self.children:
                    child.kill()
                print(f"error: {failure}", file=sys.stderr, flush=True)
                os._exit(1)
            return

    @property
    def store(self) -> dist.Store:
        """Store in which a rank reports its failure."""
        # torch has no public name for the store that all ranks share.
        return dist.PrefixStore("rank-watch", dist.distributed_c10d._get_default_store())

    def failure(self) -> str | None:
        """Return which other rank has failed, or None."""
        for local_rank, child in enumerate(self.children, start=1):
            if child.poll() not in (None, *STOPPED):
                return f"local rank {local_rank} ended with status {child.returncode}"
        if not dist.is_initialized():
            return None
        try:
            return f"rank {self.store.get('failed').decode()} failed" if self.store.check(["failed"]) else None
        except RuntimeError:  # rank 0 holds the store
            return "rank 0 has ended"
