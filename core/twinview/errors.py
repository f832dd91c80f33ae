"""Faults that a user can mend.  The command line prints each as one line and exits with code 2."""
from __future__ import annotations

import difflib
from collections.abc import Iterable

from twinview.terminal import printable


class TwinviewError(Exception):
    """A fault of the input.  The message is one line: the place, what is wrong, what to write instead."""

    def __str__(self) -> str:
        """The message, without the control codes that names of files and words of servers may hold."""
        return printable(super().__str__())


class RecipeError(TwinviewError):
    """The recipe, an override or a part that it names is at fault."""


class PluginError(TwinviewError):
    """A method cannot be loaded, or does not keep the contract of a hook."""


class ContractError(PluginError):
    """A hook gave, or asked for, what its contract does not know.  The core puts part and hook in front: `placed`."""

    def __init__(self, message: str, placed: bool = False) -> None:
        """`message`: what was given, and what to give."""
        super().__init__(message, placed)
        self.placed = placed

    def __str__(self) -> str:
        return str(self.args[0])


class HookError(PluginError):
    """The code of a part raised.  The message names part, hook, file and line; `details` is the traceback, for the part's author."""

    def __init__(self, message: str, details: str) -> None:
        """`details`: several lines."""
        super().__init__(message, details)
        self.details = details

    def __str__(self) -> str:
        return str(self.args[0])


class DataError(TwinviewError):
    """A shard, an index or a folder of images is at fault."""

    shards: str | list[str] | None = None  # the set that an evaluation read, as it named it; "": the run's own; None: not known


class CheckpointError(TwinviewError):
    """A run's folder or checkpoint is missing, damaged or of another recipe."""


class Preempted(TwinviewError):
    """The run was told to end (SIGTERM, or SIGINT: Ctrl-C); what it saved is in the message."""

    number = 15  # of the signal; the exit code is 128 more


class RankLost(TwinviewError):
    """Another rank of the run is gone; it is that rank which knows why."""


def closest(word: str, words: Iterable[str]) -> str:
    """` Did you mean 'x'? There is: a, b, x.`, to be put behind a message about an unknown word."""
    known = sorted(set(words))
    near = difflib.get_close_matches(word, known, n=1)
    return (f" Did you mean {near[0]!r}?" if near else "") + f" There is: {', '.join(known) or 'nothing'}."
