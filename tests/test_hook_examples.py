"""The examples of docs/hooks.md are one method, and each does what the page says."""
from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import twinview
from twinview.assembly import assemble
from twinview.assembly.checks import asks_batch
from twinview.data.dataset.open import open_shards
from twinview.data.loading.loader import training_batches
from twinview.data.loading.views import ViewDataset
from twinview.errors import RecipeError
from twinview.model import LazyStep, make_model
from twinview.recipe import read
from twinview.values import Progress

DOCS = Path(__file__).resolve().parents[1] / "docs" / "hooks.md"
Table = dict[str, Any]
VIT = {"use": "timm.encoder", "name": "vit_tiny_patch16_224", "width": 24, "depth": 1, "heads": 2, "patch": 8, "img_size": 32}


def code() -> str:
    """Every example of the page, after the imports at its head, as one module."""
    blocks = [b for b in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if "import " in b or "class " in b]
    parts = re.findall(r"@part\nclass (\w+)", "\n".join(blocks))
    names = {re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower().replace("_norm", "norm"): name for name in parts}
    given = ", ".join(f'"{name}": {cls}' for name, cls in names.items())
    return "\n\n".join(blocks) + f"\n\n@hookimpl\ndef parts():\n    return {{{given}}}\n"


@pytest.fixture
def table(toy: Table, install: Callable[..., None], photo_shards: str) -> Table:
    """Twelve photographs, three steps an epoch."""
    install("docs", code())
    return {**toy, "data": {"shards": photo_shards, "workers": 0}, "run": {**toy["run"], "steps": 6, "device": "cpu", "checkpoint_every": 1, "keep": 10}}


def state(run: Path, step: int = 6, file: str = "model.pt") -> dict[str, Any]:
    found: dict[str, Any] = torch.load(run / f"checkpoints/step-{step:06d}" / file, weights_only=True)
    return found


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_crops_of_a_batch_are_those_of_its_images(table: Table) -> None:
    recipe = read({**table, "views": {"use": "docs.quick_crops"}})
    assembly, shards = assemble(recipe), open_shards(recipe.data.shards)
    dims = make_model(assembly, 12).dims
    batch = next(training_batches(recipe, dims, shards, rank=0, world=1, steps=1))
    views = ViewDataset(recipe, dims, shards, assembly)
    assert asks_batch(assembly, "sample_views")
    for b, number in enumerate(batch.ids.tolist()):
        assert torch.equal(views[0, number].geometry.boxes, batch.geometry.boxes[b])


def test_masks_of_any_count_go_with_a_mask_token_and_not_with_cells_that_are_dropped(table: Table, tmp_path: Path) -> None:
    made = {**table, "masks": {"use": "docs.some_hidden"}, "encoder": {**VIT, "hide": "mask_token"}}
    recipe = read({**made, "run": {**made["run"], "views_together": True}})
    assembly, shards = assemble(recipe), open_shards(recipe.data.shards)
    batch = next(training_batches(recipe, make_model(assembly, 12).dims, shards, rank=0, world=1, steps=1))
    counts = [set(hidden.sum(1).tolist()) for hidden in batch.hidden if hidden is not None]
    assert any(len(found) > 1 for found in counts) and any(0 in found for found in counts)
    assert twinview.train({**made, "run": {**made["run"], "views_together": True}}, "run.steps=2", run=tmp_path / "run").step == 2
    with pytest.raises(RecipeError) as refused:
        twinview.check({**made, "encoder": VIT})
    said = "hides more cells in one image than in another, and [encoder] timm.encoder drops as many in each"
    assert str(refused.value) == f'[masks] docs.some_hidden: {said}. Write hide = "mask_token".'


OWN: Table = {
    "views": {"use": "docs.mirrored"}, "augment": {"use": "docs.brightness"}, "encoder": {"use": "docs.patches"}, "align": {"use": "docs.mirror"},
    "loss": [{"use": "docs.same_cells"}, {"use": "docs.projected"}],
}


