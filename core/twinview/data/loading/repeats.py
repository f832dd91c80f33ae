"""What a worker sees only with two answers at hand: the same sample drawn twice has to be the same, and draws of a batch have one shape."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from twinview.assembly import Assembly
from twinview.data.loading.item import Item
from twinview.errors import ContractError


def check_repeats(assembly: Assembly, one: Item, other: Item) -> None:
    """Of one sample made twice.  Raises ContractError naming the hook whose draws differ."""
    if not (torch.equal(one.geometry.boxes, other.geometry.boxes) and torch.equal(one.geometry.flips, other.geometry.flips)):
        raise _unsteady(assembly, "sample_views", "other boxes")
    if not all(_same(a, b) for a, b in zip(one.hidden, other.hidden, strict=True)):
        raise _unsteady(assembly, "make_masks", "another mask")
    for mine, again in zip(one.augment or (), other.augment or (), strict=True):
        for name in mine:
            if not _same(mine[name], again.get(name)):
                raise _unsteady(assembly, "draw_augment", f"another {name!r}")


def stacked_draws(draws: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The draws of a view, [B, ...] each.  Raises ContractError where images have other names or shapes."""
    for name in {name for drawn in draws for name in drawn}:
        shapes = {tuple(drawn[name].shape) if name in drawn else None for drawn in draws}
        if len(shapes) > 1:
            said = " and ".join(sorted("none" if shape is None else str(list(shape)) for shape in shapes))
            raise ContractError(f"draw_augment() gives {name!r} in several shapes: {said}. Give the same shape for every image.")
    return {name: torch.stack([drawn[name] for drawn in draws]) for name in draws[0]}


def _unsteady(assembly: Assembly, hook: str, what: str) -> ContractError:
    place = assembly.place_of(hook)
    said = f"{hook}() gives {what} when the same image is drawn again"
    return ContractError(f"{place}: {said}. Draw from `rng` alone: a resumed run, or one with other workers, has to see the same.", placed=True)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))
