"""What a recipe holds, as typed tables."""
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
from attrs import field
from attrs.validators import ge, lt

from twinview.recipe.tables import FORMAT, OPTIMIZERS, Data, Rates, Run, Schedule, Target, Weight


def _is_weight(_: object, attribute: attrs.Attribute[Any], value: Weight) -> None:
    if not isinstance(value, list):
        lt(math.inf)(_, attribute, value)
        return
    shares = [share for share, _ in value]
    if not value or shares != sorted(shares) or not 0 <= shares[0] <= shares[-1] <= 1 or not all(math.isfinite(weight) for _, weight in value):
        raise ValueError(f"weight wants points [share of the run from 0 to 1, weight] in order, such as [[0, 0], [0.2, 1]], not {value}")


@attrs.frozen(kw_only=True)
class PartConfig:
    """A part as a recipe names it: `use`, the keys that every slot takes, and the part's own options."""

    use: str  # method.part
    name: str = ""  # [[...]] and [align.NAME] only: stable name, needed when a part is used twice
    weight: Weight = field(default=1.0, validator=_is_weight)  # [[loss]] only
    every: int = field(default=0, validator=ge(0))  # [[evaluate]] only: steps between evaluations, 0 = at the end
    options: dict[str, Any] = field(factory=dict)

    @property
    def label(self) -> str:
        """The part's stable name in this recipe."""
        return self.name or self.use

    @property
    def weights(self) -> list[float]:
        """The weight, or those of its points."""
        return [weight for _, weight in self.weight] if isinstance(self.weight, list) else [self.weight]

    def weight_at(self, share: float) -> float:
        """The weight where a run has this share behind it, 0 to 1: on straight lines between its points."""
        if not isinstance(self.weight, list):
            return self.weight
        before = [point for point in self.weight if point[0] <= share]
        behind = [point for point in self.weight if point[0] > share]
        if not (before and behind):
            return before[-1][1] if before else behind[0][1]
        (x0, y0), (x1, y1) = before[-1], behind[0]
        return y0 + (y1 - y0) * (share - x0) / (x1 - x0)


SLOT_KEYS = {"head": ("name",), "loss": ("name", "weight"), "extra": ("name",), "evaluate": ("name", "every")}  # beside use
TABLES: dict[str, type] = {"target": Target, "data": Data, "schedule": Schedule, "run": Run}
SLOTS = ("views", "augment", "masks", "encoder", "align", "head", "loss", "extra", "evaluate")  # in which data flows


@attrs.frozen(kw_only=True)
class Recipe:
    """What a run is made of.  Slots first, then the core's own tables."""

    format: int = FORMAT
    views: PartConfig
    augment: PartConfig | None = None
    masks: PartConfig | None = None
    encoder: PartConfig
    align: dict[str, PartConfig] = field(factory=dict)  # by name; "" for a recipe that has one
    head: list[PartConfig] = field(factory=list)
    loss: list[PartConfig]
    extra: list[PartConfig] = field(factory=list)
    evaluate: list[PartConfig] = field(factory=list)
    target: Target = field(factory=Target)
    data: Data
    optimizer: Rates
    schedule: Schedule = field(factory=Schedule)
    run: Run
    deepspeed: dict[str, Any] = field(factory=dict)
    name: str = field(default="recipe", eq=False)  # where it was read from

    def uses(self) -> Iterator[tuple[str, str, PartConfig]]:
        """Each (slot, place as messages name it, part), in the order in which data flows."""
        for slot in SLOTS:
            found = getattr(self, slot)
            if isinstance(found, PartConfig):
                yield slot, f"[{slot}] {found.use}", found
            elif isinstance(found, dict):
                for name, use in found.items():
                    yield slot, f"[{slot}.{name}] {use.use}" if name else f"[{slot}] {use.use}", use
            elif found:
                marks = told_apart(slot, [(u.use, u.name) for u in found])
                yield from ((slot, f"[[{slot}]] {u.use}{mark}", u) for u, mark in zip(found, marks))

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


def told_apart(slot: str, parts: Sequence[tuple[str, str]]) -> list[str]:
    """What stands behind each part's `use` in messages: nothing, or, of (use, name) that share a use, the name or the place as overrides write it."""
    uses = [use for use, _ in parts]
    return [f" ({name or f'{slot}.{n}'})" if uses.count(use) > 1 else "" for n, (use, name) in enumerate(parts)]


def _use_table(slot: str, value: Any) -> Any:
    if isinstance(value, PartConfig):
        own = {k: getattr(value, k) for k in SLOT_KEYS.get(slot, ()) if getattr(value, k) != ""}
        return {"use": value.use, **own, **value.options}
    if isinstance(value, dict):
        return _use_table(slot, value[""]) if list(value) == [""] else {k: _use_table(slot, u) for k, u in value.items()}
    return [_use_table(slot, u) for u in value]
