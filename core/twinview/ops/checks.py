"""What options of parts may be: validators for attrs fields, whose messages stand behind the recipe's place."""
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs
from attrs.validators import and_, deep_iterable, ge, le, min_len

from twinview.errors import RecipeError
from twinview.values import Dims


def default_of(option: Any) -> Any:
    """The default of an attrs field, made where a factory makes it; `attrs.NOTHING` where it has to be given."""
    default = option.default
    return default.factory() if isinstance(default, attrs.Factory) else default  # type: ignore[arg-type]


share: Any = and_(ge(0), le(1))  # 0..1
shares: Any = deep_iterable(share, min_len(1))  # a list of them


def span(_: Any, attribute: Any, value: tuple[float, float]) -> None:
    """Two numbers 0 < low <= high."""
    if not 0 < value[0] <= value[1]:
        raise ValueError(f"{attribute.name} wants two numbers above 0, the second no smaller, not {list(value)}")


def area_span(_: Any, attribute: Any, value: tuple[float, float]) -> None:
    """A span of shares of an area: up to 1."""
    span(_, attribute, value)
    if value[1] > 1:
        raise ValueError(f"{attribute.name} is a share of the image's area and wants numbers up to 1, not {list(value)}")


def pixels(_: Any, attribute: Any, value: tuple[int, int]) -> None:
    """Height and width, each above 0."""
    if min(value) < 1:
        raise ValueError(f"{attribute.name} wants a height and a width above 0, not {list(value)}")


def of_weights(part: Any, attribute: Any, value: str) -> None:
    """What chooses among the encoders of a file goes with the option `weights`."""
    if value and not part.weights:
        raise ValueError(f"{attribute.name} chooses one of several encoders in the file of weights. Write weights too, or leave it out")


def masked_views(views: Iterable[int], dims: Dims, place: str) -> None:
    """Views whose cells are hidden from the online branch: raises RecipeError for one that there is not, or that no pair has as online.

    Without pairs every view is online.
    """
    online = sorted({view for view, _ in dims.pairs})
    for view in views:
        if view >= len(dims.grids):
            raise RecipeError(f"{place}: views names view {view}; views are counted from 0, and there are {len(dims.grids)}.")
        if online and view not in online:
            raise RecipeError(f"{place}: views names view {view}, which is online in no pair of these views. Write views = {online}.")


def known_levels(levels: Iterable[str], dims: Dims, place: str) -> None:
    """Raise RecipeError for one of `levels` that the encoder does not give; `place`: of the part in the recipe."""
    for level in levels:
        if level not in dims.encoder.levels:
            raise RecipeError(f"{place}.levels: the encoder gives no {level!r}. It gives {', '.join(dims.encoder.levels)}.")
