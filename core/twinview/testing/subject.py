"""The part that is tried, and the smallest recipe around it: it stands in its slot, and other installed parts give what it needs."""
from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any, Literal

import attrs

from twinview.assembly import Assembly, answered, assemble, find_part, pluggy_manager
from twinview.errors import RecipeError
from twinview.recipe import Recipe, from_table, structure
from twinview.testing.images import small_shards
from twinview.values import Traits

BATCH, STEPS, SIDE = 8, 6, 32  # images of a batch; of a run, which is two epochs; pixels of a view
SHARDS = "{shards}"  # in an option or a recipe: the shards that parts are tried on
SLOT_OF = {  # hook that a part answers -> its slot; the first that fits
    "loss": "loss", "make_encoder": "encoder", "sample_views": "views", "apply_augment": "augment", "make_masks": "masks", "align": "align",
    "evaluate": "evaluate",
}
MANY = ("loss", "evaluate", "extra", "head")  # slots that are lists
VIEWS = {"use": "byol.crops", "size": SIDE}
VIEWS_FOR = {  # word of Traits.needs -> views that give it
    "patches": {"use": "detco.global_and_patches", "size": SIDE, "patch_size": 16},
    "crop_draws": {"use": "densesiam.crop_and_whole", "size": [SIDE, SIDE]},
}
MASKS = {"use": "masks.random", "ratio": 0.5}
ALIGN = {"use": "densesiam.grid_sample"}
LOSS = {"use": "byol.image", "hidden": 16, "channels": 8}
LOSS_WITH_ALIGNMENT = {"use": "densesiam.pixel", "channels": 16, "predictor_hidden": 8}
LOSS_WITH_EXTRA = {"use": "multisiam.clusters", "hidden": 16, "channels": 8, "clusters": 2, "iterations": 2}


@attrs.frozen(kw_only=True)
class Setting:
    """What a part is tried with besides its options."""

    extent: Literal["quick", "whole"] = "quick"  # whole: also what takes a minute (two ranks, ZeRO stages, a new process, compiling)
    recipe: Mapping[str, Any] = attrs.field(factory=dict)  # tables of its own in place of those of the small recipe: {"views": {"use": "acme.crops"}}
    skip: Mapping[str, str] = attrs.field(factory=dict)  # check -> why it does not hold of this part, on purpose


@attrs.frozen(kw_only=True)
class Subject:
    """A part, its options, and where it stands."""

    name: str  # method.part
    cls: type
    options: Mapping[str, Any]
    setting: Setting
    slot: str
    traits: Traits
    hooks: frozenset[str]  # that it answers itself
    wraps: frozenset[str]  # that it goes around

    @property
    def place(self) -> str:
        """As messages name it."""
        return f"[[{self.slot}]] {self.name}" if self.slot in MANY else f"[{self.slot}] {self.name}"

    @property
    def package(self) -> str:
        """The import package that holds it."""
        return self.cls.__module__.partition(".")[0]

    def answers(self, *hooks: str) -> bool:
        """Whether it answers one of these hooks itself."""
        return bool(self.hooks.intersection(hooks))

    def table(self, **run: Any) -> dict[str, Any]:
        """The small recipe; `run`: keys of [run] besides."""
        needs, own = self.traits.needs, {"use": self.name, **self.options}
        views = next((VIEWS_FOR[word] for word in VIEWS_FOR if word in needs), VIEWS)
        found: dict[str, Any] = {"views": views, "encoder": {"use": "tiny.encoder"}}
        if "masks" in needs:
            found["masks"] = MASKS
        if "alignment" in needs:
            found["align"] = ALIGN
        if self.slot == "align":
            found["loss"] = [LOSS_WITH_EXTRA if self.traits.extra else LOSS_WITH_ALIGNMENT]
        elif self.slot != "loss":
            found["loss"] = [LOSS]
        found |= {
            "target": {"momentum": 0.9},
            "data": {"shards": small_shards(), "workers": 0},
            "optimizer": {"use": "adamw", "lr": 0.001},
            "schedule": {"use": "constant"},
            "run": {"steps": STEPS, "batch_size": BATCH, "device": "cpu", "log_every": 1, "checkpoint_every": 1, "keep": STEPS + 1, **run},
        }
        for name, given in copy.deepcopy(dict(self.setting.recipe)).items():
            merged = name in ("target", "data", "optimizer", "schedule", "run") and isinstance(given, Mapping) and "use" not in given
            found[name] = {**found[name], **given} if merged else given
        if self.slot in MANY:
            others = [use for use in found.get(self.slot, []) if use.get("use") != self.name] if self.slot in self.setting.recipe else []
            found[self.slot] = [own, *others]
        else:
            found[self.slot] = own
        return {name: _with_shards(value) for name, value in found.items()}

    def recipe(self, **run: Any) -> Recipe:
        """The small recipe, read."""
        return from_table(self.table(**run))

    def assemble(self, **run: Any) -> Assembly:
        """Its parts, made and checked."""
        return assemble(self.recipe(**run))

    def make(self, **run: Any) -> tuple[Assembly, Any]:
        """The assembly, and the part itself."""
        assembly = self.assemble(**run)
        return assembly, assembly.parts[self.name]


def subject(name: str, options: Mapping[str, Any], setting: Setting) -> Subject:
    """The part `method.part`.  Raises RecipeError, PluginError: no such part, or options that it does not take."""
    method, dot, own = name.partition(".")
    if not dot:
        raise RecipeError(f"{name}: is no part. Write METHOD.PART; `twinview parts` lists them.")
    cls = find_part(pluggy_manager(), method, own, name)
    made = {key: getattr(cls, key) for key in dir(cls)}
    impls = {key: impl for key, value in made.items() if (impl := getattr(value, "twinview_impl", None))}
    wraps = {impl.get("specname") or key for key, impl in impls.items() if impl.get("wrapper")}
    hooks = frozenset(answered(cls)) - wraps
    traits = Traits()
    if "traits" in hooks:
        part: Any = structure({key: _with_shards(value) for key, value in options.items()}, cls, name)
        try:
            said = part.traits()
        except Exception:  # what it raises is found, and placed, where the recipe is assembled
            said = None
        traits = said if isinstance(said, Traits) else Traits()
    slot = next((slot for hook, slot in SLOT_OF.items() if hook in hooks), "head" if traits.channels else "extra")
    return Subject(
        name=name, cls=cls, options=dict(options), setting=setting, slot=slot, traits=traits, hooks=hooks, wraps=frozenset(wraps),
    )


def parts_of(method: str) -> list[str]:
    """`method.part` of each part that a method offers.  Raises RecipeError, PluginError."""
    from twinview.assembly import load

    found = load(pluggy_manager(), method, method)
    return [f"{method}.{name}" for name, cls in found.items() if inspect.isclass(cls)]


def _with_shards(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_shards(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_shards(one) for one in value]
    return value.replace(SHARDS, small_shards()) if isinstance(value, str) else value


