"""Every two installed parts together: a combination trains, or is refused with a reason that stands in docs/mixing.md."""
from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from twinview.testing import NONE, Combination, attempt, choices, names_that_meet, pairs_cover, product

COVER = pairs_cover()
PAGE = Path(__file__).resolve().parents[1] / "docs" / "mixing.md"


def rules() -> list[tuple[str, str]]:
    """(what is combined, reason) of the page's table, without marks."""
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", PAGE.read_text(), re.M)
    return [(what, reason.replace("`", "")) for what, reason in rows if what not in ("combination", "---") and " of " not in reason]


def reason(combination: Combination) -> list[str]:
    """Reasons for which the page says that a combination is refused."""
    align, loss = combination["align"], f"`{combination['loss']}`"
    found = []
    for what, why in rules():
        slot, _, losses = what.partition(" with ")
        if slot.startswith("no "):
            right = combination[slot.partition("`[")[2].partition("]")[0]] == NONE
        elif slot.startswith("`[views]` other than"):
            right = f"`{combination['views']}`" not in slot
        else:
            right = align != NONE if slot.startswith("`[align]`") else f"`{align}`" in slot or f"`{combination['encoder']}`" in slot
        if right and loss in losses:
            found.append(why)
    return found


@pytest.mark.parametrize("combination", COVER, ids=lambda c: " + ".join(c.values()))
def test_a_combination_trains_or_is_refused_with_its_reason(combination: Combination, photo_shards: str) -> None:
    found, expected = attempt(combination, photo_shards), reason(combination)
    if found.refused:
        assert "\n" not in found.refused and any(why in found.refused for why in expected), found.refused
    else:
        assert not expected, "the page says that it is refused"
        assert found.trains, found


def test_the_cover_holds_every_pair_and_wherever_it_can_in_a_combination_that_trains() -> None:
    found, every = choices(), list(product())
    wanted = {((a, x), (b, y)) for (a, xs), (b, ys) in itertools.combinations(found.items(), 2) for x, y in itertools.product(xs, ys)}
    assert wanted == names_that_meet(COVER)
    assert names_that_meet(c for c in every if not reason(c)) == names_that_meet(c for c in COVER if not reason(c))
    assert len(COVER) < len(every) / 20


def test_the_page_stays_short_and_every_rule_is_met() -> None:
    assert 0 < len(rules()) <= 6
    met = {why for c in product() for why in reason(c)}
    assert met == {why for _, why in rules()}
