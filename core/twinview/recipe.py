"""Recipes: one TOML file says what a run is made of.  Read strictly: a key that nothing takes is an error."""
from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args, get_origin

import attrs
import cattrs
from attrs import field
from attrs.validators import ge, lt
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError, IterableValidationNote

from twinview.errors import RecipeError, closest
from twinview.options import FORMAT, HELD_OUT, MEASURED, OPTIMIZERS, Amount, Data, Numbers, Run, Schedule, Target, _Rates


@attrs.frozen(kw_only=True)
class Use:
    """A part as a recipe names it: `use`, the keys that every slot takes, and the part's own options."""

    use: str  # method.part
    name: str = ""  # [[...]] and [align.NAME] only: stable name, needed when a part is used twice
    weight: float = field(default=1.0, validator=lt(math.inf))  # [[loss]] only
    every: int = field(default=0, validator=ge(0))  # [[evaluate]] only: steps between evaluations, 0 = at the end
    options: dict[str, Any] = field(factory=dict)

    @property
    def label(self) -> str:
        """The part's stable name in this recipe."""
        return self.name or self.use


SLOT_KEYS = {"head": ("name",), "loss": ("name", "weight"), "extra": ("name",), "evaluate": ("name", "every")}  # beside use
TABLES: dict[str, type] = {"target": Target, "data": Data, "schedule": Schedule, "run": Run}
SLOTS = ("views", "augment", "masks", "encoder", "align", "head", "loss", "extra", "evaluate")  # in which data flows


@attrs.frozen(kw_only=True)
class Recipe:
    """What a run is made of.  Slots first, then the core's own tables."""

    format: int = FORMAT
    views: Use
    augment: Use | None = None
    masks: Use | None = None
    encoder: Use
    align: dict[str, Use] = field(factory=dict)  # by name; "" for a recipe that has one
    head: list[Use] = field(factory=list)
    loss: list[Use]
    extra: list[Use] = field(factory=list)
    evaluate: list[Use] = field(factory=list)
    target: Target = field(factory=Target)
    data: Data
    optimizer: _Rates
    schedule: Schedule = field(factory=Schedule)
    run: Run
    deepspeed: dict[str, Any] = field(factory=dict)
    name: str = field(default="recipe", eq=False)  # where it was read from

    def uses(self) -> Iterator[tuple[str, str, Use]]:
        """Each (slot, place as messages name it, part), in the order in which data flows."""
        for slot in SLOTS:
            found = getattr(self, slot)
            if isinstance(found, Use):
                yield slot, f"[{slot}] {found.use}", found
            elif isinstance(found, dict):
                yield from ((slot, f"[{slot}{'.' * bool(k)}{k}] {u.use}", u) for k, u in found.items())
            elif found:
                yield from ((slot, f"[[{slot}]] {u.use}", u) for u in found)

    def table(self) -> dict[str, Any]:
        """The recipe as plain tables, every default written out: what `recipe.toml` of a run holds."""
        out: dict[str, Any] = {"format": self.format}
        for f in attrs.fields(Recipe):
            value = getattr(self, f.name)
            if f.name in SLOTS:
                if value:
                    out[f.name] = _use_table(f.name, value)
            elif attrs.has(type(value)):
                out[f.name] = attrs.asdict(value, filter=lambda _, v: v is not None and v != [])
            elif f.name == "deepspeed" and value:
                out[f.name] = value
        out["optimizer"] = {"use": next(k for k, c in OPTIMIZERS.items() if type(self.optimizer) is c), **out["optimizer"]}
        return out


def _use_table(slot: str, value: Any) -> Any:
    if isinstance(value, Use):
        own = {k: getattr(value, k) for k in SLOT_KEYS.get(slot, ()) if getattr(value, k) != ""}
        return {"use": value.use, **own, **value.options}
    if isinstance(value, dict):
        return _use_table(slot, value[""]) if list(value) == [""] else {k: _use_table(slot, u) for k, u in value.items()}
    return [_use_table(slot, u) for u in value]


# ---- reading
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


def _use(slot: str, table: Any, place: str) -> Use:
    if not isinstance(table, Mapping):
        raise RecipeError(f"{place}: wants a table with `use = \"method.part\"`, not {table!r}.")
    if not isinstance(table.get("use"), str) or table["use"].count(".") != 1:
        raise RecipeError(f"{place}: wants `use = \"method.part\"`" + (f", not {table['use']!r}." if "use" in table else "; it names no part."))
    own = {k: table[k] for k in ("use", *SLOT_KEYS.get(slot, ())) if k in table}
    if "/" in str(own.get("name", "")):
        raise RecipeError(f"{place}.name: {own['name']!r} has a '/'. Write '.' or '_' instead.")
    place = f"{place} {table['use']}" if slot in SLOT_KEYS else place
    return cast(Use, structure({**own, "options": {k: v for k, v in table.items() if k not in own}}, Use, place))