def test_a_small_method_of_a_part_for_every_slot(table: Table, tmp_path: Path) -> None:
    """It trains, is scored, and draws; aligned maps of places show the same places."""
    made = {**table, **OWN, "extra": [{"use": "docs.heat"}], "evaluate": [{"use": "docs.variance"}]}
    result = twinview.train(made, run=tmp_path / "run")
    assert result.scores["variance"] > 0 and (tmp_path / "run/pictures/heat.png").is_file()
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(0 <= row["loss/same_cells"] < 10 for row in rows)  # a few steps, each of other images: whether it learns is no matter of these
    recipe = read(made)
    assembly, shards = assemble(recipe), open_shards(recipe.data.shards)
    model = make_model(assembly, 12)
    step = LazyStep(model, next(training_batches(recipe, model.dims, shards, rank=0, world=1, steps=1)), Progress(0, 1, 0, 0.0), False)
    found = step.alignment(0, 1)
    places = [step.geometry.centers(view, (4, 4)).mT.reshape(-1, 2, 4, 4) for view in (0, 1)]
    assert bool((step.geometry.flips[:, 0] != step.geometry.flips[:, 1]).any())
    torch.testing.assert_close(found.online(places[0]), found.target(places[1]))


def test_a_part_says_what_it_needs(table: Table) -> None:
    assert twinview.check({**table, "loss": [{"use": "docs.wants_levels"}]})
    with pytest.raises(RecipeError, match=r"docs\.wants_levels: needs levels"):
        twinview.check({**table, "encoder": OWN["encoder"], "loss": [{"use": "docs.wants_levels"}]})


def test_what_after_step_writes_stays(table: Table, tmp_path: Path) -> None:
    twinview.train({**table, "extra": [{"use": "docs.unit_rows"}]}, "run.steps=2", run=tmp_path / "run")
    rows = state(tmp_path / "run", 2)["online.heads.toy/pooled/predictor.weight"]
    assert torch.allclose(rows.norm(dim=1), torch.ones(4))


def test_check_refuses_by_size(table: Table) -> None:
    assert twinview.check({**table, "loss": [{"use": "docs.regions", "regions": 16}]})
    with pytest.raises(RecipeError, match=r"^\[\[loss\]\] docs\.regions: regions = 17, and a view has 4 x 4 cells\. Write fewer\.$"):
        twinview.check({**table, "loss": [{"use": "docs.regions", "regions": 17}]})


def test_shuffled_batchnorm_puts_everything_back(table: Table, tmp_path: Path) -> None:
    """On one rank, without BatchNorm, it changes nothing; it goes with views_together."""
    made = {**table, "run": {**table["run"], "views_together": True, "sync_batchnorm": False}}
    twinview.train(made, run=tmp_path / "plain")
    twinview.train({**made, "extra": [{"use": "docs.shuffled_batchnorm"}]}, run=tmp_path / "shuffled")
    plain, shuffled = state(tmp_path / "plain"), state(tmp_path / "shuffled")
    assert all(torch.allclose(plain[name], shuffled[name], atol=1e-6) for name in plain)


