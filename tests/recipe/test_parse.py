"""What a recipe says is read strictly, and what it says wrong is named."""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from twinview.errors import RecipeError
from twinview.recipe import names, override, read


def good() -> dict[str, Any]:
    return {
        "views": {"use": "toy.views", "size": 96},
        "encoder": {"use": "toy.encoder"},
        "loss": [{"use": "toy.pooled", "weight": 0.5}],
        "data": {"shards": "x.tar"},
        "optimizer": {"use": "sgd", "lr": 0.1},
        "run": {"steps": 10},
    }


def test_a_recipe_survives_its_own_table() -> None:
    recipe = read({**good(), "align": {"a": {"use": "toy.align"}, "b": {"use": "toy.align"}}, "deepspeed": {"csv_monitor": {"enabled": True}}})
    assert read(recipe.table()) == recipe
    assert recipe.table()["loss"] == [{"use": "toy.pooled", "weight": 0.5}]
    assert [place for _, place, _ in recipe.uses()] == ["[views] toy.views", "[encoder] toy.encoder", "[align.a] toy.align", "[align.b] toy.align", "[[loss]] toy.pooled"]


def test_name_is_an_option_of_single_parts_and_a_stable_name_of_the_others() -> None:
    recipe = read({**good(), "encoder": {"use": "toy.encoder", "name": "resnet50"}, "extra": [{"use": "toy.x", "name": "mine"}],
                   "align": {"a": {"use": "toy.align"}, "b": {"use": "toy.align"}}})
    assert recipe.encoder.options == {"name": "resnet50"} and recipe.encoder.label == "toy.encoder"
    assert recipe.extra[0].label == "mine" and [u.label for u in recipe.align.values()] == ["toy.align.a", "toy.align.b"]


def test_overrides_reach_tables_and_lists() -> None:
    recipe = read(good(), ["run.steps=7", "loss.0.weight=0.25", "data.shards=a b.tar", "views.scale=[0.2, 1.0]", "target.momentum=0"])
    assert (recipe.run.steps, recipe.loss[0].weight, recipe.data.shards, recipe.target.momentum) == (7, 0.25, "a b.tar", 0)
    assert recipe.views.options["scale"] == [0.2, 1.0]


def test_a_weight_follows_its_points_over_the_run() -> None:
    recipe = read(good(), ["loss.0.weight=[[0.2, 0], [0.4, 1], [0.6, 1], [0.6, 0.5]]"])
    shares = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0)
    assert [recipe.loss[0].weight_at(share) for share in shares] == pytest.approx([0, 0, 0.5, 1, 1, 0.5, 0.5])
    assert read(recipe.table()).loss[0].weight == recipe.loss[0].weight and read(good()).loss[0].weight_at(0.3) == 0.5


def test_of_keys_that_exclude_one_another_the_one_given_takes_the_place_of_the_files() -> None:
    """So that a recipe of epochs is tried for some steps."""
    recipe = read(good(), ["run.epochs=2", "optimizer.base_lr=0.5", "schedule.warmup_steps=1"])
    assert (recipe.run.epochs, recipe.run.steps) == (2, None)
    assert (recipe.optimizer.base_lr, recipe.optimizer.lr) == (0.5, None) and recipe.schedule.warmup_steps == 1
    assert read(good(), ["run.seed=1"]).run.steps == good()["run"]["steps"]


