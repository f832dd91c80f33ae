"""What a measurement was taken on."""
from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path


def processor() -> str:
    """The processor's name, or at least its kind."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit(checkout: Path = Path(__file__).parent, paths: Sequence[str] = ()) -> str:
    """Short name of a checkout's commit; `unknown` outside a git clone.

    With a + where tracked files differ from it; of `paths`, where these do or hold new files.
    """

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(checkout), *words], capture_output=True, text=True, check=True).stdout.strip()

    looked_at = ["--", *paths] if paths else ["--untracked-files=no"]
    try:
        return git("rev-parse", "--short=7", "HEAD") + ("+" if git("status", "--porcelain", *looked_at) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
