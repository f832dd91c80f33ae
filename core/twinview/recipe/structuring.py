"""Strict conversion of TOML values to attrs classes (cattrs): every fault is named, with the nearest right word."""
from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, cast, get_args, get_origin

import attrs
import cattrs
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError, IterableValidationNote

from twinview.errors import RecipeError, closest
from twinview.recipe.tables import MEASURED, Amount, Numbers

_converter = cattrs.Converter(forbid_extra_keys=True)


def _strict_scalar(kind: type) -> None:
    def structure_scalar(value: Any, _: Any) -> Any:
        ok = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if not ok:
            raise ValueError(f"wants {_WORDS[kind]}, not {value!r}")
        return value

    _converter.register_structure_hook(kind, structure_scalar)


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
            raise ValueError(f"wants {what}, not {value!r}")
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
    raise ValueError(f"wants a string or a list of strings, not {value!r}")


@_converter.register_structure_hook
def _amount(value: Any, _: type[Amount]) -> Amount:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    raise ValueError(f"wants a number, not {value!r}")


@_converter.register_structure_hook
def _numbers(value: Any, _: type[Numbers]) -> Numbers:
    if value == MEASURED:
        return MEASURED
    if not isinstance(value, (list, tuple)):
        raise ValueError(f'wants a list of numbers or "{MEASURED}", not {value!r}')
    return [_converter.structure(v, float) for v in value]


def _faults(error: BaseException, path: str) -> Iterator[str]:
    if isinstance(error, (ClassValidationError, IterableValidationError)):
        noted, plain = error.group_exceptions()
        for e, note in noted:
            at = f"{path}.{note.name}" if hasattr(note, "name") else f"{path}[{note.index}]"
            yield from _faults(e, at.lstrip("."))
        for e in plain:
            yield from _faults(e, path)
    elif isinstance(error, ForbiddenExtraKeysError):
        for key in sorted(error.extra_fields):
            yield f"{path}: nothing takes {key!r}.{closest(key, [f.name for f in attrs.fields(cast(Any, error.cl)) if f.init])}"
    elif isinstance(error, KeyError):
        yield f"{path}: is missing."
    else:
        yield f"{path}: {_plain(error)}."


def _plain(error: BaseException) -> str:
    text = str(error.args[0] if error.args else error).rstrip(".")
    literal = re.fullmatch(r"(.*) not in literal typing.Literal\[(.*)\]", text)
    if literal:
        return f"wants one of {literal[2]}, not {literal[1]!r}"
    return text.replace("'", "", 2) if isinstance(error, ValueError) and "must be" in text else text


def structure(value: Any, cls: type, path: str) -> Any:
    """Make `cls` (attrs) of a plain table.  Raises RecipeError naming every fault, one a line, each with the nearest right word."""
    try:
        return _converter.structure(value, cls)
    except (ClassValidationError, IterableValidationError) as e:
        raise RecipeError("\n".join(_faults(e, path))) from None
    except (ValueError, TypeError) as e:
        raise RecipeError(f"{path}: {_plain(e)}.") from None
