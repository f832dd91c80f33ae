"""Strict conversion of TOML values to attrs classes (cattrs): every fault is named, with the nearest right word."""
from __future__ import annotations

import datetime
import re
import sys
from collections.abc import Iterator
from typing import Any, cast, get_args, get_origin

import attrs
import cattrs
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError, IterableValidationNote

from twinview.errors import RecipeError, closest
from twinview.recipe.tables import MEASURED, Amount, Numbers, Weight

MOST = int(sys.float_info.max)
_converter = cattrs.Converter(forbid_extra_keys=True)


def _strict_scalar(kind: type) -> None:
    def structure_scalar(value: Any, _: Any) -> Any:
        ok = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            if abs(value) > MOST:
                raise ValueError(f"wants a number, and no number of the machine is as large as {written(value)}")
            return float(value)
        if not ok:
            raise ValueError(f"wants {_WORDS[kind]}, not {written(value)}{_quote(value) if kind is str else ''}")
        return value

    _converter.register_structure_hook(kind, structure_scalar)


def written(value: Any) -> str:
    """A value in a message, as TOML has it where it is a single one; the end of a long one is left out."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (datetime.date, datetime.time)):
        return f"the date or time {value.isoformat()}"
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # too deep, or a number of too many digits
        return f"a {type(value).__name__} that is too large to be shown"
    return text if len(text) <= 200 else f"{text[:150]}..."


def _quote(value: Any) -> str:
    """What to do with a value that TOML takes for something else than text: `. Quote it: "5"`."""
    if not isinstance(value, (bool, int, float, datetime.date, datetime.time)):
        return ""
    text = value.isoformat() if isinstance(value, (datetime.date, datetime.time)) else written(value)
    return f'. Quote it: "{text}"; on the command line \'key="{text}"\''


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
for _kind in _WORDS:
    _strict_scalar(_kind)


def _is_sequence(kind: Any) -> bool:
    return get_origin(kind) in (list, tuple)


@_converter.register_structure_hook_factory(_is_sequence)
def _strict_sequence(kind: Any) -> Any:
    """Lists and tuples are written as lists: a string is no list of its letters."""
    origin, inner = get_origin(kind), get_args(kind)
    count = len(inner) if origin is tuple and Ellipsis not in inner else None
    what = f"a list of {count}" if count else "a list"

    def structure_sequence(value: Any, _: Any) -> Any:
        if not isinstance(value, (list, tuple)) or (count and len(value) != count):
            raise ValueError(f"wants {what}, not {written(value)}")
        kinds = inner if count else (inner[0],) * len(value)
        found, faults = [], []
        for place, (v, k) in enumerate(zip(value, kinds)):
            try:
                found.append(_converter.structure(v, k))
            except Exception as e:
                e.__notes__ = [IterableValidationNote("", place, k)]
                faults.append(e)
        if faults:
            raise IterableValidationError("", faults, kind)
        return origin(found)

    return structure_sequence


@_converter.register_structure_hook
def _shards(value: Any, _: type[str | list[str]]) -> str | list[str]:
    if isinstance(value, str) or (isinstance(value, list) and value and all(isinstance(v, str) for v in value)):
        return value
    raise ValueError(f"wants a string or a list of strings, not {written(value)}{_quote(value)}")


@_converter.register_structure_hook
def _amount(value: Any, _: type[Amount]) -> Amount:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    raise ValueError(f"wants a number, not {written(value)}")


@_converter.register_structure_hook
def _whole_or_several(value: Any, _: type[int | list[int]]) -> int | list[int]:
    return [_converter.structure(v, int) for v in value] if isinstance(value, list) else _converter.structure(value, int)


@_converter.register_structure_hook
def _number_or_several(value: Any, _: type[float | list[float]]) -> float | list[float]:
    return [_converter.structure(v, float) for v in value] if isinstance(value, list) else _converter.structure(value, float)


@_converter.register_structure_hook
def _weight(value: Any, _: type[Weight]) -> Weight:
    if not isinstance(value, list):
        return _converter.structure(value, float)
    if not all(isinstance(point, (list, tuple)) and len(point) == 2 for point in value):
        raise ValueError(f"wants a number, or points [share of the run, weight] such as [[0, 0], [0.2, 1]], not {written(value)}")
    return [[_converter.structure(number, float) for number in point] for point in value]


@_converter.register_structure_hook
def _numbers(value: Any, _: type[Numbers]) -> Numbers:
    if value == MEASURED:
        return MEASURED
    if not isinstance(value, (list, tuple)):
        raise ValueError(f'wants a list of numbers or "{MEASURED}", not {written(value)}')
    return [_converter.structure(v, float) for v in value]


def _faults(error: BaseException, path: str, kind: Any = None) -> Iterator[str]:
    """What is wrong, a line each.  `kind`: the type of what belongs at `path`."""
    if isinstance(error, (ClassValidationError, IterableValidationError)):
        noted, plain = error.group_exceptions()
        for e, note in noted:
            at = f"{path}.{note.name}" if hasattr(note, "name") else f"{path}[{note.index}]"
            yield from _faults(e, at.lstrip("."), note.type)
        for e in plain:
            yield from _faults(e, path)
    elif isinstance(error, ForbiddenExtraKeysError):
        for key in sorted(map(str, error.extra_fields)):
            yield f"{path}: nothing takes {written(key)}.{closest(key, [f.name for f in attrs.fields(cast(Any, error.cl)) if f.init])}"
    elif isinstance(error, KeyError):
        yield f"{path}: is missing.{_wanted(kind)}"
    else:
        yield f"{path}: {_plain(error)}."


def _wanted(kind: Any) -> str:
    """What to write for a value of this type, where a few words say it."""
    words, inner = {bool: "true or false", int: "a whole number", float: "a number", str: "a word in quotes"}, get_args(kind)
    if get_origin(kind) is tuple and inner in {(int,) * len(inner), (float,) * len(inner)}:
        return f" Write a list of {len(inner)} {'whole ' * (inner[0] is int)}numbers."
    return f" Write {words[kind]}." if kind in words else ""


def _plain(error: BaseException) -> str:
    text = str(error.args[0] if error.args else error).rstrip(".")
    literal = re.fullmatch(r"(.*) not in literal typing.Literal\[(.*)\]", text)
    if literal:
        return f"wants one of {literal[2]}, not {written(literal[1])}"
    if len(text) > 1000:  # a value in it
        text = f"{text[:500]}...{text[-200:]}"
    return text.replace("'", "", 2) if isinstance(error, ValueError) and "must be" in text else text


def structure(value: Any, cls: type, path: str) -> Any:
    """Make `cls` (attrs) of a plain table.  Raises RecipeError naming every fault, one a line, each with the nearest right word."""
    try:
        return _converter.structure(value, cls)
    except (ClassValidationError, IterableValidationError) as e:
        raise RecipeError("\n".join(_faults(e, path))) from None
    except (ValueError, TypeError) as e:
        raise RecipeError(f"{path}: {_plain(e)}.") from None
