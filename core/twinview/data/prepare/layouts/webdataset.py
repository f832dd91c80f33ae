"""Other shards in WebDataset's layout (github.com/webdataset/webdataset, README): packed anew with all their fields, in their order."""
from __future__ import annotations

from collections.abc import Iterator

from twinview.data.dataset.open import open_shards
from twinview.data.prepare.layouts import Found
from twinview.data.writing.entry import Entry


def find(source: str) -> Found:
    """Every sample of the shards that `source` names, as `data.shards` of a recipe would."""
    shards = open_shards(source)

    def entries() -> Iterator[Entry]:
        for i in range(len(shards)):
            key, fields = shards.read(i)
            yield Entry(key, {**fields})

    return Found(entries=entries(), total=len(shards))
