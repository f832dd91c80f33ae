"""Makes the heads that parts declare, and decides whether there is a target branch and which views share a forward pass."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Set

import attrs

from twinview.assembly import Assembly
from twinview.branch import Head
from twinview.errors import PluginError, RecipeError
from twinview.ops.seeding import seeded
from twinview.values import Dims, Role

NONE_TOGETHER: dict[Role, dict[int, list[int]]] = {"online": {}, "target": {}}


def views_together(assembly: Assembly, dims: Dims) -> dict[Role, dict[int, list[int]]]:
    """For each branch, the views that go through it together, by view: those of one size that the pairs ask of it, and those of a set.

    Raises RecipeError where there are never two.
    """
    online, target = (list(dict.fromkeys(pair[i] for pair in dims.pairs)) for i in (0, 1))
    if assembly.recipe.target.momentum == 0:  # what the target gives is the online branch's
        online, target = list(dict.fromkeys([*online, *target])), []
    found: dict[Role, dict[int, list[int]]] = {
        "online": {v: [w for w in online if dims.sizes[w] == dims.sizes[v]] for v in online},
        "target": {v: [w for w in target if dims.sizes[w] == dims.sizes[v]] for v in target},
    }
    for pieces in dims.sets:
        for group in found.values():
            group.update({v: list(pieces) for v in pieces if v not in group})
    if not any(len(views) > 1 for groups in found.values() for views in groups.values()):
        views = f"the pairs of {assembly.recipe.views.use} ask no branch for two views of one size"
        raise RecipeError(f"[run] views_together: {views}. Leave it out, or choose other views.")
    return found


def wants_target(assembly: Assembly, dims: Dims) -> bool:
    """Whether anything asks for a target branch: pairs have a target view, and a part may need an average without them."""
    return bool(dims.pairs) or any("averaged_target" in traits.needs for traits in assembly.traits.values())


def heads_of(assembly: Assembly, dims: Dims, label: str, *names: int | str) -> Iterator[tuple[str, Head]]:
    """A part's heads by key, with a random start of their own, whatever else the recipe holds; `names` make it another start."""
    sent = {use.label: dims.aligned_widths.get(name, ()) for name, use in assembly.recipe.align.items()}
    own = attrs.evolve(dims, sent=sent.get(label, ()))
    with seeded(assembly.recipe.run.seed, "heads", label, *names):
        for answer in assembly.only("heads", label)(dims=own):
            for name, head in answer.items():
                yield f"{assembly.key(label)}/{name}", head


def check_asked(assembly: Assembly, keys: Iterable[str], asked: Set[str]) -> None:
    """Of the heads' `keys`, those that hooks have `asked` for in the first step.  Raises PluginError for one that is declared and not among them."""
    for label in assembly.answers("heads"):
        for part, _, name in (key.rpartition("/") for key in keys):
            if part == assembly.key(label) and f"{part}/{name}" not in asked:
                said = f"heads() declares {name!r}, and no hook asked for it in the first step"
                instead = "Leave it out; a head whose turn comes later is asked for (branch.of) and given a gradient of zero until then"
                raise PluginError(f"{assembly.place(label)}: {said}. {instead}.")
