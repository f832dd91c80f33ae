"""From a recipe to its parts on a per-run manager.  Every fault of composition is found here, before data or device is touched."""
from __future__ import annotations

import copy
from importlib.metadata import EntryPoints, entry_points
from typing import TYPE_CHECKING, Any, cast

import attrs
import pluggy

from twinview.errors import PluginError, RecipeError, closest
from twinview.hooks import HOOKS, Calls, hookimpl
from twinview.recipe.schema import PartConfig, Recipe
from twinview.recipe.structuring import structure
from twinview.values import Dims, Features, Traits

if TYPE_CHECKING:
    from torch import Tensor, nn

    from twinview.branch import Branch
    from twinview.values import DataFactory
from twinview.assembly.checks import (
    CORE,
    GIVES,
    NEEDS,
    check_alignments,
    check_channels,
    check_dims,
    check_heads,
    check_hooks,
    check_options,
    check_scores,
    check_traits,
    naming_evaluations,
)
from twinview.assembly.contract import Contract
from twinview.assembly.plugins import GROUP, answered, distribution, find_part, option, options, pluggy_manager

WANTS = ("label_maps", "objects")  # of Traits.needs: labels that workers read for every view
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


class _Defaults:
    """What the core answers when no part does."""

    @hookimpl(trylast=True)
    def encode(self, branch: Branch, images: Tensor, hidden: Tensor | None) -> Features:
        return cast(Features, branch.encoder(images, hidden))


