"""`scores.json`: every score of a run or a file of weights, with all that it is a score of, and the floors that it stands beside."""
from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from twinview.errors import CheckpointError
from twinview.files import locked, write_text

V = TypeVar("V")

FORMAT = 1
FLOORS = ("random", "pixels")  # the encoder's random start, and no encoder at all
SAME = ("use", "checkpoint", "protocol", "data", "seed", "overrides")  # two rows that agree in these are scores of the same thing


def split_floors(scores: Mapping[str, V]) -> tuple[dict[str, V], dict[str, dict[str, V]]]:
    """`knn/top1`, `knn/random/top1` -> the scores themselves, and those of each floor by the same names."""
    own: dict[str, V] = {}
    floors: dict[str, dict[str, V]] = {}
    for name, value in scores.items():
        first, _, rest = name.partition("/")
        floor, _, measure = rest.partition("/")
        if floor in FLOORS and measure:
            floors.setdefault(floor, {})[f"{first}/{measure}"] = value
        else:
            own[name] = value
    return own, floors


def joined(row: Mapping[str, Any]) -> dict[str, float]:
    """The inverse of `split_floors`, of a row."""
    found: dict[str, float] = dict(row["scores"])
    for floor, scores in row.get("floors", {}).items():
        found |= {name.replace("/", f"/{floor}/", 1): value for name, value in scores.items()}
    return found


def record(path: Path, row: Mapping[str, Any], scores: Mapping[str, float]) -> str:
    """Keep a row in the file, in place of the one of the same evaluation; gives what came of that as words.  Raises CheckpointError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock")):  # evaluations of one run may end together
        return _record(path, row, scores)


def _record(path: Path, row: Mapping[str, Any], scores: Mapping[str, float]) -> str:
    rows = read_scores(path)
    own, floors = split_floors(scores)
    new: dict[str, Any] = {**row, "scores": own, "floors": floors, "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    before = next((old for old in rows if all(_text(old.get(key)) == _text(new.get(key)) for key in SAME)), None)
    others = [old for old in rows if old is not before]
    if before is not None and _text([before.get("scores"), before.get("floors")]) == _text([own, floors]):
        return f"nothing changed since {before.get('when')}"
    write_text(path, json.dumps({"format": FORMAT, "scores": [*others, new]}, indent=1) + "\n")
    if before is None:
        return "new"
    moved = [f"{name} {before['scores'].get(name)} -> {value}" for name, value in own.items() if before["scores"].get(name) != value]
    return f"changed since {before.get('when')}: {', '.join(moved) or 'floors alone'}"


def _text(value: Any) -> str:
    """Equal for equal values, NaN among them."""
    return json.dumps(value, sort_keys=True)


def read_scores(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of scores, none where there is none.  Raises CheckpointError for a file that is none of ours."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        rows = table["scores"]
        if table.get("format") != FORMAT or not isinstance(rows, Sequence) or not all(isinstance(row, dict) and "scores" in row for row in rows):
            raise ValueError
    except FileNotFoundError:
        return []
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError):
        raise CheckpointError(f"{path}: is no file of scores, or a damaged one. Move it away.") from None
    return list(rows)
