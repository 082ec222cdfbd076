"""Date, machine and torch version of a result."""

import platform
from datetime import UTC, datetime
from pathlib import Path

import torch


def machine() -> str:
    """Return the processor's name, or its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()


def about() -> dict[str, str]:
    """Return the date, the machine and the version of torch."""
    return {"date": datetime.now(UTC).date().isoformat(), "machine": machine(), "torch": torch.__version__}