class Assembly:
    """A recipe's parts, made and checked.  Each process makes its own; nothing here is global."""

    def __init__(self, recipe: Recipe, offered: EntryPoints | None = None) -> None:
        """`offered`: the installed methods, where they are known.

        Raises RecipeError or PluginError with one line that names the place and the nearest right word.
        """
        self.recipe, self.alone = recipe, False
        self.parts: dict[str, Any] = {}  # by label
        self.traits: dict[str, Traits] = {}  # by label
        self.uses: dict[str, tuple[str, str, PartConfig]] = {}  # label -> slot, place, use
        self._callers: dict[tuple[str, str], Any] = {}
        self._offered = entry_points(group=GROUP) if offered is None else offered  # once: it reads a file of every installed distribution
        self.manager = pluggy_manager()
        self.manager.register(_Defaults(), name=CORE)
        Contract(self.manager, self.place, lambda: self.traits[recipe.encoder.label].gives)
        for slot, place, use in recipe.uses():
            self._add(slot, place, use)
        check_hooks(self)
        self.traits = {label: self._traits(label) for label in self.parts}
        check_traits(self)
        check_channels(self)
        check_alignments(self)
        check_heads(self)
        check_scores(self)

    def __repr__(self) -> str:
        """`Assembly(views=byol.crops, encoder=timm.encoder, loss=[byol.image x 1.0], target momentum 0.99, adamw, 300 steps of 256)`."""
        recipe, run = self.recipe, self.recipe.run
        slots: dict[str, list[str]] = {}
        for label, (slot, _, use) in self.uses.items():
            slots.setdefault(slot, []).append(label if label == use.use else f"{use.use} as {label}")
        parts = [f"{slot}={labels[0] if len(labels) == 1 else '[' + ', '.join(labels) + ']'}" for slot, labels in slots.items()]
        target = f"target momentum {recipe.target.momentum:g}" if recipe.target.momentum else "target by stop-gradient"
        length = f"{run.steps} steps" if run.steps else f"{run.epochs:g} epochs" if run.epochs else f"{run.hours or 0:g} hours"
        optimizer = type(recipe.optimizer).__name__.lower()
        return f"Assembly({', '.join([*parts, target, optimizer, f'{length} of {run.batch_size} images'])})"

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

    def arguments(self, hook: str, label: str) -> tuple[str, ...]:
        """Which of a hook's arguments a part's answer takes."""
        return next((tuple(i.argnames) for i in getattr(self.manager.hook, hook).get_hookimpls() if i.plugin_name == label), ())

    def has(self, hook: str) -> bool:
        """Whether any part answers a hook."""
        return bool([name for name in self.answers(hook) if name != CORE])

    def place(self, label: str) -> str:
        """Of a part in the recipe, as messages name it; the core answers for the encoder, and methods have their own names."""
        return self.uses[self.recipe.encoder.label if label == CORE else label][1] if label in (*self.uses, CORE) else label

    def place_of(self, hook: str) -> str:
        """Of the part that answers a hook which takes one."""
        return " or ".join(self.place(label) for label in self.answers(hook))

    def key(self, label: str) -> str:
        """A part's name in checkpoints: module names hold no dots."""
        return label.replace(".", "/")

    def weight(self, label: str, share: float) -> float:
        """Of a loss part, where a run has this share behind it; a part of another slot that adds a term has weight 1."""
        slot, _, use = self.uses[label]
        return use.weight_at(share) if slot == "loss" else 1.0

    def encoder(self, *, random: bool = False) -> nn.Module:
        """A new encoder, always with the same random start for a seed.  `random`: leave `[encoder] weights` out."""
        from twinview.ops.seeding import seeded

        make = self._without_weights() if random and self.recipe.encoder.options.get("weights") else self.calls.make_encoder
        with seeded(self.recipe.run.seed, "encoder"):
            made = make(masked=self.recipe.masks is not None, channels=self.recipe.data.channels)
        return made

    def dims(self, encoder: nn.Module, dataset_size: int, classes: int = 0) -> Dims:
        """The sizes that heads and workers need.  Raises RecipeError where a part needs labels and the shards hold none, or pairs of views."""
        import numpy as np

        probe = self.calls.sample_views(size=(256, 256), rng=np.random.default_rng(0))
        spec = cast(Any, encoder.spec)
        dims = Dims(
            encoder=spec,
            grids=tuple(spec.grid(s) for s in probe.sizes),
            sizes=probe.sizes,
            pairs=probe.pairs,
            draws=probe.draws,
            cut_from=probe.cut_from,
            sets=probe.sets,
            channels=self.recipe.data.channels,
            global_batch=self.recipe.run.batch_size,
            dataset_size=dataset_size,
            classes=classes,
            wants=tuple(word for word in WANTS if any(word in traits.needs for traits in self.traits.values())),
            extras={name: self.traits[use.label].extra for name, use in self.recipe.align.items()},
            heads={use.label: self.traits[use.label].channels for use in self.recipe.head},
        )
        check_dims(self, dims)
        widths: dict[str, set[int]] = {name: set() for name in self.recipe.align}
        for label in self.answers("aligned_widths"):
            for answer in self.only("aligned_widths", label)(dims=dims):
                widths[option(self.parts[label], "align") or ""].update(answer)
        return attrs.evolve(dims, aligned_widths={name: tuple(sorted(found)) for name, found in widths.items()})

    def check(self, dims: Dims, data: DataFactory) -> None:
        """Ask every part's `check`, in the recipe's order.  Raises what they raise."""
        for label in self.answers("check"):
            with naming_evaluations(self, label):
                self.only("check", label)(dims=dims, data=data)

    def distributions(self) -> dict[str, str]:
        """Method -> the distribution that offers it, with its version."""
        methods = {use.use.partition(".")[0] for _, _, use in self.uses.values()}
        return {m: distribution(e) for m in sorted(methods) for e in self._offered if e.name == m}

    def table(self) -> dict[str, Any]:
        """The recipe as resolved: every option of every part written out."""
        full = {label: attrs.evolve(use, options=options(self.parts[label])) for label, (_, _, use) in self.uses.items()}

        def resolve(value: Any) -> Any:
            if isinstance(value, PartConfig):
                return full[value.label]
            return {k: resolve(u) for k, u in value.items()} if isinstance(value, dict) else [resolve(u) for u in value]

        slots = {slot: resolve(getattr(self.recipe, slot)) for slot in {s for s, _, _ in self.uses.values()}}
        return attrs.evolve(self.recipe, **slots).table()

    def under(self, recipe: Recipe, alone: bool = False) -> Assembly:
        """The same parts under a recipe whose own tables say more: precision in plain words, mean and std in numbers.

        `alone`: its one evaluation is scored by a command of its own, in whose words faults are told.
        """
        made = copy.copy(self)
        made.recipe, made.alone = recipe, alone or self.alone
        return made

    # ---- making
    def _without_weights(self) -> Any:
        """The hook `make_encoder` of this recipe's encoder without its option `weights`; what wraps it stays around it."""
        encoder = self.recipe.encoder
        plain = structure({k: v for k, v in encoder.options.items() if k != "weights"}, type(self.parts[encoder.label]), self.uses[encoder.label][1])
        manager = pluggy_manager()
        for label in self.wrappers("make_encoder"):
            manager.register(self.parts[label], name=label)
        manager.register(plain, name=encoder.label)
        return manager.hook.make_encoder

    def _add(self, slot: str, place: str, use: PartConfig) -> None:
        method, _, name = use.use.partition(".")
        cls = find_part(self.manager, method, name, place, self._offered)
        hooks = answered(cls)
        if slot in ANSWERS and ANSWERS[slot] not in hooks:
            raise RecipeError(f"{place}: does not answer {ANSWERS[slot]}, which [{slot}] calls; it answers {', '.join(hooks) or 'nothing'}.")
        label = use.label
        if label in self.parts or label == CORE or self.key(label) in {self.key(k) for k in self.parts}:
            raise RecipeError(f"{place}: the name {label!r} is taken. Give one of the two a `name = \"...\"` of its own.")
        for field in attrs.fields(cls):
            if field.init and field.type is None:
                raise PluginError(f"{place}: its option {field.name!r} has no type. Annotate it: `{field.name}: int = 3`.")
        part = structure(use.options, cls, place)
        check_options(part, place)
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
            who = self.distributions().get(self.uses[label][2].use.partition(".")[0], "")
            raise PluginError(f"{self.uses[label][1]}: answers an unknown hook {word!r} ({who}).{closest(word, HOOKS)}") from None

    def _traits(self, label: str) -> Traits:
        found: list[Traits] = self.only("traits", label)() if label in self.answers("traits") else []
        traits = found[0] if found else Traits()
        if not isinstance(traits, Traits):
            raise PluginError(f"{self.uses[label][1]}: traits() gives a {type(traits).__name__}. Give a twinview.values.Traits.")
        for word in [*traits.needs.difference(NEEDS), *traits.gives.difference(GIVES)]:
            raise PluginError(f"{self.uses[label][1]}: traits() says {word!r}.{closest(word, [*NEEDS, *GIVES])}")
        return traits


def assemble(recipe: Recipe, offered: EntryPoints | None = None) -> Assembly:
    """The recipe's parts on a manager of their own, checked; `offered`: the installed methods, where they are known.

    Raises RecipeError, PluginError.
    """
    return Assembly(recipe, offered)
