"""The standard output of a program, run without a shell: `pipe:COMMAND`."""
from __future__ import annotations

import os
import selectors
import shlex
import subprocess
import tempfile

from twinview.data.remote.base import PIPE, Unreachable, one_line
from twinview.errors import DataError

PIPE_SILENCE = 300.0  # a program may have to log in, or to wait for a tape


def program(url: str) -> list[str]:
    """The words of `pipe:COMMAND`.  Raises DataError."""
    try:
        words = shlex.split(url.removeprefix(PIPE))
    except ValueError as e:
        raise DataError(f"{url!r}: {one_line(e)}.") from None
    if not words:
        raise DataError(f"{url!r}: names no program. Write for example pipe:aws s3 cp s3://bucket/x.tar -.")
    return words


class Program:
    """What a program writes to its standard output; its end counts only with exit code 0."""

    def __init__(self, url: str) -> None:
        words = program(url)
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the program runs
        try:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.errors)
        except OSError as e:
            raise Unreachable(f"{words[0]} cannot be started: {e.strerror}", False) from None
        assert self.process.stdout is not None
        self.output = self.process.stdout
        self.ready = selectors.DefaultSelector()
        self.ready.register(self.output, selectors.EVENT_READ)

    def read(self, n: int) -> bytes:
        """At most n bytes, none at the end.  Raises Unreachable."""
        if not self.ready.select(PIPE_SILENCE):
            raise Unreachable(f"no byte in {PIPE_SILENCE:.0f} s", True)
        data = os.read(self.output.fileno(), n)
        if not data and (code := self.process.wait(PIPE_SILENCE)):
            self.errors.seek(0)
            said = self.errors.read().decode(errors="replace").strip().splitlines()
            raise Unreachable(f"ended with exit code {code}" + (f": {said[-1].rstrip('.')}" if said else ""), True)
        return data

    def close(self) -> None:
        """End the program."""
        self.process.kill()
        self.process.wait()
        self.ready.close()
        self.output.close()
        self.errors.close()
