"""Every two installed parts together: a combination trains, or is refused with a reason that stands in docs/mixing.md."""
from __future__ import annotations

import itertools
import re
from functools import cache
from pathlib import Path

import pytest

from twinview.recipe import from_table
from twinview.testing import NONE, Combination, attempt, choices, names_that_meet, pairs_cover, product
from twinview.testing.rehearsal import whole_run

PAGE = Path(__file__).resolve().parents[1] / "docs" / "mixing.md"


@pytest.fixture(scope="module")
def pairs() -> list[Combination]:
    """Made when it is asked for: thousands of combinations are assembled for it."""
    return pairs_cover()


@cache
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


@pytest.mark.parametrize("loss", choices()["loss"])
def test_combinations_train_or_are_refused_with_their_reason(loss: str, pairs: list[Combination], photo_shards: str) -> None:
    faults = []
    for combination in [c for c in pairs if c["loss"] == loss]:
        found, expected = attempt(combination, photo_shards), reason(combination)
        if found.refused:
            well = "\n" not in found.refused and any(why in found.refused for why in expected)
        else:
            well = not expected and found.trains
        faults += [] if well else [(" + ".join(combination.values()), found, expected)]
    assert not faults


def test_the_cover_holds_every_pair_and_wherever_it_can_in_a_combination_that_trains(pairs: list[Combination]) -> None:
    found, every = choices(), list(product())
    wanted = {((a, x), (b, y)) for (a, xs), (b, ys) in itertools.combinations(found.items(), 2) for x, y in itertools.product(xs, ys)}
    assert wanted == names_that_meet(pairs)
    assert names_that_meet(c for c in every if not reason(c)) == names_that_meet(c for c in pairs if not reason(c))
    assert len(pairs) < len(every) / 20


def test_the_page_stays_short_and_every_rule_is_met() -> None:
    assert 0 < len(rules()) <= 6
    met = {why for c in product() for why in reason(c)}
    assert met == {why for _, why in rules()}


@pytest.mark.parametrize(("losses", "terms"), [
    (["byol.image", "simsiam.image"], {"loss/image", "loss/simsiam.image.image"}),
    (["instdist.image", "moco.image"], {"loss/image", "loss/moco.image.image"}),
])
def test_two_losses_of_whole_images_train(losses: list[str], terms: set[str], photo_shards: str, tmp_path: Path) -> None:
    small = choices()["loss"]
    table = {
        "views": {"use": "byol.crops", "size": 32}, "encoder": {"use": "tiny.encoder"}, "loss": [small[loss] for loss in losses],
        "data": {"shards": photo_shards, "workers": 0}, "optimizer": {"use": "adamw", "lr": 1e-3},
        "run": {"steps": 3, "batch_size": 4, "device": "cpu", "log_every": 1},
    }
    rows = whole_run(from_table(table), tmp_path / "run")
    assert [{name for name in row if name.startswith("loss/")} for row in rows] == [terms] * 3
    assert all(abs(row["loss"] - sum(row[term] for term in terms)) < 1e-5 * max(1, abs(row["loss"])) for row in rows)
