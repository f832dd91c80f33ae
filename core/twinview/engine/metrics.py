"""A run's `metrics.jsonl`: one JSON object for each logged step, each step once, numbers to the last bit."""
from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from twinview.faults import full, is_full
from twinview.files import write_text

Row = Mapping[str, Any]


class Metrics:
    """The open file of rank 0.  A row is on its way to disk when `write` returns, and on it after `sync`."""

    def __init__(self, path: Path, *, upto: int) -> None:
        """Keep the rows up to step `upto` (what a resumed run repeats is dropped, and a line that a kill cut short) and go on behind them."""
        kept = [row for row in read_metrics(path) if row["step"] <= upto]
        write_text(path, "".join(map(_line, kept)), sync=True)
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def write(self, row: Row) -> None:
        """Add a row; numbers that are not finite become null."""
        with self._full():
            self._file.write(_line(row))
            self._file.flush()

    def sync(self) -> None:
        """Wait until all rows are on disk."""
        with self._full():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # a full disk has been said
            self._file.close()

    @contextlib.contextmanager
    def _full(self) -> Iterator[None]:
        """Raises CheckpointError where there is no room for a row."""
        try:
            yield
        except OSError as e:
            if not is_full(e):
                raise
            raise full(e, self._file.name) from None


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, in order; nothing where there is none.  A last line that was cut short is left out."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and "step" in row:
            yield row


def table_of(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows as a pandas DataFrame, or a dict of lists where pandas is not installed; None stands where a row lacks a column."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    try:
        import pandas as pd
    except ImportError:
        return columns
    return pd.DataFrame(columns)


def _line(row: Row) -> str:
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(finite, allow_nan=False) + "\n"
