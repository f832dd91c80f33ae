"""What a check of a part says when it fails: part, hook, what it got, what it wanted."""
from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from twinview.errors import TwinviewError


class Failure(NamedTuple):
    """One thing that a part does not keep."""

    part: str
    hook: str  # without brackets; a check's name where it is no hook's fault alone
    got: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.part}: {self.hook}: got {self.got}; wanted {self.wanted}"


class ConformanceError(AssertionError):
    """A part failed checks: a line for each.  pytest shows it as a failed assertion."""

    def __init__(self, failures: Iterable[Failure]) -> None:
        self.failures = tuple(failures)
        super().__init__("\n".join(map(str, self.failures)))


def refused(part: str, error: TwinviewError, check: str) -> Failure:
    """A refusal of the core's as a failure: the hook that it names, what it says, and what it asks to be written instead."""
    said = str(error)
    place = re.match(r"^(\[[^ ]*\] )?[^ :]+: ", said)
    said = said[place.end() :] if place else said
    hook = re.match(r"(\w+)\(\) ", said)
    name, said = (hook[1], said[hook.end() :]) if hook else (check, said)
    first, _, rest = said.partition(". ")
    return Failure(part, name, first.rstrip(".").removeprefix("gives "), rest.rstrip(".").removeprefix("Give ") or "nothing to be refused")
