"""Where twinview keeps what it can make or fetch again."""
from __future__ import annotations

import os
from pathlib import Path


def cache() -> Path:
    """Where embedded data is kept: $TWINVIEW_CACHE, or ~/.cache/twinview."""
    return Path(os.environ.get("TWINVIEW_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twinview")
