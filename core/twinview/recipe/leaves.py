"""A recipe's tables as single keys."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by dotted key.  A list of tables is gone into, a list of numbers is one leaf."""
    if isinstance(value, Mapping):
        items: Any = value.items()
    elif isinstance(value, (list, tuple)) and any(isinstance(v, Mapping) for v in value):
        items = enumerate(value)
    else:
        yield path, list(value) if isinstance(value, tuple) else value
        return
    for key, inner in items:
        yield from flat(inner, f"{path}.{key}".lstrip("."))
