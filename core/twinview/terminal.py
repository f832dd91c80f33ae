"""Printing, safely: names of files, keys, and words of servers and libraries are foreign, and a terminal obeys control codes.

Everything that twinview prints goes through `say` or `answer`; messages of TwinviewError are made printable where they are asked for.
"""
from __future__ import annotations

import contextlib
import re
import sys
import time

said_at = 0.0  # when the last line was said, by time.monotonic()

# C0 but tab and newline, DEL, C1, marks that turn or hide text (bidirectional, zero width, line and paragraph separators), lone surrogates
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


def printable(text: object) -> str:
    """The text with every control code written as in a Python string: `\\x1b`."""
    return CONTROL.sub(lambda found: _escaped(found[0]), str(text))


def one_line(text: object) -> str:
    """`printable`, on one line."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def say(text: object) -> None:
    """A line on stderr, above a progress bar where there is one.  Where nobody reads it any more, work goes on without."""
    global said_at
    said_at = time.monotonic()
    bars = sys.modules.get("tqdm")
    with contextlib.suppress(BrokenPipeError):
        if bars is not None:
            bars.tqdm.write(printable(text), file=sys.stderr)
            sys.stderr.flush()
        else:
            print(printable(text), file=sys.stderr, flush=True)


def answer(text: object = "") -> None:
    """What a command was asked for, on stdout."""
    print(printable(text))
