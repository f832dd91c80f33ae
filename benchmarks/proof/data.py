"""The shards that the runs read."""
from __future__ import annotations

import sys
from pathlib import Path


def require_shards(shards: Path, *names: str) -> None:
    """Ends with one line and exit code 2 where a set is missing."""
    for name in names:
        if not any((shards / name).glob("*.tar")):
            print(f"{shards / name}: holds no shards. Pack them as the head of this file says, or name their folder with --shards.", file=sys.stderr)
            sys.exit(2)
