"""From plain tables to a recipe.  Read strictly: a key that nothing takes is an error."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import attrs

from twinview.errors import RecipeError, closest
from twinview.recipe.overrides import ONE_OF
from twinview.recipe.schema import SLOT_KEYS, SLOTS, TABLES, PartConfig, Recipe, told_apart
from twinview.recipe.structuring import structure, written
from twinview.recipe.tables import FORMAT, HELD_OUT, MEASURED, OPTIMIZERS, Data


def _use(slot: str, table: Any, place: str, mark: str = "") -> PartConfig:
    """`mark`: what tells the part from another of the same `use`."""
    if not isinstance(table, Mapping):
        raise RecipeError(f"{place}: wants a table with `use = \"method.part\"`, not {written(table)}.")
    if not isinstance(table.get("use"), str) or table["use"].count(".") != 1:
        given = f", not {written(table['use'])}." if "use" in table else "; it names no part."
        raise RecipeError(f"{place}: wants `use = \"method.part\"`{given}")
    own = {k: table[k] for k in ("use", *SLOT_KEYS.get(slot, ())) if k in table}
    if "/" in str(own.get("name", "")):
        raise RecipeError(f"{place}.name: {written(own['name'])} has a '/'. Write '.' or '_' instead.")
    place = f"{place} {table['use']}{mark}" if slot in SLOT_KEYS else place
    return cast(PartConfig, structure({**own, "options": {k: v for k, v in table.items() if k not in own}}, PartConfig, place))


def _read_slot(slot: str, value: Any) -> Any:
    if slot in ("head", "loss", "extra", "evaluate"):
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise RecipeError(f"[{slot}]: there may be several; write [[{slot}]].")
        named = [(str(t.get("use", "")), str(t.get("name", ""))) if isinstance(t, Mapping) else ("", "") for t in value]
        return [_use(slot, t, f"[[{slot}]]", mark) for t, mark in zip(value, told_apart(slot, named))]
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
        given = written(table["format"])
        raise RecipeError(f"format: this recipe is of format {given}, this twinview reads {FORMAT}. Install the twinview that wrote it.")
    fields = {f.name: f for f in attrs.fields(Recipe) if f.name != "name"}
    for key, value in table.items():
        if key not in fields:
            named = f"[{key}]" if isinstance(value, (Mapping, list)) and isinstance(key, str) else written(key)
            raise RecipeError(f"the recipe: nothing takes {named}.{_elsewhere(key) or closest(str(key), fields)}")
    out: dict[str, Any] = {"name": name}
    for key, value in table.items():
        if key in SLOTS:
            out[key] = _read_slot(key, value)
        elif key == "optimizer":
            out[key] = _optimizer(value)
        elif key == "deepspeed":
            if not isinstance(value, Mapping):
                raise RecipeError(f"[deepspeed]: wants a table, not {written(value)}.")
            out[key] = dict(value)
        elif key != "format":
            if not isinstance(value, Mapping):
                raise RecipeError(f"[{key}]: wants a table, not {written(value)}.")
            out[key] = structure(value, TABLES[key], f"[{key}]")
    for key, f in fields.items():
        if f.default is attrs.NOTHING and (key not in out or out[key] == []):
            raise RecipeError(f"[{key}]: is missing. A recipe needs {', '.join(k for k, x in fields.items() if x.default is attrs.NOTHING)}.")
    recipe = Recipe(**out)
    _check(recipe)
    return recipe


def _elsewhere(key: str) -> str:
    """The tables that take a key which stands outside of all: ` Did you mean run.steps?`."""
    classes = {**{name: (cls,) for name, cls in TABLES.items()}, "optimizer": tuple(OPTIMIZERS.values())}
    found = [f"{table}.{key}" for table, kinds in classes.items() if any(key == f.name for kind in kinds for f in attrs.fields(kind))]
    return f" Did you mean {' or '.join(found)}?" if found else ""


def _optimizer(table: Any) -> Any:
    if not isinstance(table, Mapping):
        raise RecipeError(f"[optimizer]: wants a table, not {written(table)}. Write use = \"sgd\" in it.")
    given = table.get("use", "")
    if not isinstance(given, str) or given not in OPTIMIZERS:
        raise RecipeError(f"[optimizer] use: no optimizer {written(given)}.{closest(str(given), OPTIMIZERS)}")
    made = structure({k: v for k, v in table.items() if k != "use"}, OPTIMIZERS[table["use"]], "[optimizer]")
    if (made.lr is None) == (made.base_lr is None):
        raise RecipeError("[optimizer]: wants exactly one of lr and base_lr (the rate for 256 images).")
    return made


def _check(recipe: Recipe) -> None:
    """Faults that lie between keys."""
    run, schedule = recipe.run, recipe.schedule
    for place, table, least in (("run", run, 1), ("schedule", schedule, 0)):
        keys, place = ONE_OF[place], f"[{place}]"
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
        for slot, place, use in recipe.uses():
            for key, value in use.options.items() if slot == "evaluate" else ():
                if value == HELD_OUT:
                    raise RecipeError(f"{place}.{key}: {HELD_OUT} is what [data] held_out keeps, and it is 0. Write held_out = 0.05.")


def _check_colors(data: Data) -> None:
    for key in ("mean", "std"):
        numbers = getattr(data, key)
        if not isinstance(numbers, str) and len(numbers) != data.channels:
            wants = "a number for each channel" if data.channels > 1 else "one number, as there is one channel"
            wants = f"wants {wants} ([data] channels = {data.channels}), not {written(numbers)}"
            raise RecipeError(f'[data] {key}: {wants}. Write them, or {key} = "{MEASURED}".')
    if not isinstance(data.mean, str) and not all(map(math.isfinite, data.mean)):
        raise RecipeError(f"[data] mean: wants finite numbers, not {data.mean}.")
    if not isinstance(data.std, str) and not all(0 < x < math.inf for x in data.std):
        raise RecipeError(f"[data] std: wants numbers above 0, not {data.std}.")
    _check_scale(data)


def _check_scale(data: Data) -> None:
    """Mean and deviation are shares of full scale; other tools write them in 0..255."""
    full = data.white or 255
    wrong = {key: numbers for key in ("mean", "std") if not isinstance(numbers := getattr(data, key), str) and any(not 0 <= x <= 1 for x in numbers)}
    if wrong:
        said = " and ".join(f"{key} = {numbers}" for key, numbers in wrong.items())
        shares = {key: [round(x / full, 4) for x in numbers] for key, numbers in wrong.items()}
        right = all(0 <= x <= 1 for numbers in shares.values() for x in numbers)
        instead = f" Write {' and '.join(f'{key} = {numbers}' for key, numbers in shares.items())} (divided by {full})." if right else ""
        raise RecipeError(f"[data] {said}: {'are' if len(wrong) > 1 else 'is'} not within 0..1 of full scale.{instead}")
