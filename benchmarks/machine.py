"""What a measurement was taken on."""
from __future__ import annotations

import platform
from pathlib import Path


def processor() -> str:
    """The processor's name, or at least its kind."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
