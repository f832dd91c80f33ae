"""What every installed method offers, asked in processes of their own: a package may end the process that imports it."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

LIMIT = 300.0  # seconds in which all methods together are to be imported


class Surveyed(NamedTuple):
    """A method as a table shows it."""

    method: str
    distribution: str  # that offers it
    version: str
    parts: dict[str, list[str]]  # name -> the hooks that it answers
    fault: str  # why it cannot be loaded; "": it can


def survey(methods: Sequence[str] | None = None) -> Iterator[Surveyed]:
    """Every installed method, or those named; one that ends its process is said to, and the next is asked in a new one."""
    from twinview.assembly.plugins import offers

    who = {method: distributions for method, distributions in offers() if methods is None or method in methods}
    left = list(who)
    while left:
        code = 0
        for method, parts, fault in _asked(left):
            if method is None:
                code = int(fault)
                break
            yield _of(method, who[method], parts, fault)
            left.remove(method)
        if left:
            ended = left.pop(0)
            said = f"does not answer within {LIMIT:.0f} s" if code == STOPPED else f"ends the process that imports it (exit code {code})"
            yield _of(ended, who[ended], {}, said)


STOPPED = 1 << 16


def _of(method: str, distributions: str, parts: dict[str, list[str]], fault: str) -> Surveyed:
    both = [one.partition(" ") for one in distributions.split(" and ")]
    name, version = (" and ".join(dict.fromkeys(words)) for words in ([one[0] for one in both], [one[2] for one in both]))
    return Surveyed(method, name, version, parts, fault)


def _asked(methods: Sequence[str]) -> Iterator[tuple[str | None, dict[str, list[str]], str]]:
    """What one process says of these methods until it ends; last, (None, {}, its exit code)."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
    command = [sys.executable, "-m", "twinview.assembly.survey", *methods]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True)
    try:
        out, _ = process.communicate(timeout=LIMIT)
        code = process.returncode
    except subprocess.TimeoutExpired as e:
        process.kill()
        process.communicate()
        out, code = (e.stdout or b"").decode() if isinstance(e.stdout, bytes) else e.stdout or "", STOPPED
    for line in out.splitlines():
        if line.startswith(MARK):
            method, parts, fault = json.loads(line.removeprefix(MARK))
            yield method, parts, fault
    yield None, {}, str(code)


MARK = "twinview-survey "  # before a line of ours: a package may print where it is imported


def _answer(methods: Sequence[str]) -> None:
    from twinview.assembly.plugins import answered, installed
    from twinview.errors import TwinviewError

    for name in methods:
        for method, _, parts in installed(name):
            fault = str(parts) if isinstance(parts, TwinviewError) else ""
            hooks = {} if isinstance(parts, TwinviewError) else {part: answered(cls) for part, cls in parts.items() if isinstance(cls, type)}
            sys.stdout.write(f"\n{MARK}{json.dumps([method, hooks, fault])}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    _answer(sys.argv[1:])