FAULTS: list[tuple[list[str], str]] = [
    (["veiws.x=1"], "the recipe: nothing takes [veiws]. Did you mean 'views'?"),
    (["run.stesp=1"], "[run]: nothing takes 'stesp'. Did you mean 'steps'?"),
    (["run.steps='a'"], "[run].steps: wants a whole number, not 'a'"),
    (["run.steps=1.5"], "[run].steps: wants a whole number, not 1.5"),
    (["run.steps=0"], "[run].steps: wants a number above 0, not 0"),
    (["run.epochs=1", "run.steps=9"], "[run]: wants exactly one of steps, epochs, hours; it has steps and epochs"),
    (["run.channels_last=1"], "[run].channels_last: wants true or false, not 1"),
    (["run.batch_size=0"], "batch_size must be > 0"),
    (["run.accumulation=7"], "[run] accumulation: 7 does not divide batch_size 256"),
    (["run.precision=fp8"], "[run].precision: wants one of 'fp32', 'bf16', 'fp16', 'auto', not 'fp8'"),
    (["target.momentum=2"], "momentum must be <= 1"),
    (["data.shards=3"], "[data].shards: wants a string or a list of strings, not 3"),
    (["data.std=[1, 1]"], "[data] std: wants a number for each channel ([data] channels = 3), not [1.0, 1.0]. Write them, or std = \"shards\"."),
    (["data.std=[1, 1, 0]"], "[data] std: wants numbers above 0, not [1.0, 1.0, 0.0]."),
    (["data.channels=1"], "[data] mean: wants one number, as there is one channel ([data] channels = 1), not [0.485, 0.456, 0.406]."),
    (["data.std=[1, 1, nan]"], "[data] std: wants numbers above 0, not [1.0, 1.0, nan]."),
    (["data.mean=[0.5, 0.5, inf]"], "[data] mean: wants finite numbers, not [0.5, 0.5, inf]."),
    (["data.mean=[123.675, 116.28, 103.53]", "data.std=[58.395, 57.12, 57.375]"],
     "[data] mean = [123.675, 116.28, 103.53] and std = [58.395, 57.12, 57.375]: are not within 0..1 of full scale. "
     "Write mean = [0.485, 0.456, 0.406] and std = [0.229, 0.224, 0.225] (divided by 255)."),
    (["data.white=4000", "data.mean=[2000, 2000, 2000]"], "[data] mean = [2000.0, 2000.0, 2000.0]: is not within 0..1 of full scale. Write mean = [0.5, 0.5, 0.5] (divided by 4000)."),
    (["data.std=[1, 1, 300]"], "[data] std = [1.0, 1.0, 300.0]: is not within 0..1 of full scale."),
    (["data.mean=[-0.1, 0.5, 0.5]"], "[data] mean = [-0.1, 0.5, 0.5]: is not within 0..1 of full scale."),
    (["data.decode=scaled", "data.white=4095"], "[data]: decode = \"scaled\" is of 8-bit color images: it goes with neither channels nor white."),
    (["data.cache_gb=inf"], "cache_gb must be < 1000000000.0"),
    (["data.channels=0"], "channels must be > 0"),
    (["data.white=70000"], "white must be < 65536"),
    (["data.mean=shard"], "[data].mean: wants a list of numbers or \"shards\", not 'shard'"),
    (["schedule.warmup_steps=1", "schedule.warmup_epochs=1"], "[schedule]: wants at most one of warmup_epochs, warmup_steps, warmup_share"),
    (["optimizer.use=sdg"], "[optimizer] use: no optimizer 'sdg'. Did you mean 'sgd'?"),
    (["optimizer.base_lr=1", "optimizer.lr=1"], "[optimizer]: wants exactly one of lr and base_lr"),
    (["optimizer.betas=[0, 1]"], "[optimizer]: nothing takes 'betas'"),
    (["format=9"], "format: this recipe is of format 9, this twinview reads 1"),
    (["views.use=toy"], "[views]: wants `use = \"method.part\"`, not 'toy'"),
    (["augment.x=1"], "[augment]: wants `use = \"method.part\"`; it names no part"),
    (["loss.weight=1"], "is a list of parts; write the place too, for example loss.0.weight"),
    (["loss.3.weight=1"], "'3' is no place in a list of 1. Write 0 to 0"),
    (["run.steps.x=1"], "'steps' is a value, not a table"),
    (["nonsense"], "an override is written table.key=value"),
    (["loss.0.name=a/b"], "[[loss]].name: 'a/b' has a '/'"),
    (["optimizer.lr=-1"], "[optimizer]: lr must be >= 0"),
    (["optimizer.lr=nan"], "[optimizer]: lr must be >= 0"),
    (["optimizer.nesterov=true", "optimizer.momentum=0"], "[optimizer]: nesterov wants a momentum above 0"),
    (["optimizer.momentum=9"], "[optimizer]: momentum must be < 1: 9"),
    (["optimizer={use='lars', lr=1, momentum=1}"], "[optimizer]: momentum must be < 1: 1"),
    (["optimizer={use='adamw', lr=1, betas=[0.9, 1.5]}"], "betas"),
    (["optimizer={use='adamw', lr=1, betas=[0.9]}"], "[optimizer].betas: wants a list of 2, not [0.9]"),
    (["optimizer=lars"], "[optimizer]: wants a table, not 'lars'"),
    (["schedule.warmup_share=5"], "warmup_share must be <= 1"),
    (["run.seed=99999999999999999999999"], "seed must be <"),
    (["run.device=cuda:1"], "[run].device: wants one of 'auto', 'cpu', 'cuda', not 'cuda:1'"),
    (["loss.0.weight=nan"], "[[loss]] toy.pooled: weight must be <"),
    (["loss.0.weight=big"], "[[loss]] toy.pooled.weight: wants a number, not 'big'"),
    (["loss.0.weight=[0, 1]"], "[[loss]] toy.pooled.weight: wants a number, or points [share of the run, weight] such as [[0, 0], [0.2, 1]], not [0, 1]"),
    (["loss.0.weight=[[0, a]]"], "is no TOML value"),
    (["loss.0.weight=[[0.5, 1], [0.2, 0]]"], "[[loss]] toy.pooled: weight wants points [share of the run from 0 to 1, weight] in order"),
    (["loss.0.weight=[[0, 1], [1.5, 0]]"], "weight wants points [share of the run from 0 to 1, weight] in order"),
    (["loss.0.weight=[[0, inf]]"], "weight wants points"),
    (["loss.0.weight=[]"], "weight wants points"),
    (["data.mean=0.5"], "[data].mean: wants a list of numbers or \"shards\", not 0.5"),
    (["data.mean=[a,1,2]"], "[a,1,2] is no TOML value. Quote the whole override"),
    (["deepspeed=3"], "[deepspeed]: wants a table, not 3"),
    (["run=3"], "[run]: wants a table, not 3"),
    (["align=3"], "[align]: wants a table"),
]


