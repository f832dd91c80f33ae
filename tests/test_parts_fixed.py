"""A part is fixed once made; what it says names the way out.  Pickles and subclasses are parts as before."""
from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from twinview import part
from twinview.errors import PluginError
from twinview.testing import choices


@part
class Once:
    """Makes something of its options."""

    rows: int = 3
    names: list[str] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.double: Any = 2 * self.rows
        self.rows += 1


@part
class Twice(Once):
    """Has an option more."""

    columns: int = 2


@pytest.mark.parametrize("made", [Once(), Twice(columns=5), pickle.loads(pickle.dumps(Once(rows=3))), copy.copy(Once())], ids=str)
def test_assignment_is_refused_and_names_heads(made: Once) -> None:
    assert (made.rows, made.double) == (4, 6)
    changes: list[Callable[[], None]] = [lambda: setattr(made, "queue", 1), lambda: setattr(made, "rows", 9), lambda: delattr(made, "rows")]
    for change in changes:
        with pytest.raises(PluginError, match=r"Once|Twice") as refused:
            change()
        assert "after it was made" in str(refused.value) and 'Head(module, "state")' in str(refused.value) and "\n" not in str(refused.value)
    assert (made.rows, made.double) == (4, 6)


def test_parts_of_plugins_are_fixed(toy: dict[str, Any]) -> None:
    assert any("byol.image" in name for name in choices()["loss"])
    from twinview_byol.image import Image

    with pytest.raises(PluginError, match=r"^twinview_byol\.image\.Image: sets 'center' after it was made, and no checkpoint would hold that\."):
        Image().center = 0.0  # type: ignore[attr-defined]
