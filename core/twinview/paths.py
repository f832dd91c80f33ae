"""Where twinview keeps what it can make or fetch again."""
from __future__ import annotations

import os
import stat
import tempfile
from functools import lru_cache
from pathlib import Path

from twinview.errors import TwinviewError


def cache() -> Path:
    """Where embedded data and indexes are kept: $TWINVIEW_CACHE, or ~/.cache/twinview.

    Without a home, or where nothing can be written there (a container that runs as another user), a private folder among the temporary files.
    """
    if named := os.environ.get("TWINVIEW_CACHE"):
        return expand(named, "TWINVIEW_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    found = Path(base) / "twinview"
    if os.path.isabs(base) and (found.is_dir() or _writable(found.parent)):
        return found
    return _private(tempfile.gettempdir())


def expand(path: str | Path, place: str = "", fault: type[TwinviewError] = TwinviewError) -> Path:
    """A path with its `~`.  Raises `fault` where there is no such user, or no home is known; `place` is who names the path."""
    found = os.path.expanduser(path)
    if str(found).startswith("~") and not os.path.lexists(found):
        raise fault(f"{place + ': ' if place else ''}{path}: there is no such user, or no home is known. Write the whole path.")
    return Path(found)


def _writable(folder: Path) -> bool:
    """Whether the folder, or the one that it would be made in, can be written."""
    there = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    return os.access(there, os.W_OK | os.X_OK)


@lru_cache
def _private(temporary: str) -> Path:
    """A folder that nobody else can write, the same at the next start; a new one where another user has taken its name."""
    found = Path(temporary) / f"twinview-{os.getuid()}"
    try:
        found.mkdir(mode=0o700, exist_ok=True)
        mode = os.lstat(found)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="twinview-", dir=temporary))
    if not stat.S_ISDIR(mode.st_mode) or mode.st_uid != os.getuid() or mode.st_mode & 0o077:
        return Path(tempfile.mkdtemp(prefix="twinview-", dir=temporary))
    return found