def _read_slot(slot: str, value: Any) -> Any:
    if slot in ("head", "loss", "extra", "evaluate"):
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise RecipeError(f"[{slot}]: there may be several; write [[{slot}]].")
        return [_use(slot, t, f"[[{slot}]]") for t in value]
    if isinstance(value, list):
        raise RecipeError(f"[[{slot}]]: takes one part; write [{slot}]" + (", or [align.NAME] for each of several." if slot == "align" else "."))
    if slot == "align":
        if not isinstance(value, Mapping):
            raise RecipeError("[align]: wants a table with `use = \"method.part\"`.")
        return {"": _use(slot, value, "[align]")} if "use" in value or not value else _named(value)
    return _use(slot, value, f"[{slot}]")


def _named(tables: Mapping[str, Any]) -> dict[str, Use]:
    """[align.NAME]: of two that use one part, the name tells them apart."""
    made = {name: _use("align", table, f"[align.{name}]") for name, table in tables.items()}
    uses = [use.use for use in made.values()]
    return {name: attrs.evolve(use, name=f"{use.use}.{name}" if uses.count(use.use) > 1 else "") for name, use in made.items()}


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


def from_table(table: Mapping[str, Any], name: str = "recipe") -> Recipe:
    """A recipe from plain tables.  Raises RecipeError."""
    if table.get("format", FORMAT) != FORMAT:
        raise RecipeError(f"format: this recipe is of format {table['format']!r}, this twinview reads {FORMAT}. Install the twinview that wrote it.")
    fields = {f.name: f for f in attrs.fields(Recipe) if f.name != "name"}
    for key in table:
        if key not in fields:
            raise RecipeError(f"the recipe: nothing takes [{key}].{closest(key, fields)}")
    out: dict[str, Any] = {"name": name}
    for key, value in table.items():
        if key in SLOTS:
            out[key] = _read_slot(key, value)
        elif key == "optimizer":
            out[key] = _optimizer(value)
        elif key == "deepspeed":
            if not isinstance(value, Mapping):
                raise RecipeError(f"[deepspeed]: wants a table, not {value!r}.")
            out[key] = dict(value)
        elif key != "format":
            if not isinstance(value, Mapping):
                raise RecipeError(f"[{key}]: wants a table, not {value!r}.")
            out[key] = structure(value, TABLES[key], f"[{key}]")
    for key, f in fields.items():
        if f.default is attrs.NOTHING and (key not in out or out[key] == []):
            raise RecipeError(f"[{key}]: is missing. A recipe needs {', '.join(k for k, x in fields.items() if x.default is attrs.NOTHING)}.")
    recipe = Recipe(**out)
    _check(recipe)
    return recipe


def _optimizer(table: Any) -> Any:
    if not isinstance(table, Mapping):
        raise RecipeError(f"[optimizer]: wants a table, not {table!r}. Write use = \"sgd\" in it.")
    if table.get("use") not in OPTIMIZERS:
        given = table.get("use", "")
        raise RecipeError(f"[optimizer] use: no optimizer {given!r}.{closest(str(given), OPTIMIZERS)}")
    made = structure({k: v for k, v in table.items() if k != "use"}, OPTIMIZERS[table["use"]], "[optimizer]")
    if (made.lr is None) == (made.base_lr is None):
        raise RecipeError("[optimizer]: wants exactly one of lr and base_lr (the rate for 256 images).")
    return made


def _check(recipe: Recipe) -> None:
    """Faults that lie between keys."""
    run, schedule = recipe.run, recipe.schedule
    for place, keys, least in (("[run]", ("steps", "epochs", "hours"), 1), ("[schedule]", ("warmup_epochs", "warmup_steps", "warmup_share"), 0)):
        table = run if place == "[run]" else schedule
        given = [k for k in keys if getattr(table, k) is not None]
        if not least <= len(given) <= 1:
            raise RecipeError(f"{place}: wants {'exactly' if least else 'at most'} one of {', '.join(keys)}; it has {' and '.join(given) or 'none'}.")
        for key in given:
            if not 0 <= getattr(table, key) < math.inf or (least and getattr(table, key) == 0):
                raise RecipeError(f"{place}.{key}: wants a number above 0, not {getattr(table, key)}.")
    if run.batch_size % run.accumulation:
        raise RecipeError(f"[run] accumulation: {run.accumulation} does not divide batch_size {run.batch_size}.")
    _check_colours(recipe.data)
    _check_sources(recipe)


