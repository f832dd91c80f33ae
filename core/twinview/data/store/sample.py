"""A sample as it lies in a shard."""
from __future__ import annotations

from typing import NamedTuple


class Sample(NamedTuple):
    """A sample as it lies in a shard."""

    key: str
    fields: dict[str, bytes]
