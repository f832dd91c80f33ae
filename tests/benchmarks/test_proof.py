"""The logic of the benchmark that compares methods: what it pairs, how sure it says it is, and what its probes measure."""
from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import quickstarts  # noqa: E402
from proof.data import blocks, by_class, middles, pixels, place  # noqa: E402
from proof.methods import TASKS, merged  # noqa: E402
from proof.probe import confusions, knn, linear, miou  # noqa: E402
from proof.score import pack, unpack  # noqa: E402
from proof.stats import bootstrap, bootstrap_miou, paired, seeds_needed  # noqa: E402
from proof.table import by_method, compare, compared, comparison, difference, newest, table, with_curves  # noqa: E402
from twinview.recipe.library import find  # noqa: E402


def test_differences_are_paired_by_the_seeds_that_both_have() -> None:
    found = paired({0: 10.0, 1: 20.0, 2: 99.0}, {0: 9.0, 1: 17.0, 5: 0.0})
    assert (found.mean, found.seeds) == (2.0, 2) and found.deviation == pytest.approx(2**0.5) and found.deviations == pytest.approx(2**0.5)
    assert found.low == pytest.approx(2 - 12.706, abs=1e-3)  # t of one degree of freedom, times a standard error of 1
    assert paired({3: 5.0, 4: 7.0}, 4.0).mean == 2.0
    with pytest.raises(ValueError, match="no seed"):
        paired({0: 1.0}, {1: 1.0})


def test_seeds_needed_are_those_of_a_t_test() -> None:
    assert seeds_needed(1.0) == 10 and seeds_needed(0.2) == 3  # of the tables of a paired t-test, power 0.8
    assert seeds_needed(2.0) == 34 and seeds_needed(2.0, 2.0) == 10
    rng = np.random.default_rng(0)
    gains = rng.normal(1.0, 1.0, (2000, 10))
    seen = np.abs(gains.mean(1) / gains.std(1, ddof=1) * 10**0.5) > 2.262
    assert seen.mean() == pytest.approx(0.8, abs=0.03)


def test_the_bootstrap_covers_seeds_and_images() -> None:
    rng = np.random.default_rng(0)
    gains = rng.choice([-1.0, 0.0, 1.0], (5, 400), p=[0.1, 0.7, 0.2])
    low, high = bootstrap(gains, [[i] for i in range(400)])
    assert low < gains.mean() < high and high - low < 0.15
    copied = np.repeat(gains[:, :100], 4, 1)  # frames that are all alike say no more than one of them
    wide, narrow = bootstrap(copied, [list(range(i, i + 4)) for i in range(0, 400, 4)]), bootstrap(copied, [[i] for i in range(400)])
    assert wide[1] - wide[0] > 1.3 * (narrow[1] - narrow[0])


def test_the_bootstrap_of_miou_is_about_its_difference() -> None:
    rng = np.random.default_rng(0)
    good, bad = (rng.poisson(mean, (3, 20, 3, 3)) for mean in (10 + 40 * np.eye(3), 10 + 20 * np.eye(3)))
    low, high = bootstrap_miou(good, bad, draws=300)
    whole = float(miou(torch.from_numpy(good.sum(1))).mean() - miou(torch.from_numpy(bad.sum(1))).mean())
    assert low < whole < high and low > 0
    assert bootstrap_miou(good, good, draws=50) == (0, 0)
    assert bootstrap_miou(good, bad[:1], draws=50)[0] > 0  # a row without seeds


