"""From a recipe to its parts on a per-run manager.  Every fault of composition is found here, before data or device is touched."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import TYPE_CHECKING, Any, cast

import attrs
import pluggy

from twinview.errors import PluginError, RecipeError, TwinviewError, closest
from twinview.hooks import HOOKS, Calls, Hooks, hookimpl
from twinview.recipe import Recipe, Use, structure
from twinview.values import Dims, Features, Traits

if TYPE_CHECKING:
    from torch import Tensor, nn

    from twinview.branch import Branch

GROUP = "twinview"  # of entry points
CORE = "twinview"  # the core's own name on the manager
ANSWERS = {  # slot -> the hook that its part must answer
    "views": "sample_views",
    "augment": "apply_augment",
    "masks": "make_masks",
    "encoder": "make_encoder",
    "align": "align",
    "head": "heads",
    "loss": "loss",
    "evaluate": "evaluate",
}
SINGLE = ("sample_views", "draw_augment", "apply_augment", "make_masks", "make_encoder", "encode")  # at most one part answers
NEEDS = {  # word of Traits.needs -> what lacks it
    **{word: "encoder" for word in ("cells", "pooled", "tokens", "levels")},
    "crop_draws": "views",
    "alignment": "align",
    "masks": "masks",
    "averaged_target": "target",
    "labels": "data",
}
GIVES = ("cells", "pooled", "tokens", "levels", "hides", "recomputable", "crop_draws", "uses_extra", "any_channels", "deep")


class _Defaults:
    """What the core answers when no part does."""

    @hookimpl(trylast=True)
    def encode(self, branch: Branch, images: Tensor, hidden: Tensor | None) -> Features:
        return cast(Features, branch.encoder(images, hidden))


class Assembly:
    """A recipe's parts, made and checked.  Each process makes its own; nothing here is global."""

    def __init__(self, recipe: Recipe) -> None:
        """Raises RecipeError or PluginError with one line that names the place and the nearest right word."""
        self.recipe = recipe
        self.parts: dict[str, Any] = {}  # by label
        self.uses: dict[str, tuple[str, str, Use]] = {}  # label -> slot, place, use
        self._callers: dict[tuple[str, str], Any] = {}
        self._offered = entry_points(group=GROUP)  # once: it reads a file of every installed distribution
        self.manager = pluggy.PluginManager(GROUP)
        self.manager.add_hookspecs(Hooks)
        self.manager.register(_Defaults(), name=CORE)
        for slot, place, use in recipe.uses():
            self._add(slot, place, use)
        self._check_hooks()
        self.traits = {label: self._traits(label) for label in self.parts}
        self._check_traits()
        self._check_channels()
        self._check_alignments()
        self._check_heads()

    @property
    def calls(self) -> Calls:
        """The hooks, typed, all parts answering."""
        return cast(Calls, self.manager.hook)

    def only(self, hook: str, label: str) -> Any:
        """A hook with one part answering (wrappers stay around it)."""
        if (hook, label) not in self._callers:
            others = [self.parts.get(name) or self.manager.get_plugin(name) for name in self.answers(hook) if name != label]
            self._callers[hook, label] = self.manager.subset_hook_caller(hook, others)
        return self._callers[hook, label]

    def align(self, name: str) -> Any:
        """The `align` hook of one of the recipe's alignments."""
        if name not in self.recipe.align:
            raise RecipeError(f"[align]: no alignment has the name {name!r}.{closest(name, self.recipe.align)}")
        return self.only("align", self.recipe.align[name].label)

    def answers(self, hook: str) -> list[str]:
        """Labels of the parts that answer a hook, wrappers left out, in the recipe's order."""
        found = {i.plugin_name for i in getattr(self.manager.hook, hook).get_hookimpls() if not i.wrapper}
        return [name for name in (*self.parts, CORE) if name in found]

    def wrappers(self, hook: str) -> list[str]:
        """Labels of the parts that wrap a hook, innermost first."""
        return [i.plugin_name for i in getattr(self.manager.hook, hook).get_hookimpls() if i.wrapper]

    def has(self, hook: str) -> bool:
        """Whether any part answers a hook."""
        return bool([name for name in self.answers(hook) if name != CORE])

    def key(self, label: str) -> str:
        """A part's name in checkpoints: module names hold no dots."""
        return label.replace(".", "/")

    def weight(self, label: str) -> float:
        """Of a loss part; a part of another slot that adds a term has weight 1."""
        slot, _, use = self.uses[label]
        return use.weight if slot == "loss" else 1.0

    def encoder(self, *, random: bool = False) -> nn.Module:
        """A new encoder, always with the same random start for a seed.  `random`: leave `[encoder] weights` out."""
        from twinview.ops.seeding import seeded

        if random and self.recipe.encoder.options.get("weights"):
            plain = attrs.evolve(self.recipe.encoder, options={k: v for k, v in self.recipe.encoder.options.items() if k != "weights"})
            return Assembly(attrs.evolve(self.recipe, encoder=plain)).encoder()
        with seeded(self.recipe.run.seed, "encoder"):
            made = self.calls.make_encoder(masked=self.recipe.masks is not None, channels=self.recipe.data.channels)
        if not hasattr(made, "spec"):
            raise PluginError(f"[encoder] {self.recipe.encoder.use}: its module carries no `spec` (twinview.values.EncoderSpec).")
        return made

    def dims(self, encoder: nn.Module, dataset_size: int, classes: int = 0) -> Dims:
        """The sizes that heads and workers need.  Raises RecipeError where a part needs labels and the shards hold none."""
        import numpy as np

        probe = self.calls.sample_views(size=(256, 256), rng=np.random.default_rng(0))
        spec = cast(Any, encoder.spec)
        for label, traits in self.traits.items():
            if "labels" in traits.needs and not classes:
                raise RecipeError(f"{self.uses[label][1]}: needs labels, and the shards of [data] hold no class labels (field cls).")
        dims = Dims(
            encoder=spec,
            grids=tuple(spec.grid(s) for s in probe.sizes),
            sizes=probe.sizes,
            pairs=probe.pairs,
            channels=self.recipe.data.channels,
            global_batch=self.recipe.run.batch_size,
            dataset_size=dataset_size,
            classes=classes,
            extras={name: self.traits[use.label].extra for name, use in self.recipe.align.items()},
            heads={use.label: self.traits[use.label].channels for use in self.recipe.head},
        )
        widths: dict[str, set[int]] = {name: set() for name in self.recipe.align}
        for label in self.answers("aligned_widths"):
            for answer in self.only("aligned_widths", label)(dims=dims):
                widths[option(self.parts[label], "align") or ""].update(answer)
        return attrs.evolve(dims, aligned_widths={name: tuple(sorted(found)) for name, found in widths.items()})

    def distributions(self) -> dict[str, str]:
        """Method -> the distribution that offers it, with its version."""
        methods = {use.use.partition(".")[0] for _, _, use in self.uses.values()}
        return {m: _who(e) for m in sorted(methods) for e in self._offered if e.name == m}

    def table(self) -> dict[str, Any]:
        """The recipe as resolved: every option of every part written out."""
        full = {label: attrs.evolve(use, options=options(self.parts[label])) for label, (_, _, use) in self.uses.items()}

        def resolve(value: Any) -> Any:
            if isinstance(value, Use):
                return full[value.label]
            return {k: resolve(u) for k, u in value.items()} if isinstance(value, dict) else [resolve(u) for u in value]

        slots = {slot: resolve(getattr(self.recipe, slot)) for slot in {s for s, _, _ in self.uses.values()}}
        return attrs.evolve(self.recipe, **slots).table()

    # ---- making
    def _add(self, slot: str, place: str, use: Use) -> None:
        method, _, name = use.use.partition(".")
        cls = find_part(self.manager, method, name, place, self._offered)
        hooks = answered(cls)
        if slot in ANSWERS and ANSWERS[slot] not in hooks:
            raise RecipeError(f"{place}: does not answer {ANSWERS[slot]}, which [{slot}] calls; it answers {', '.join(hooks) or 'nothing'}.")
        label = use.label
        if label in self.parts or label == CORE or self.key(label) in {self.key(k) for k in self.parts}:
            raise RecipeError(f"{place}: the name {label!r} is taken. Give one of the two a `name = \"...\"` of its own.")
        part = structure(use.options, cls, place)
        try:
            self.manager.register(part, name=label)
        except pluggy.PluginValidationError as e:
            raise PluginError(f"{place}: {' '.join(str(e).split())}") from None
        self.parts[label], self.uses[label] = part, (slot, place, use)
        self._check_pending(label)
        if not self.manager.get_hookcallers(part):
            raise PluginError(f"{place}: answers no hook. There is: {', '.join(HOOKS)}.")

    def _check_pending(self, label: str) -> None:
        try:
            self.manager.check_pending()
        except pluggy.PluginValidationError as e:
            word = str(e).partition("unknown hook '")[2].partition("'")[0]
            raise PluginError(f"{self.uses[label][1]}: answers an unknown hook {word!r}.{closest(word, HOOKS)}") from None

    def _traits(self, label: str) -> Traits:
        found: list[Traits] = self.only("traits", label)() if label in self.answers("traits") else []
        traits = found[0] if found else Traits()
        if not isinstance(traits, Traits):
            raise PluginError(f"{self.uses[label][1]}: traits() gives a {type(traits).__name__}. Give a twinview.values.Traits.")
        for word in [*traits.needs.difference(NEEDS), *traits.gives.difference(GIVES)]:
            raise PluginError(f"{self.uses[label][1]}: traits() says {word!r}.{closest(word, [*NEEDS, *GIVES])}")
        return traits

    # ---- checking
    def _check_hooks(self) -> None:
        for hook in SINGLE:
            who = [name for name in self.answers(hook) if name != CORE]
            if len(who) > 1:
                places = " and ".join(self.uses[name][1] for name in who)
                raise RecipeError(f"{hook}: takes one part, the recipe has {len(who)}: {places}. Leave all but one out.")
        one_by_one = [name for name in (*self.answers("encode"), *self.wrappers("encode")) if name != CORE]
        if self.recipe.run.views_together and one_by_one:
            raise RecipeError(f"[run] views_together: {self.uses[one_by_one[0]][1]} answers encode, a view at a time. Leave views_together out.")
        stray = [name for name in self.answers("align") if self.uses[name][0] != "align"]
        if stray:
            raise RecipeError(f"{self.uses[stray[0]][1]}: answers align. Put it in [align], or in [align.NAME] beside another.")
        draw, apply = self.answers("draw_augment"), self.answers("apply_augment")
        if draw != apply:
            one = (draw or apply)[0]
            raise PluginError(f"{self.uses[one][1]}: answers one of draw_augment and apply_augment; a part answers both or none.")

    def _check_traits(self) -> None:
        recipe = self.recipe
        encoder = self.traits[recipe.encoder.label]
        for label, traits in self.traits.items():
            place = self.uses[label][1]
            for word in sorted(traits.needs):
                if NEEDS[word] == "encoder" and word not in encoder.gives:
                    has = ", ".join(sorted(encoder.gives.intersection(NEEDS))) or "nothing"
                    raise RecipeError(f"{place}: needs {word}, and [encoder] {recipe.encoder.use} gives {has}. Choose another encoder.")
                if NEEDS[word] == "views" and word not in self.traits[recipe.views.label].gives:
                    raise RecipeError(f"{place}: needs {word}, and [views] {recipe.views.use} does not note them. Choose other views.")
                if word == "masks" and recipe.masks is None:
                    raise RecipeError(f"{place}: needs masked views. Add a [masks] table.")
                if word == "averaged_target" and recipe.target.momentum == 0:
                    raise RecipeError(f"{place}: needs an averaged target. Set [target] momentum above 0.")
        if recipe.masks is not None and "hides" not in encoder.gives:
            other = recipe.encoder.use
            raise RecipeError(f"[masks] {recipe.masks.use}: [encoder] {other} cannot hide cells. Leave [masks] out, or choose another encoder.")
        if recipe.run.activation_checkpointing and "recomputable" not in encoder.gives:
            other = recipe.encoder.use
            raise RecipeError(f"[run] activation_checkpointing: [encoder] {other} names no blocks. Leave it out, or choose another encoder.")

    def _check_channels(self) -> None:
        """Images that are not three channels of 8 bits, and the parts that touch pixels."""
        data, pixels = self.recipe.data, self.answers("apply_augment")
        wanted = [("any_channels", f"channels = {data.channels}: it takes 3", [*self.answers("make_encoder"), *pixels])] * (data.channels != 3)
        wanted += [("deep", f"white = {data.white}: it takes images of 8 bits", pixels)] * (data.white > 0)
        for word, said, labels in wanted:
            for label in labels:
                if word not in self.traits[label].gives:
                    instead = self.traits[label].instead or "Choose another part."
                    raise RecipeError(f"{self.uses[label][1]}: does not go with [data] {said}. {instead}")

    def _check_alignments(self) -> None:
        recipe, used = self.recipe, set()
        for label, part in self.parts.items():
            place, traits = self.uses[label][1], self.traits[label]
            wanted = option(part, "align")
            if wanted is None:
                continue
            if not recipe.align:
                if "alignment" in traits.needs:
                    raise RecipeError(f"{place}: needs an alignment. Add an [align] table.")
                continue
            if wanted not in recipe.align:
                raise RecipeError(f"{place}.align: {self._no_alignment(wanted)}")
            used.add(wanted)
            gives = self.traits[recipe.align[wanted].label]
            if gives.extra and "uses_extra" not in traits.gives:
                other = recipe.align[wanted].use
                raise RecipeError(f"{place}: does not use what [align] {other} tells a predictor. Choose an alignment that resamples the maps.")
        for name, use in recipe.align.items():
            if name not in used:
                raise RecipeError(f"[align{'.' * bool(name)}{name}] {use.use}: no loss uses it. Leave it out, or add a loss that aligns cells.")

    def _no_alignment(self, wanted: str) -> str:
        """Why no alignment answers to this name, and what to write instead."""
        there = self.recipe.align
        if list(there) == [""]:
            return "the recipe's one alignment, [align], has no name. Leave the key out, or write [align.NAME]."
        said = f"no alignment has the name {wanted!r}" if wanted else "the recipe names its alignments; say which with align = \"NAME\""
        return f"{said}.{closest(wanted, there)}"

    def _check_heads(self) -> None:
        heads = [use.label for use in self.recipe.head]
        for label, part in self.parts.items():
            wanted = option(part, "head")
            if wanted and wanted not in heads:
                raise RecipeError(f"{self.uses[label][1]}.head: no [[head]] has the name {wanted!r}.{closest(wanted, heads)}")
        trained = {option(self.parts[label], "head") for label in self.answers("loss")}
        for name in heads:
            if name not in trained:
                raise RecipeError(f'{self.uses[name][1]}: no loss uses it. Leave it out, or say head = "{name}" in a loss.')


