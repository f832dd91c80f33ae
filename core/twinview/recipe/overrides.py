"""TOML from a file, and single keys from the command line."""
from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from typing import Any

from twinview.errors import RecipeError

DEEP = 100  # tables and lists within each other: no recipe has more than five
ONE_OF = {  # keys of a table of which a recipe has one: on the command line it takes the place of the file's
    "run": ("steps", "epochs", "hours"),
    "schedule": ("warmup_epochs", "warmup_steps", "warmup_share"),
    "optimizer": ("lr", "base_lr"),
}


def parsed(text: str) -> dict[str, Any]:
    """TOML -> tables; a byte-order mark is passed over.

    Raises tomllib.TOMLDecodeError for what is no TOML, another ValueError with what is wrong where nothing can hold it.
    """
    if _depth(text) > DEEP:
        raise ValueError(f"is nested more than {DEEP} deep")
    try:
        return tomllib.loads(text.removeprefix("\ufeff"))
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError:  # keys of many dots
        raise ValueError(f"is nested more than {DEEP} deep") from None
    except ValueError:  # a number beyond Python's own limit of digits, a date that no calendar has
        raise ValueError("holds a number or a date that nothing can hold. Write a smaller one, or quote it") from None


def _depth(text: str) -> int:
    """How deep brackets are nested; those in strings and comments count too, which only refuses what is absurd anyway."""
    deepest = depth = 0
    for mark in re.findall(r"[\[\]{}]", text):
        depth = max(0, depth + (1 if mark in "[{" else -1))
        deepest = max(deepest, depth)
    return deepest


def short(text: str) -> str:
    """A word of the user's in a message: quoted, its middle left out where it is long."""
    return repr(text) if len(text) <= 200 else f"{text[:100]!r}...{text[-40:]!r}"


def override(table: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """`views.min_iou=0.4`, `loss.0.weight=2`: keys of a recipe's tables set from the command line.

    Of keys that exclude one another (`ONE_OF`) the given one takes the place of the table's own.  Raises RecipeError.
    """
    given = set[str]()
    for text in assignments:
        path, equals, raw = text.partition("=")
        if not equals or not path:
            raise RecipeError(f"{short(text)}: an override is written table.key=value, for example views.min_iou=0.4.")
        *tables, key = path.split(".")
        if "" in (*tables, key) or len(tables) > DEEP:
            raise RecipeError(f"{short(path)}: is no key. An override is written table.key=value, for example views.min_iou=0.4.")
        value = _value(path, raw)
        here: Any = table
        for name in tables:
            here = _inside(here, name, text)
        if isinstance(here, list):
            example = f"{tables[0]}.0.{key}=..." if not key.isdigit() else f"{tables[0]}.{key}.weight=..."
            raise RecipeError(f"{short(text)}: is a list of parts; write the place too, for example {short(example)[1:-1]}")
        here[key] = value
        given.add(path)
        alike = ONE_OF.get(".".join(tables), ())
        for other in alike if key in alike else ():
            if f"{tables[0]}.{other}" not in given:
                here.pop(other, None)
    return table


def _value(path: str, raw: str) -> Any:
    """TOML's value, or the text where it is none."""
    try:
        found = parsed(f"x = {raw}")
    except tomllib.TOMLDecodeError:
        if raw[:1] in ("[", "{", '"', "'"):
            example = f"'{path}=[\"a\", \"b\"]'" if len(path) < 100 else "'KEY=[\"a\", \"b\"]'"
            raise RecipeError(f"{short(f'{path}={raw}')}: {short(raw)[1:-1]} is no TOML value. Quote the whole override: {example}.") from None
        return raw
    except ValueError as e:
        raise RecipeError(f"{short(f'{path}={raw}')}: {e}.") from None
    if len(found) > 1:
        raise RecipeError(f"{short(f'{path}={raw}')}: has more than one line. Write an override for each key.")
    return found["x"]


def _inside(here: Any, name: str, text: str) -> Any:
    """What lies under a name, or at a place of a list."""
    if isinstance(here, list):
        if not (name.isascii() and name.isdigit()) or len(name) > 9 or int(name) >= len(here):
            there = f"Write 0 to {len(here) - 1}." if here else "The list is empty."
            raise RecipeError(f"{short(text)}: {short(name)} is no place in a list of {len(here)}. {there}")
        here = here[int(name)]
    else:
        here = here.setdefault(name, {})
    if not isinstance(here, (dict, list)):
        raise RecipeError(f"{short(text)}: {short(name)} is a value, not a table.")
    return here
