"""From plain tables to a recipe.  Read strictly: a key that nothing takes is an error."""
from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import attrs

from twinview.errors import RecipeError, closest
from twinview.recipe.schema import SLOT_KEYS, SLOTS, TABLES, PartConfig, Recipe
from twinview.recipe.structuring import structure
from twinview.recipe.tables import FORMAT, HELD_OUT, MEASURED, OPTIMIZERS, Data


def _use(slot: str, table: Any, place: str) -> PartConfig:
    if not isinstance(table, Mapping):
        raise RecipeError(f"{place}: wants a table with `use = \"method.part\"`, not {table!r}.")
    if not isinstance(table.get("use"), str) or table["use"].count(".") != 1:
        raise RecipeError(f"{place}: wants `use = \"method.part\"`" + (f", not {table['use']!r}." if "use" in table else "; it names no part."))
    own = {k: table[k] for k in ("use", *SLOT_KEYS.get(slot, ())) if k in table}
    if "/" in str(own.get("name", "")):
        raise RecipeError(f"{place}.name: {own['name']!r} has a '/'. Write '.' or '_' instead.")
    place = f"{place} {table['use']}" if slot in SLOT_KEYS else place
    return cast(PartConfig, structure({**own, "options": {k: v for k, v in table.items() if k not in own}}, PartConfig, place))


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


def _named(tables: Mapping[str, Any]) -> dict[str, PartConfig]:
    """[align.NAME]: of two that use one part, the name tells them apart."""
    made = {name: _use("align", table, f"[align.{name}]") for name, table in tables.items()}
    uses = [use.use for use in made.values()]
    return {name: attrs.evolve(use, name=f"{use.use}.{name}" if uses.count(use.use) > 1 else "") for name, use in made.items()}


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
    _check_colors(recipe.data)
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


def _check_colors(data: Data) -> None:
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
