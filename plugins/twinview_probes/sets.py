"""Whether the sets that an evaluation learns from and scores on number the same classes."""
from __future__ import annotations

from twinview.errors import DataError
from twinview.values import DataFactory


def check_same_classes(data: DataFactory, train: str | list[str], val: str | list[str], place: str) -> None:
    """Raises DataError where a number stands for other classes in the manifests of `val` than in those of `train` ("": the run's own shards)."""
    ours, theirs = data.class_names(train or None) or (), data.class_names(val) or ()
    for n, (name, other) in enumerate(zip(ours, theirs)):
        if name != other:
            fault = f"class {n} is {other!r} in {val}, and {name!r} in {train or '[data] shards'}"
            cure = "Pack both with the same classes: an empty folder counts as one"
            raise DataError(f"[[evaluate]] {place}: {fault}. {cure}.")
