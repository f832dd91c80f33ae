"""What the sizes of views, data and parts do not allow is said in one line before a run begins."""
from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import every_method as methods
import pytest

from twinview import check, train
from twinview.assembly import assemble
from twinview.data.prepare.pack import pack_images
from twinview.errors import RecipeError
from twinview.recipe import read

PAIRED = ("simclr", "moco", "moco_v2", "moco_v3", "swav", "densecl", "pixpro", "resim", "iic", "byol", "simsiam")


def small(name: str, shards: str, **tables: Any) -> dict[str, Any]:
    """The tiny recipe of a method with other tables."""
    return copy.deepcopy({**methods.table(name, shards), **tables})


@pytest.mark.parametrize("name", PAIRED)
def test_losses_of_pairs_refuse_a_single_view(name: str, class_shards: str) -> None:
    table = small(name, class_shards)
    table["views"] = {"use": "byol.crops", "views": 1, "size": table["views"].get("size", 32)}
    with pytest.raises(RecipeError, match="needs pairs of views"):
        check(table)


def test_windows_as_large_as_the_view_are_refused(class_shards: str) -> None:
    table = small("resim", class_shards)
    table["loss"] = [{**loss, **({"side": [300, 300]} if loss["use"] == "resim.windows" else {})} for loss in table["loss"]]
    with pytest.raises(RecipeError, match=r"resim.windows.side: no window of 300 pixels lies within a view of \d+. Write sides below reference"):
        check(table)


def test_a_weight_beyond_one_is_no_share(class_shards: str) -> None:
    table = small("picie", class_shards)
    table["loss"][0]["across"] = 2.0
    with pytest.raises(RecipeError, match="across"):
        check(table)


def test_recipes_that_runs_keep_are_read_again(class_shards: str) -> None:
    """A run's recipe.toml has every option written out."""
    for name in methods.METHODS:
        made = read(small(name, class_shards))
        assert assemble(read(assemble(made).table())).table() == assemble(made).table(), name


def test_crops_are_labeled_before_samples_are_chosen(class_shards: str) -> None:
    table = small("picie", class_shards)
    table["loss"] = [*table["loss"], {"use": "deepcluster.images", "clusters": 2, "size": [32, 32]}]
    with pytest.raises(RecipeError, match=r"picie.clusters: wants an epoch's crops before it begins, and \[\[loss\]\] deepcluster.images chooses its samples"):
        check(table)


@pytest.mark.slow
def test_a_bank_wants_samples_that_have_numbers(photographs: Path, tmp_path: Path) -> None:
    """Two tars that nobody counted: ids of the second begin far behind those of the first."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for tar in Path(pack_images(photographs, tmp_path / "packed").out).glob("*.tar"):
        (bare / tar.name).write_bytes(tar.read_bytes())
    assert len(list(bare.iterdir())) > 1
    table = small("instdist", "", data={"shards": str(bare), "workers": 0, "streaming": True, "samples": 12})
    with pytest.raises(RecipeError, match=r"instdist.image: keeps something for each sample, .* Write an index"):
        train(table, run=tmp_path / "run")
