"""Watchdog of ranks: if one fails, all end, and the first failure is reported."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import torch.distributed as dist

from latentfaces.errors import UserError

GRACE = 5.0
"""Seconds for a rank to end by itself after another one failed."""
LOOK_EVERY = 0.5
STOPPED = (0, 130, 138, 140, 143)
"""Exit statuses of ranks that did not fail: finished, or stopped by a signal on all ranks."""
LOST = re.compile("gloo|NCCL|connection|socket", re.IGNORECASE)
"""Messages of backends after another rank ended."""
TIMED_OUT = re.compile("timed out|timeout", re.IGNORECASE)
"""Messages of backends after a rank waited for too long."""


class RankError(UserError):
    """Another rank failed first."""


class RankWatch(threading.Thread):
    """Within this context, watch this rank and the others.

    A rank that fails reports it in the store of the process group, since the others would wait for it.

    Args:
        children: ranks that this process started, from local rank 1 on.
        parent: process that started this rank and must outlive it, or None.
    """

    def __init__(self, children: Sequence["subprocess.Popen[Any]"] = (), parent: int | None = None) -> None:
        super().__init__(daemon=True, name="rank-watch")
        self.children, self.parent = children, parent
        self.over = threading.Event()
        self.failed = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.over.set()
        if not isinstance(error, Exception):  # a stop is no failure: all ranks stop together
            return
        self.failed = True
        cause = self.first_failure(error)
        if cause is None:
            return
        if self.rank == 0:
            raise RankError(cause) from None
        sys.exit(1)

    def run(self) -> None:
        while not self.over.wait(LOOK_EVERY):
            if (trouble := self.trouble()) is None:
                continue
            # Most backends raise an error when a rank ended, but some wait on.
            if not self.over.wait(GRACE):
                for child in self.children:
                    child.kill()
                if self.rank == 0 or trouble.startswith("rank 0"):
                    print(f"error: {trouble}", file=sys.stderr, flush=True)
                os._exit(1)
            return

    @property
    def rank(self) -> int:
        return dist.get_rank() if dist.is_initialized() else int(os.environ.get("LOCAL_RANK", "0"))

    @property
    def store(self) -> dist.Store:
        """Store in which ranks report failures."""
        # torch has no public name for the store that all ranks share.
        return dist.PrefixStore("rank-watch", dist.distributed_c10d._get_default_store())

    def trouble(self) -> str | None:
        """Return why this rank must end, or None."""
        if self.parent is not None and os.getppid() != self.parent:
            return "the process that started this rank has ended"
        if (lost := self.lost_child()) is not None:
            return lost
        if not dist.is_initialized():
            return None
        try:
            store = self.store
            return store.get("failure").decode() if store.check(["failure"]) else None
        except RuntimeError:  # rank 0 holds the store
            return "rank 0 has ended"

    def lost_child(self) -> str | None:
        """Return which rank that this process started has failed, or None."""
        for local_rank, child in enumerate(self.children, start=1):
            if (status := child.poll()) is not None and status not in STOPPED:
                how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
                return f"rank {self.rank + local_rank} {how}"
        return None

    def first_failure(self, error: Exception) -> str | None:
        """Report this failure if it is the first. Otherwise return the first one, of another rank."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return None
        late = isinstance(error, RuntimeError) and TIMED_OUT.search(str(error)) is not None
        echo = not late and isinstance(error, RuntimeError) and LOST.search(str(error)) is not None
        limit = time.monotonic() + (GRACE / 2 if echo else 0)
        own = f"rank {self.rank} failed: {type(error).__name__}: {error}"
        if late:
            own = (
                f"rank {self.rank} timed out at a collective. Check the logs of the other ranks, or raise "
                "trainer.strategy.timeout_minutes"
            )
        while True:
            try:
                if self.store.check(["failure"]):
                    return self.store.get("failure").decode()
                if not echo:
                    first = self.store.compare_set("failure", "", own).decode()
                    return None if first == own and not late else first
            except RuntimeError:
                return "rank 0 has ended" if echo else None
            if (lost := self.lost_child()) is not None:
                return lost
            if time.monotonic() > limit:
                return "another rank has ended, and said why where it ran" if echo else None
            time.sleep(LOOK_EVERY / 5)
