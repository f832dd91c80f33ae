"""What a recipe's parts must be to each other.  Each check raises RecipeError or PluginError with the place and what to write instead."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import attrs

from twinview.assembly.plugins import option, options
from twinview.errors import DataError, PluginError, RecipeError, closest
from twinview.recipe.schema import PartConfig, Recipe
from twinview.scores import direction
from twinview.values import Dims, Traits

CORE = "twinview"  # the core's own name on the manager
SINGLE = ("sample_views", "draw_augment", "apply_augment", "make_masks", "make_encoder", "encode", "sample_weights")  # at most one part answers
BATCHED = {"sample_views": "sample_views_batch", "draw_augment": "draw_augment_batch"}  # of hooks for an image, those for several
NEEDS = {  # word of Traits.needs -> what lacks it
    **{word: "encoder" for word in ("cells", "pooled", "tokens", "levels")},
    "crop_draws": "views",
    "patches": "views",
    "alignment": "align",
    "masks": "masks",
    "even_masks": "masks",
    "pairs": "views",
    "averaged_target": "target",
    **dict.fromkeys(("labels", "label_maps", "objects", "ids", "known_epoch"), "data"),
}
GIVES = (
    *("cells", "pooled", "tokens", "levels", "hides", "hides_any", "recomputable"),  # encoders
    *("any_channels", "deep", "crop_draws", "patches", "uneven_masks", "uses_extra"),
)


class Composition(Protocol):
    """A recipe's parts as the checks see them: what an Assembly has."""

    recipe: Recipe
    parts: dict[str, Any]  # by label
    uses: dict[str, tuple[str, str, PartConfig]]  # label -> slot, place, use
    traits: dict[str, Traits]  # by label
    alone: bool  # its one evaluation is scored by a command of its own, whose words are the evaluation's options

    def answers(self, hook: str) -> list[str]:
        """Labels of the parts that answer a hook, wrappers left out, in the recipe's order."""
        ...

    def wrappers(self, hook: str) -> list[str]:
        """Labels of the parts that wrap a hook, innermost first."""
        ...

    def arguments(self, hook: str, label: str) -> tuple[str, ...]:
        """Which of a hook's arguments a part's answer takes."""
        ...


def check_options(part: Any, place: str) -> None:
    """Options are what TOML has: a tensor or a module among them would be in no recipe and in no checkpoint."""
    for field in attrs.fields(type(part)):
        if field.init and not _is_plain(value := getattr(part, field.name)):
            said = f"its option {field.name!r} is a {type(value).__module__}.{type(value).__qualname__}"
            instead = 'Options are numbers, words, true or false, lists and tables; what a part learns goes into heads(), as Head(module, "state")'
            raise PluginError(f"{place}: {said}. {instead}.")


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(v) for key, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, (bool, int, float, str)) or (attrs.has(type(value)) and _is_plain(attrs.asdict(value)))


def check_hooks(made: Composition) -> None:
    """Hooks that take one part, and hooks that go together."""
    for hook in SINGLE:
        who = [name for name in made.answers(hook) if name != CORE]
        if len(who) > 1:
            places = " and ".join(made.uses[name][1] for name in who)
            raise RecipeError(f"{hook}: takes one part, the recipe has {len(who)}: {places}. Leave all but one out.")
    for name in (*made.answers("encode"), *made.wrappers("encode")) if made.recipe.run.views_together else ():
        takes = made.arguments("encode", name)
        if name != CORE and "view" in takes and "views" not in takes:
            said = f"{made.uses[name][1]} answers encode for one `view`, and does not take `views`"
            raise RecipeError(f"[run] views_together: {said}. Leave views_together out.")
    stray = [name for name in made.answers("align") if made.uses[name][0] != "align"]
    if stray:
        raise RecipeError(f"{made.uses[stray[0]][1]}: answers align. Put it in [align], or in [align.NAME] beside another.")
    draw, apply = made.answers("draw_augment"), made.answers("apply_augment")
    if draw != apply:
        one = (draw or apply)[0]
        raise PluginError(f"{made.uses[one][1]}: answers one of draw_augment and apply_augment; a part answers both or none.")
    for hook, batched in BATCHED.items():
        for name in made.answers(batched):
            if name not in made.answers(hook):
                raise PluginError(f"{made.uses[name][1]}: answers {batched} and not {hook}, which is asked for one image. Answer both.")


def asks_batch(made: Composition, hook: str) -> bool:
    """Whether a hook for one image may be asked for several at once.

    Not where something goes around it, and not where a class answers it anew and inherits the other.
    """
    who = made.answers(BATCHED[hook])
    if not who or made.wrappers(hook):
        return False
    classes = type(made.parts[who[0]]).__mro__
    one, several = (next((place for place, cls in enumerate(classes) if name in vars(cls)), 0) for name in (hook, BATCHED[hook]))
    return several <= one