@pytest.mark.parametrize(("assignments", "said"), FAULTS, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_a_fault_is_named(assignments: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(said)) as caught:
        read(good(), assignments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("slot", "value", "said"), [
    ("loss", {"use": "toy.pooled"}, "[loss]: there may be several; write [[loss]]"),
    ("views", [{"use": "toy.views"}], "[[views]]: takes one part; write [views]"),
    ("align", [{"use": "toy.align"}], "[[align]]: takes one part; write [align], or [align.NAME] for each of several"),
    ("loss", [], "[loss]: is missing. A recipe needs views, encoder, loss, data, optimizer, run"),
    ("evaluate", [{"use": "a.b", "every": -1}], "[[evaluate]] a.b: every must be >= 0"),
    ("loss", [3], "[[loss]]: wants a table with `use"),
])
def test_a_slot_has_its_shape(slot: str, value: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(said)):
        read({**good(), slot: value})


def test_of_two_parts_with_one_use_the_faulty_one_is_named() -> None:
    two = {**good(), "loss": [{"use": "toy.pooled"}, {"use": "toy.pooled", "name": "second"}, {"use": "toy.cells"}]}
    assert [place for slot, place, _ in read(two).uses() if slot == "loss"] == ["[[loss]] toy.pooled (loss.0)", "[[loss]] toy.pooled (second)", "[[loss]] toy.cells"]
    for assignments, said in (
        (["loss.0.weight=big"], "[[loss]] toy.pooled (loss.0).weight: wants a number, not 'big'"),
        (["loss.1.weight=nan"], "[[loss]] toy.pooled (second): weight must be <"),
        (["loss.1.name=", "loss.1.weight=nan"], "[[loss]] toy.pooled (loss.1): weight must be <"),
        (["loss.2.weight=nan"], "[[loss]] toy.cells: weight must be <"),
    ):
        with pytest.raises(RecipeError, match=re.escape(said)):
            read(two, assignments)


@pytest.mark.parametrize("slot", ["views", "encoder", "loss", "data", "optimizer", "run"])
def test_a_missing_table_is_named(slot: str) -> None:
    table = good()
    del table[slot]
    with pytest.raises(RecipeError, match=rf"\[{slot}\]"):
        read(table)


def test_files(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no such file"):
        read(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[views]\nuse = 'a.b'\n[views]\n")
    with pytest.raises(RecipeError, match=r"bad.toml: is no TOML: Cannot declare \('views',\) twice"):
        read(tmp_path / "bad.toml")


def test_a_recipe_by_a_near_name() -> None:
    assert "multisiam/quickstart" in names()
    with pytest.raises(RecipeError, match="no recipe has this name. Did you mean 'multisiam/quickstart'"):
        read("multisiam/quikstart")


def test_override_does_not_touch_what_it_was_given() -> None:
    table = good()
    read(table, ["run.steps=3"])
    assert table == good() and override({}, ["a.b=1"]) == {"a": {"b": 1}}


def test_the_readmes_table_of_methods_is_current() -> None:
    from twinview.cli.methods import with_table

    readme = Path(__file__).resolve().parents[2] / "README.md"
    text = readme.read_text()
    assert with_table(text, readme) == text, "write it anew: twinview methods --write README.md"
