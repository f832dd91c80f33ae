"""What a worker sees only with two answers at hand: the same sample drawn twice has to be the same, and draws of a batch have one shape."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from twinview.assembly import Assembly
from twinview.data.loading.item import Item
from twinview.errors import ContractError
from twinview.values import Batch


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


def check_batched(assembly: Assembly, batched: Mapping[str, bool], one: Item, batch: Batch) -> None:
    """Of a batch's first sample made by itself too.  Raises ContractError where a hook that was asked for several at once gives others."""
    if batched["sample_views"] and not (_same(one.geometry.boxes, batch.geometry.boxes[0]) and _same(one.geometry.flips, batch.geometry.flips[0])):
        raise _unlike(assembly, "sample_views", "other boxes")
    for mine, many in zip(one.augment or (), batch.augment or (), strict=True) if batched["draw_augment"] else ():
        for name in mine.keys() | many.keys():
            if name not in mine or name not in many or not _same(mine[name], many[name][0]):
                raise _unlike(assembly, "draw_augment", f"another {name!r}")


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


def _unlike(assembly: Assembly, hook: str, what: str) -> ContractError:
    said = f"{hook}_batch() gives {what} than {hook}() for the same image"
    return ContractError(f"{assembly.place_of(hook)}: {said}. Take the same numbers in the same order.", placed=True)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))