def check_traits(made: Composition) -> None:
    """What parts need of the encoder, the views and the recipe."""
    recipe = made.recipe
    encoder = made.traits[recipe.encoder.label]
    uneven = f"[masks] {recipe.masks.use}" if recipe.masks is not None and "uneven_masks" in made.traits[recipe.masks.label].gives else ""
    for label, traits in made.traits.items():
        place = made.uses[label][1]
        for word in sorted(traits.needs):
            if NEEDS[word] == "encoder" and word not in encoder.gives:
                has = ", ".join(sorted(encoder.gives.intersection(NEEDS))) or "nothing"
                instead = (traits.instead if word == "levels" and "cells" in encoder.gives else "") or "Choose another encoder."
                raise RecipeError(f"{place}: needs {word}, and [encoder] {recipe.encoder.use} gives {has}. {instead}")
            if word in ("crop_draws", "patches") and word not in made.traits[recipe.views.label].gives:
                lacks = "gives none" if word == "patches" else "does not note them"
                raise RecipeError(f"{place}: needs {word}, and [views] {recipe.views.use} {lacks}. Choose other views.")
            if word == "masks" and recipe.masks is None:
                raise RecipeError(f"{place}: needs masked views. Add a [masks] table.")
            if word == "even_masks" and uneven:
                said = f"{uneven} hides more in one image than in another"
                raise RecipeError(f"{place}: needs as many hidden cells in every image, and {said}. Choose other masks.")
            if word == "known_epoch" and (chooses := made.answers("sample_weights")):
                said = f"wants an epoch's crops before it begins, and {made.uses[chooses[0]][1]} chooses its samples after that"
                raise RecipeError(f"{place}: {said}. Leave one of the two out.")
            if word == "averaged_target" and recipe.target.momentum == 0:
                raise RecipeError(f"{place}: needs an averaged target. Set [target] momentum above 0.")
    if recipe.masks is not None and "hides" not in encoder.gives:
        other = recipe.encoder.use
        raise RecipeError(f"[masks] {recipe.masks.use}: [encoder] {other} cannot hide cells. Leave [masks] out, or choose another encoder.")
    if uneven and "hides_any" not in encoder.gives:
        said = f"hides more cells in one image than in another, and [encoder] {recipe.encoder.use} drops as many in each"
        raise RecipeError(f"{uneven}: {said}. {encoder.instead or 'Choose an encoder that puts a mask token there.'}")
    if recipe.run.activation_checkpointing and "recomputable" not in encoder.gives:
        other = recipe.encoder.use
        raise RecipeError(f"[run] activation_checkpointing: [encoder] {other} names no blocks. Leave it out, or choose another encoder.")


def check_channels(made: Composition) -> None:
    """Images that are not three channels of 8 bits, and the parts that touch pixels."""
    data, pixels = made.recipe.data, made.answers("apply_augment")
    wanted = []
    if data.channels != 3:
        wanted.append(("any_channels", f"channels = {data.channels}: it takes 3", [*made.answers("make_encoder"), *pixels]))
    if data.white:
        wanted.append(("deep", f"white = {data.white}: it takes images of 8 bits", pixels))
    for word, said, labels in wanted:
        for label in labels:
            if word not in made.traits[label].gives:
                instead = made.traits[label].instead or "Choose another part."
                raise RecipeError(f"{made.uses[label][1]}: does not go with [data] {said}. {instead}")


def check_alignments(made: Composition) -> None:
    """Alignments that losses name, and losses that alignments need."""
    recipe, used = made.recipe, set()
    for label, part in made.parts.items():
        place, traits = made.uses[label][1], made.traits[label]
        wanted = option(part, "align")
        if wanted is None:
            continue
        if not recipe.align:
            if "alignment" in traits.needs:
                raise RecipeError(f"{place}: needs an alignment. Add an [align] table.")
            continue
        if wanted not in recipe.align:
            raise RecipeError(f"{place}.align: {_no_alignment(recipe.align, wanted)}")
        used.add(wanted)
        gives = made.traits[recipe.align[wanted].label]
        if gives.extra and "uses_extra" not in traits.gives:
            other = recipe.align[wanted].use
            raise RecipeError(f"{place}: does not use what [align] {other} tells a predictor. Choose an alignment that resamples the maps.")
    for name, use in recipe.align.items():
        if name not in used:
            table = f"align.{name}" if name else "align"
            raise RecipeError(f"[{table}] {use.use}: no loss uses it. Leave it out, or add a loss that aligns cells.")


def _no_alignment(there: Mapping[str, PartConfig], wanted: str) -> str:
    """Why no alignment answers to this name, and what to write instead."""
    if list(there) == [""]:
        return "the recipe's one alignment, [align], has no name. Leave the key out, or write [align.NAME]."
    said = f"no alignment has the name {wanted!r}" if wanted else "the recipe names its alignments; say which with align = \"NAME\""
    return f"{said}.{closest(wanted, there)}"