def test_miou_leaves_out_what_never_occurs() -> None:
    counts = torch.tensor([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    assert float(miou(counts)) == pytest.approx(100 * (3 / 4 + 2 / 3) / 2)
    truth = torch.tensor([[[0, 0, 0, 0, 1, 1, 255]]])
    assert torch.equal(confusions(truth, torch.tensor([[[0, 0, 0, 1, 1, 1, 2]]]), 3)[0], counts)


def test_the_probes_find_what_is_there() -> None:
    torch.manual_seed(0)
    centers = torch.randn(4, 16)
    y, dev_y = torch.arange(400) % 4, torch.arange(200) % 4
    x, dev = (3 + 50 * (centers[labels] + 0.3 * torch.randn(len(labels), 16)) for labels in (y, dev_y))
    fitted = linear(x, y, dev, dev_y)
    assert (fitted(dev) == dev_y).double().mean() > 0.97
    assert torch.equal(fitted.weight, linear(x, y, dev, dev_y).weight)  # the same every time
    assert (knn(x - 3, y, dev - 3) == dev_y).double().mean() > 0.97


def test_the_linear_probe_is_scikit_learns() -> None:
    from sklearn.linear_model import LogisticRegression

    torch.manual_seed(1)
    x, y = torch.randn(300, 5), torch.randint(3, (300,))
    x = (x - x.mean(0)) / x.std(0, correction=0)
    ours = linear(x, y, x, y, decays=[0.01], iterations=500)
    theirs = LogisticRegression(C=1 / (0.01 * 300), tol=1e-8, max_iter=1000).fit(x.numpy(), y.numpy())
    weight = (ours.weight - ours.weight.mean(1, keepdim=True)).T
    np.testing.assert_allclose(weight.numpy(), theirs.coef_, atol=2e-3)


def test_sets_are_split_by_class_and_frames_by_place() -> None:
    bank, dev = by_class(torch.arange(12) % 3, [2, 1])
    assert bank == [0, 1, 2, 3, 4, 5] and dev == [6, 7, 8]
    keys = ["a/paris__1", "a/paris__2", "a/paris__3", "a/rome__1"]
    assert place(keys[0]) == "paris" and blocks(keys, 2) == [[0, 1], [2], [3]]


def test_cells_have_the_label_of_their_middle() -> None:
    labels = torch.arange(16 * 16).view(1, 16, 16)
    assert middles(labels, 8).tolist() == [[[4 * 16 + 4, 4 * 16 + 12], [12 * 16 + 4, 12 * 16 + 12]]]
    images = torch.randint(256, (2, 3, 16, 24), dtype=torch.uint8)
    assert pixels(images).shape == (2, 3 * 16 * 24) and pixels(images, 8).shape == (2, 192, 2, 3)


def test_bits_come_back() -> None:
    right = torch.rand(3001) < 0.3
    assert torch.equal(unpack(pack(right), 3001), right)


@pytest.mark.parametrize("name", TASKS)
def test_every_method_assembles_with_the_same_encoder_and_budget(name: str, tmp_path: Path) -> None:
    import twinview

    task = TASKS[name]
    for method in task.methods:
        recipe = task.recipe(method, 20, tmp_path, {"run.steps": 7, "optimizer.lr": 0.5})
        size = {"use", "name", "width", "depth", "patch", "stem"}  # MAE has sines of its own and a final norm
        assert {k: recipe["encoder"].get(k) for k in size} == {k: task.base["encoder"].get(k) for k in size}
        assert recipe["run"]["seed"] == 20 and recipe["run"]["steps"] == 7
        assert recipe["run"]["batch_size"] == task.base["run"]["batch_size"] and recipe["optimizer"]["lr"] == 0.5
        recipe.pop("evaluate", None)  # its shards are not here, which a check says
        assert twinview.check(recipe).recipe.run.steps == 7


def test_tables_are_merged_and_lists_replaced() -> None:
    assert merged({"a": {"b": 1, "c": 2}, "l": [1]}, {"a": {"c": 3}, "l": [2]}) == {"a": {"b": 1, "c": 3}, "l": [2]}


def test_a_table_pairs_every_row_with_both_floors() -> None:
    bits = {"linear_right": pack(torch.zeros(3000, dtype=torch.bool))}
    rows: list[dict[str, Any]] = [{"method": "pixels", "seed": 0, "linear": 30.0}]
    for seed in (20, 21):
        rows += [{"method": "random", "seed": seed, "linear": 31.0 + seed - 20, **bits}, {"method": "byol", "seed": seed, "linear": 36.0 + 2 * (seed - 20), **bits}]
    lines = table(rows)
    assert [line.split(" | ")[0] for line in lines[3:]] == ["| byol", "| random", "| pixels"]
    assert "| 36.0, 38.0 | 37.0 ± 1.4 | +5.5 ± 0.7 [-0.9, +11.9] (7.8) | +7.0 ± 1.4" in lines[3]
    found = compare({r["seed"]: r for r in rows if r["method"] == "byol"}, {r["seed"]: r for r in rows if r["method"] == "random"}, "linear")
    said = comparison("byol", "random", *({r["seed"]: r for r in rows if r["method"] == m} for m in ("byol", "random")))
    assert said == ["linear: byol - random on 2 seeds: +5.5 ± 0.7, over seeds [-0.9, +11.9], over seeds and images [+0.0, +0.0]; one point needs 7 paired seeds"]
    assert comparison("byol", "pixels", {20: rows[2], 21: rows[4]}, {0: {**rows[0], **bits}})[0].startswith("linear: byol - pixels on 2 seeds: +7.0 ± 1.4")
    assert "on 1 seed: +5.0, over images [+0.0, +0.0]; one seed" in comparison("byol", "random", {20: rows[2]}, {20: rows[1]})[0]
    assert "no seed in common" in comparison("a", "b", {}, {})[0]
    assert found["mean"] == 5.5 and found["images_low"] == found["images_high"] == 0  # these bits are all alike


def test_the_figure_shows_every_seed_and_the_floor() -> None:
    from xml.etree import ElementTree

    from proof.figure import figure

    rows: list[dict[str, Any]] = [{"method": "pixels", "seed": 0, "linear": 37.0}]
    rows += [{"method": m, "seed": s, "linear": base + s} for m, base in (("random", 33.0), ("a<b", 40.0), ("supervised", 57.0)) for s in range(3)]
    tree = ElementTree.fromstring(figure(rows, "linear", "A & B"))
    text = [t.text for t in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert len(list(tree.iter("{http://www.w3.org/2000/svg}circle"))) == 9
    assert "raw pixels" in text and text.index("supervised (with labels)") < text.index("a<b") < text.index("random start")


def test_k_means_of_a_segmentation_run_stands_beside_it() -> None:
    clusters = {"score/cluster/miou": 21.0, "score/cluster/random/miou": 16.0, "score/cluster/pixels/miou": 12.0}
    rows: list[dict[str, Any]] = [{"method": m, "seed": 20, "miou": s, "confusions": [[1, 0, 0, 1]]} for m, s in (("random", 24.0), ("pixels", 19.0))]
    rows.append({"method": "densesiam", "seed": 20, "miou": 30.0, "confusions": [[1, 0, 0, 1]], **clusters})
    lines = table(rows)
    assert [line.split(" | ")[:3] for line in lines if line.startswith("| densesiam")] == [["| densesiam", "30.0", "30.0"], ["| densesiam", "21.0", "21.0"]]
    assert lines[-3].split(" | ")[3:5] == ["+5.0", "+9.0"]
    found = by_method(rows)
    assert comparison("densesiam", "random", found["densesiam"], found["random"])[1] == (
        "cluster: densesiam - random on 1 seed: +5.0; one seed says nothing of the spread"
    )


def test_budgets_are_told_apart() -> None:
    rows: list[dict[str, Any]] = [{"method": "mae", "seed": seed, "steps": steps, "knn": 40.0} for seed, steps in ((20, 100), (21, 100), (22, 300))]
    assert {name: sorted(of) for name, of in by_method(rows).items()} == {"mae, 100 steps": [20, 21], "mae, 300 steps": [22]}


def test_curves_start_at_the_random_start() -> None:
    from xml.etree import ElementTree

    from proof.figure import curves

    rows: list[dict[str, Any]] = [{"method": "pixels", "seed": 0, "knn": 29.0}, {"method": "random", "seed": 20, "knn": 25.0}]
    with pytest.raises(SystemExit, match="--curve"):
        curves(rows, "knn", "A")
    rows.append({"method": "mae", "seed": 20, "knn": 40.0, "steps": 300, "curve": [{"step": 100, "knn": 30.0}, {"step": 200, "knn": 36.0}]})
    tree = ElementTree.fromstring(curves(rows, "knn", "A"))
    (line,) = tree.iter("{http://www.w3.org/2000/svg}polyline")
    heights = [float(point.partition(",")[2]) for point in line.attrib["points"].split()]
    assert len(heights) == 4 and heights == sorted(heights, reverse=True)
    assert {"raw pixels", "mae, seed 20"} <= {t.text for t in tree.iter("{http://www.w3.org/2000/svg}text")}


def test_a_training_of_its_own_gives_back_what_it_gives() -> None:
    from proof.alone import alone

    before = os.getpid()
    assert alone(os.getpid) != before and alone(int, "7") == 7
    with pytest.raises(ValueError, match="x"):
        alone(int, "x")


def test_what_is_compared_is_of_one_commit() -> None:
    def row(method: str, seed: int, score: float) -> dict[str, Any]:
        return {"task": "streets", "method": method, "seed": seed, "miou": score, "confusions": [[1, 0, 0, 1]]}

    by_commit = {"old": [row("a", 1, 20.0), row("b", 1, 10.0), row("c", 1, 5.0)], "new": [row("a", 2, 30.0), row("b", 2, 25.0)]}
    assert compared(by_commit, "streets", "a", "b") == ["commit new", "miou: a - b on 1 seed: +5.0, over images [+0.0, +0.0]; one seed says nothing of the spread"]
    assert compared(by_commit, "streets", "a", "c")[0] == "commit old"
    assert compared(by_commit, "streets", "a", "d") == ["no commit has rows of both a and d. There is: a, b, c"]
    assert [(r["method"], r["seed"]) for r in newest(by_commit, "streets")] == [("a", 2), ("b", 2), ("c", 1)]
    assert with_curves(by_commit, "streets") == []
    by_commit["old"].append({"task": "streets", "method": "d", "seed": 1, "curve": [{"step": 1}]})
    assert [r["method"] for r in with_curves(by_commit, "streets")] == [r["method"] for r in by_commit["old"] if r["task"] == "streets"]


def test_a_random_start_of_one_seed_stands_for_no_other() -> None:
    assert difference({20: 40.0, 21: 42.0}, {22: 30.0}) is None
    made, raw = difference({20: 40.0, 21: 42.0}, {20: 30.0}), difference({20: 40.0, 21: 42.0}, {0: 30.0}, constant=True)
    assert made is not None and made.seeds == 1 and made.mean == 10.0 and raw is not None and raw.seeds == 2 and raw.mean == 11.0


def test_a_run_with_overrides_is_a_row_of_its_own() -> None:
    rows: list[dict[str, Any]] = [{"method": "mae", "seed": 20, "steps": 9, "knn": 40.0}, {"method": "mae", "seed": 20, "steps": 9, "knn": 9.0, "overrides": {"optimizer.lr": 9}}]
    assert {name: of[20]["knn"] for name, of in by_method(rows).items()} == {"mae": 40.0, "mae, optimizer.lr=9": 9.0}


@pytest.mark.parametrize(("method", "trained"), [("multisiam", "multisiam_2400"), ("resim", "resim_slow"), ("simclr", "simclr")])
def test_recipes_for_photos_are_what_the_proof_trained(method: str, trained: str) -> None:
    """But for the data, and how the machine does the work."""
    recipes = [tomllib.loads(find(f"{method}/photos").read_text()), TASKS["streets"].recipe(trained, 0, Path("shards"))]
    for recipe in recipes:
        del recipe["data"]
        recipe["run"] = {key: value for key, value in recipe["run"].items() if key in ("steps", "batch_size", "channels_last", "views_together")}
        recipe["encoder"] = {"cells": "c4", **recipe["encoder"]}  # SimCLR asks for no cells
    assert recipes[0] == recipes[1]


def test_the_table_of_quickstarts_has_scores_and_floors() -> None:
    row = {"recipe": "a/b", "seed": 0, "steps": 9, "overrides": ["run.steps=9"], "commit": "abc", "cpu_seconds": 3.0, "scores": {"score/segment/miou": 30.0, "score/segment/random/miou": 20.0}}
    assert "| a/b | run.steps=9 | 0 | 9 | segment/miou 30.0 | 20.0 |" in quickstarts.table([row])