def test_a_late_layer_stands_still_for_an_epoch(table: Table, tmp_path: Path) -> None:
    made = {**table, "extra": [{"use": "docs.late_layer"}], "optimizer": {"use": "adamw", "lr": 0.01, "weight_decay": 0.1}}
    twinview.train(made, run=tmp_path / "run")
    name = "online.heads.toy/pooled/predictor.weight"
    weights = [state(tmp_path / "run", step)[name] for step in (1, 3, 4)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    moved = (weights[2] - weights[1]).abs()
    assert torch.allclose(moved, torch.full_like(moved, 0.005), rtol=0.1)  # AdamW's first step is of the rate's size, here half of the peak
    assert float(state(tmp_path / "run", 6, "optimizer.pt")["heads.toy/pooled/predictor.weight"]["step"]) == 3


def test_deepcluster_goes_on_in_the_middle_of_an_epoch_as_if_it_had_not_stopped(table: Table, tmp_path: Path) -> None:
    made = {**table, "loss": [{"use": "docs.deep_cluster"}], "optimizer": {"use": "adamw", "lr": 0.01}}
    twinview.train(made, run=tmp_path / "run")
    numbers = state(tmp_path / "run", 5, "samples.pt")["numbers"]
    labels = state(tmp_path / "run", 5)["state.docs/deep_cluster/labels.of"]
    assert numbers.dtype == torch.float64 and torch.allclose(numbers, 1 / labels.bincount()[labels].double())
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    for step in (5, 6):
        shutil.rmtree(tmp_path / f"again/checkpoints/step-{step:06d}")
    (tmp_path / "again/checkpoints/latest").write_text("step-000004")
    twinview.train(made, run=tmp_path / "again", resume=True)
    assert same(state(tmp_path / "again"), state(tmp_path / "run"))
    fresh = [state(tmp_path / "run", step)["online.heads.docs/deep_cluster/classifier.weight"] for step in (3, 4)]
    assert not torch.allclose(fresh[0], fresh[1], atol=0.05)  # drawn anew as the second epoch began


def test_a_curated_set_is_read_as_often_as_it_says(table: Table, tmp_path: Path) -> None:
    seen = CODE_THAT_WRITES_IDS.format(path=str(tmp_path / "ids"))
    (tmp_path / "site" / "twinview_docs.py").write_text(code().replace("@hookimpl\ndef parts():\n    return {", seen + "@hookimpl\ndef parts():\n    return {\"ids\": Ids, "))
    for workers in (0, 2):
        (tmp_path / "ids").write_text("")
        run = {"data": {**table["data"], "workers": workers}, "extra": [{"use": "docs.curated"}, {"use": "docs.ids"}]}
        twinview.train({**table, **run}, run=tmp_path / f"run{workers}")
        ids = [int(word) for word in (tmp_path / "ids").read_text().split()]
        assert sorted(ids[:12]) == sorted([0, 1, 2, 3, 4, 5] * 2) == sorted(ids[12:]) and ids[:12] != ids[12:]
    assert same(state(tmp_path / "run0"), state(tmp_path / "run2"))


CODE_THAT_WRITES_IDS = '''
@part
class Ids:
    @hookimpl
    def after_step(self, step):
        with open("{path}", "a") as file:
            file.write(" ".join(map(str, step.batch.ids.tolist())) + "\\n")


'''


def test_a_memory_does_not_notice_accumulation(table: Table, tmp_path: Path) -> None:
    made = {**table, "loss": [{"use": "docs.remember"}]}
    found = []
    for accumulation in (1, 2, 4):
        twinview.train(made, f"run.accumulation={accumulation}", run=tmp_path / f"run{accumulation}")
        found.append(state(tmp_path / f"run{accumulation}"))
    assert all(torch.allclose(one[name].float(), found[0][name].float(), atol=1e-6) for one in found[1:] for name in one)
    row = json.loads((tmp_path / "run4/metrics.jsonl").read_text().splitlines()[-1])
    assert row["center"] > 0 and found[0]["state.docs/remember/memory.at"] == 6 * 4 % 16


def test_a_head_takes_several_maps_and_a_wrapper_knows_whose_loss_it_has(table: Table, tmp_path: Path) -> None:
    made = {**table, "loss": [{"use": "docs.pyramid"}, {"use": "toy.pooled"}]}
    rows = {}
    for name, extra in (("plain", []), ("halved", [{"use": "docs.halve"}])):
        twinview.train({**made, "extra": extra}, "run.steps=1", run=tmp_path / name)
        rows[name] = json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])
    assert rows["halved"]["loss/pyramid"] == pytest.approx(rows["plain"]["loss/pyramid"] / 2)
    assert rows["halved"]["loss/pooled"] == rows["plain"]["loss/pooled"]