def _check_sources(recipe: Recipe) -> None:
    data, sources = recipe.data, recipe.data.source
    if data.shards and sources:
        raise RecipeError("[data]: has shards and [[data.source]] too. Give them a [[data.source]] of their own, or set data.source=[].")
    if not data.shards and not sources:
        raise RecipeError("[data].shards: is missing. Write the paths of some shards, images:DIR, or [[data.source]] tables.")
    for key in ("weight", "name"):
        given = [source for source in sources if getattr(source, key)]
        if given and len(given) < len(sources):
            raise RecipeError(f"[[data.source]] {key}: {len(given)} of {len(sources)} sources have one. Write one for each, or none.")
    names = [source.name for source in sources if source.name]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"[[data.source]] name: {name!r} stands twice. Sources have names of their own.")
    if not data.held_out:
        for use in recipe.evaluate:
            for key, value in use.options.items():
                if value == HELD_OUT:
                    raise RecipeError(f"[[evaluate]] {use.use}.{key}: {HELD_OUT} is what [data] held_out keeps, and it is 0. Write held_out = 0.05.")


def _check_colours(data: Data) -> None:
    for key in ("mean", "std"):
        numbers = getattr(data, key)
        if not isinstance(numbers, str) and len(numbers) != data.channels:
            wants = "a number for each channel" if data.channels > 1 else "one number, as there is one channel"
            raise RecipeError(f'[data] {key}: wants {wants} ([data] channels = {data.channels}), not {numbers}. Write them, or {key} = "{MEASURED}".')
    if not isinstance(data.mean, str) and not all(map(math.isfinite, data.mean)):
        raise RecipeError(f"[data] mean: wants finite numbers, not {data.mean}.")
    if not isinstance(data.std, str) and not all(0 < x < math.inf for x in data.std):
        raise RecipeError(f"[data] std: wants numbers above 0, not {data.std}.")


def override(table: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """`views.min_iou=0.4`, `loss.0.weight=2`: keys of a recipe's tables set from the command line.  Raises RecipeError."""
    for text in assignments:
        path, equals, raw = text.partition("=")
        if not equals or not path:
            raise RecipeError(f"{text!r}: an override is written table.key=value, for example views.min_iou=0.4.")
        try:
            value = tomllib.loads(f"x = {raw}")["x"]
        except tomllib.TOMLDecodeError:
            if raw[:1] in ("[", "{", '"', "'"):
                raise RecipeError(f"{text!r}: {raw} is no TOML value. Quote the whole override: '{path}=[\"a\", \"b\"]'.") from None
            value = raw
        *tables, key = path.split(".")
        here: Any = table
        for name in tables:
            if isinstance(here, list):
                if not name.isdigit() or int(name) >= len(here):
                    there = f"Write 0 to {len(here) - 1}." if here else "The list is empty."
                    raise RecipeError(f"{text!r}: {name!r} is no place in a list of {len(here)}. {there}")
                here = here[int(name)]
            else:
                here = here.setdefault(name, {})
            if not isinstance(here, (dict, list)):
                raise RecipeError(f"{text!r}: {name!r} is a value, not a table.")
        if isinstance(here, list):
            example = f"{tables[0]}.0.{key}=..." if not key.isdigit() else f"{tables[0]}.{key}.weight=..."
            raise RecipeError(f"{text!r}: is a list of parts; write the place too, for example {example}")
        here[key] = value
    return table


def folder() -> Path:
    """Where the recipes lie: in the wheel inside the package, in a checkout beside the source roots."""
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "recipes"


def names() -> list[str]:
    """The recipes that come with twinview, as `method/name`."""
    return sorted(str(p.relative_to(folder()).with_suffix("")) for p in folder().rglob("*.toml"))


def find(source: str | Path) -> Path:
    """The file of a recipe: a path that ends in .toml, or a name from `names()`.  Raises RecipeError with the nearest name."""
    path = Path(source)
    if path.suffix == ".toml":
        if not path.is_file():
            raise RecipeError(f"{source}: there is no such file. `twinview recipes` lists the recipes by name.")
        return path
    if str(source) not in names():
        raise RecipeError(f"{source}: no recipe has this name.{closest(str(source), names())} A file of your own ends in .toml.")
    return folder() / f"{source}.toml"


def read(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Recipe:
    """A recipe by name, file or plain tables, with `table.key=value` overrides.  Raises RecipeError."""
    if isinstance(source, Mapping):
        import copy

        return from_table(override(copy.deepcopy(dict(source)), overrides))
    path = find(source)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise RecipeError(f"{path}: is no TOML: {e}.") from None
    name = str(source) if path.suffix != Path(source).suffix else path.stem
    return from_table(override(table, overrides), name)
