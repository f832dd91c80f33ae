"""`manifest.json` beside shards, as `twinview shards pack` writes it: what it says of each shard, and the names of the classes."""
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twinview.data.store.regular import SMALL_BYTES, read_regular

NAME = "manifest.json"


def parse(data: bytes) -> Mapping[str, Any]:
    """A manifest; empty for what is none of ours."""
    try:
        found = json.loads(data)
        _ = [str(shard["name"]) for shard in found["shards"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def beside(folder: Path) -> Mapping[str, Any]:
    """The manifest of a folder of shards; empty where it has none of ours."""
    try:
        return parse(read_regular(folder / NAME, SMALL_BYTES))
    except (OSError, ValueError):
        return {}


def classes(found: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes of a manifest, by number; empty where it says none."""
    names = found.get("classes")
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()
