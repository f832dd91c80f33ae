"""What the options of these parts may be."""
from __future__ import annotations

from typing import Any

from attrs.validators import and_, deep_iterable, ge, le, min_len

share: Any = and_(ge(0), le(1))
shares: Any = deep_iterable(share, min_len(1))


def rising(_: Any, attribute: Any, value: tuple[float, float]) -> None:
    """Two numbers 0 < low <= high."""
    if not 0 < value[0] <= value[1]:
        raise ValueError(f"{attribute.name} wants two rising numbers above 0, not {list(value)}")
