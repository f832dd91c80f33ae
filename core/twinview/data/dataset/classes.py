"""Why a data set has no class numbers."""
from __future__ import annotations

from twinview.data.dataset.base import DataSource
from twinview.data.dataset.mixture import Mixture
from twinview.data.dataset.read import bad_sample
from twinview.data.dataset.shards import MOST_CLASSES, Shards
from twinview.data.dataset.stream import Stream

FIELD = "cls"


def missing_classes(shards: DataSource) -> str:
    """What is in the way of class numbers, in words: the source that has none, or the first sample at fault and what its field `cls` holds."""
    if isinstance(shards, Stream):
        return "under [data] streaming no class numbers are counted (leave streaming out)"
    if not isinstance(shards, Mixture):
        return _missing(shards) if isinstance(shards, Shards) else _none("the shards of [data]")
    part = next((part for part in shards.parts if not part.shards.classes), shards.parts[0])
    return _missing(part.shards, f"[[data.source]] {part.label}" if len(shards.parts) > 1 else "the shards of [data]")


def _missing(shards: Shards, who: str = "the shards of [data]") -> str:
    if FIELD not in shards.fields:
        return _none(who)
    for shard, classes in enumerate(shards.classes_of_shards):
        for i in range(int(shards.starts[shard]), int(shards.starts[shard + 1])) if not 0 < classes <= MOST_CLASSES else ():
            if fault := _fault(shards, i):
                return str(bad_sample(shards, i, fault))
    return _none(who)


def _fault(shards: Shards, i: int) -> str:
    """What is wrong with the class of sample `i`; empty where it has a number."""
    if FIELD not in shards.names(i):
        return "has no class (field cls)"
    text = shards.read(i, (FIELD,)).fields[FIELD]
    if text.strip().isdigit() and len(text) <= 64 and int(text) < MOST_CLASSES:
        return ""
    return f"its field cls holds {text[:20]!r}, which is no number from 0 to 2**20"


def _none(who: str) -> str:
    return f"{who} hold{'s' * who.startswith('[[')} no class numbers (field cls, from 0 to 2**20)"
