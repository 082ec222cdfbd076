"""What a figure depends on, beside the code."""

import platform
from datetime import UTC, datetime
from pathlib import Path

import torch


def machine() -> str:
    """The processor's name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()


def about() -> dict[str, str]:
    """Date, machine, version of torch."""
    return {"date": datetime.now(UTC).date().isoformat(), "machine": machine(), "torch": torch.__version__}