def answered(cls: type) -> list[str]:
    """The hooks that a part's class answers."""
    found = {name: getattr(cls, name) for name in dir(cls)}
    return [impl.get("specname") or name for name, value in found.items() if (impl := getattr(value, f"{GROUP}_impl", None))]


def option(part: Any, name: str) -> Any:
    """A part's option by name, None where it has no such option."""
    return getattr(part, name) if name in {f.name for f in attrs.fields(type(part))} else None


def options(part: Any) -> dict[str, Any]:
    """A part's options as plain values, those that are None left out."""
    found = attrs.asdict(part, filter=lambda a, v: a.init and v is not None)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}


def assemble(recipe: Recipe) -> Assembly:
    """The recipe's parts on a manager of their own, checked.  Raises RecipeError, PluginError."""
    return Assembly(recipe)


# ---- methods
def _who(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def methods() -> list[str]:
    """Installed methods by name; none is imported."""
    return sorted({e.name for e in entry_points(group=GROUP)})


def load(manager: pluggy.PluginManager, method: str, place: str, offered: EntryPoints | None = None) -> Mapping[str, type]:
    """Import and register the method that an entry point names (of those `offered`, or installed), and no other; its parts by name.

    Raises RecipeError, PluginError.
    """
    offered = entry_points(group=GROUP) if offered is None else offered
    found = [e for e in offered if e.name == method]
    if not found:
        raise RecipeError(f"{place}: no method {method!r} is installed.{closest(method, {e.name for e in offered})}")
    if len({e.value for e in found}) > 1 or len({e.dist.name for e in found if e.dist}) > 1:
        raise RecipeError(f"{place}: method {method!r} is offered by {' and by '.join(sorted(_who(e) for e in found))}. Uninstall all but one.")
    name = f"method:{method}"
    if not manager.has_plugin(name):
        try:
            module = found[0].load()
        except TwinviewError:
            raise
        except Exception as e:
            raise PluginError(f"{place}: method {method!r} ({found[0].value}, {_who(found[0])}) cannot be loaded: {type(e).__name__}: {e}") from e
        manager.register(module, name=name)
        hooks = [h.name for h in manager.get_hookcallers(module) or []]
        if hooks != ["parts"]:
            said = f"answers {', '.join(hooks) or 'nothing'}"
            raise PluginError(f"{place}: method {method!r} ({found[0].value}) {said}. A method answers parts() alone; other hooks belong in a part.")
    plugin = manager.get_plugin(name)
    others = [p for n, p in manager.list_name_plugin() if p is not None and p is not plugin]
    answer: list[Mapping[str, type]] = manager.subset_hook_caller("parts", others)()
    return answer[0]


def find_part(manager: pluggy.PluginManager, method: str, name: str, place: str, offered: EntryPoints | None = None) -> type:
    """The class of a part.  Raises RecipeError with the nearest right name, PluginError where it is no attrs class."""
    found = load(manager, method, place, offered)
    if name not in found:
        raise RecipeError(f"{place}: {method} has no part {name!r}.{closest(name, found)}")
    if not isinstance(found[name], type) or not attrs.has(found[name]):
        raise PluginError(f"{place}: {method} offers something for {name!r} that is no part. Make it a class with @twinview.part.")
    return found[name]


def installed(only: str | None = None) -> Iterator[tuple[str, str, Mapping[str, type] | TwinviewError]]:
    """Every installed method (or one): name, distribution with version, and its parts (or why it cannot be loaded)."""
    offered = entry_points(group=GROUP)
    for method in [only] if only else sorted(offered.names):
        who = next(_who(e) for e in offered if e.name == method)
        try:
            yield method, who, load(pluggy_manager(), method, method, offered)
        except TwinviewError as e:
            yield method, who, e


def pluggy_manager() -> pluggy.PluginManager:
    """A manager with the hooks and no parts."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(Hooks)
    return manager