def check_heads(made: Composition) -> None:
    """Shared heads that parts name, each trained by a loss; and losses that evaluations name."""
    heads, losses = [use.label for use in made.recipe.head], [use.label for use in made.recipe.loss]
    for label in made.answers("evaluate"):
        wanted = option(made.parts[label], "loss")
        if wanted and wanted not in losses:
            raise RecipeError(f"{made.uses[label][1]}.loss: no [[loss]] is called {wanted!r}.{closest(wanted, losses)}")
    for label, part in made.parts.items():
        wanted = option(part, "head")
        if wanted and wanted not in heads:
            raise RecipeError(f"{made.uses[label][1]}.head: no [[head]] has the name {wanted!r}.{closest(wanted, heads)}")
    trained = {option(made.parts[label], "head") for label in made.answers("loss")}
    for name in heads:
        if name not in trained:
            raise RecipeError(f'{made.uses[name][1]}: no loss uses it. Leave it out, or say head = "{name}" in a loss.')


def check_scores(made: Composition) -> None:
    """[run] keep_best against the scores that the evaluations name; one that names none may give any."""
    wanted, there = made.recipe.run.keep_best, set[str]()
    if wanted and not direction(wanted):
        raise RecipeError(f"[run] keep_best: of {wanted!r} neither more nor less is better. Name another score.")
    for label in made.answers("evaluate"):
        names = made.traits[label].scores
        if names is None:
            return
        own = made.uses[label][2].name
        there |= {f"{own}.{name}" if own else name for name in names}
    if wanted and wanted not in there:
        raise RecipeError(f"[run] keep_best: no evaluation gives {wanted!r}.{closest(wanted, there)}")


def check_labels(made: Composition, why: Callable[[], str]) -> None:
    """Of data without class numbers: that no part needs them.  `why`: what the data lack, in words."""
    for label, traits in made.traits.items():
        if "labels" in traits.needs:
            instead = "Give every sample a class number (field cls), or leave this part out."
            if made.uses[label][0] == "evaluate" and option(made.parts[label], "train") == "":
                instead = _write(made, label, ["train"])
            raise RecipeError(f"{made.uses[label][1]}: needs labels, and {why()}. {instead}")


def check_dims(made: Composition, dims: Dims) -> None:
    """What parts need of the views' pairs and of the data's labels."""
    if not dims.classes:
        check_labels(made, lambda: "the shards of [data] hold no class numbers (field cls, from 0 to 2**20)")
    for label, traits in made.traits.items():
        place = made.uses[label][1]
        if "pairs" in traits.needs and not dims.pairs:
            raise RecipeError(f"{place}: needs pairs of views, and [views] {made.recipe.views.use} gives none. Write more views.")
    _check_shared_views(made, dims)


def _check_shared_views(made: Composition, dims: Dims) -> None:
    """Views that take another's draws, or are cut out of another: of one that has its own."""
    place, views = f"[views] {made.recipe.views.use}", range(len(dims.sizes))
    for name, of in (("draws", dims.draws), ("cut_from", dims.cut_from)):
        if of and (len(of) != len(dims.sizes) or any(other not in views or of[other] != other for other in of)):
            raise PluginError(f"{place}: gives {name} = {of}. Give for each of the {len(dims.sizes)} views itself, or a view that has itself there.")
    if any(other != view for view, other in enumerate(dims.cut_from)) and made.recipe.data.augment_on == "device":
        raise RecipeError(f'[data] augment_on: {place} cuts views out of others after their photometry. Write augment_on = "worker".')


@contextmanager
def naming_evaluations(made: Composition, label: str) -> Iterator[None]:
    """Faults of the data that an evaluation reads name its table: whoever took a recipe that comes with twinview may never have seen it."""
    try:
        yield
    except DataError as e:
        slot, place, use = made.uses[label]
        bare, said = f"[[evaluate]] {use.use}", str(e)
        if slot != "evaluate" or said.startswith("[[evaluate]]"):
            if place == bare or not said.startswith((f"{bare}:", f"{bare}.")):
                raise
            raise DataError(place + said.removeprefix(bare)) from None  # a part does not know its name
        keys = _keys(made, label, e.shards)
        own = f" {keys[0]} is empty, and so it reads the run's own shards." if e.shards == "" and keys else ""
        raise DataError(f"{place}: {said}{own} {_write(made, label, keys)}") from None


def _keys(made: Composition, label: str, shards: str | list[str] | None) -> list[str]:
    """The options of an evaluation that name a set of images; where it is not known which set, those that it was given."""
    given = options(made.parts[label])
    if shards is None:
        return [key for key in ("val", "train") if made.uses[label][2].options.get(key)]
    if not shards:
        return [key for key in ("train", "val") if given.get(key) == ""][:1]
    inside = {f"{key}.{name}": value for key, table in given.items() if isinstance(table, dict) for name, value in table.items()}
    return [key for key, value in {**given, **inside}.items() if value == shards]


def _write(made: Composition, label: str, keys: list[str]) -> str:
    """What to write where an evaluation cannot read its images: `Write evaluate.0.val=PATHS, or evaluate=[] to evaluate nothing.`"""
    if made.alone:
        return f"Write {' and '.join(f'{key}=PATHS' for key in keys) or 'other options'}."
    number = made.recipe.evaluate.index(made.uses[label][2])
    instead = " and ".join(f"evaluate.{number}.{key}=PATHS" for key in keys) or f"other options of evaluate.{number}"
    return f"Write {instead}, or evaluate=[] to evaluate nothing."
