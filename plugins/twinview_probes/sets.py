"""What the sets that an evaluation learns from and scores on are to each other."""
from __future__ import annotations

import logging

from twinview.errors import DataError
from twinview.ops.ranks import rank
from twinview.values import DataFactory

log = logging.getLogger(__name__)


def check_same_classes(data: DataFactory, train: str | list[str], val: str | list[str], place: str) -> None:
    """Raises DataError where a number stands for other classes in the manifests of `val` than in those of `train` ("": the run's own shards)."""
    ours, theirs = data.class_names(train or None) or (), data.class_names(val) or ()
    for n, (name, other) in enumerate(zip(ours, theirs)):
        if name != other:
            fault = f"class {n} is {other!r} in {val}, and {name!r} in {train or '[data] shards'}"
            cure = "Pack both with the same classes: an empty folder counts as one"
            raise DataError(f"[[evaluate]] {place}: {fault}. {cure}.")


def say_if_shared(data: DataFactory, train: str | list[str], val: str | list[str], place: str) -> None:
    """Say in a line that images of `val` are images of `train`: a score of what was learned from is allowed, and tells nothing of other images."""
    count = data.shared(val, train or None)
    if count and rank() == 0:
        of = f"train = {train!r}" if train else "train is empty: the run's own"
        said = f"{count} image{'s' * (count > 1)} of val = {val!r} are among those that it learns from ({of}), and its score says little of others"
        log.warning("[[evaluate]] %s: %s. Write another val; or train with data.held_out=0.1, and write val=\"held-out\".", place, said)
