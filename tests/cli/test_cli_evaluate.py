"""`twinview evaluate` on a finished run: its own evaluation again, with other options, and what is refused."""
from __future__ import annotations

import contextlib
import io
import json
import math
import os
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from PIL import Image
from processes import Processes

from twinview.analysis import evaluate, scores
from twinview.analysis.evaluate import Evaluated, evaluation_recipe, evaluations
from twinview.analysis.targets import find_target
from twinview.api import checked
from twinview.cli import main
from twinview.cli.train import summary
from twinview.data.prepare.pack import pack_images
from twinview.engine.distributed.launch import launch
from twinview.engine.run_recipe import run_recipe
from twinview.engine.train import RunResult
from twinview.errors import RecipeError


@pytest.fixture(scope="module")
def labeled(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The photographs as shards, the left half of each labeled 0, the right half 1."""
    folder = tmp_path_factory.mktemp("labels")
    halves = np.zeros((56, 80), np.uint8)
    halves[:, 40:] = 1
    for image in photographs.iterdir():
        Image.fromarray(halves).save(folder / f"{image.stem}.png")
    return str(pack_images(photographs, tmp_path_factory.mktemp("packed") / "labelled", folder).out)


@pytest.fixture(scope="module")
def trained(install_module: Callable[..., None], labeled: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A run of four steps, and what it said on stdout and stderr."""
    install_module("toy")
    table = {
        "views": {"use": "toy.views"},
        "encoder": {"use": "toy.encoder"},
        "head": [{"use": "densesiam.projector", "name": "clusters", "clusters": 4}],
        "loss": [{"use": "densesiam.segment", "head": "clusters"}],
        "data": {"shards": labeled, "workers": 0},
        "optimizer": {"use": "sgd", "lr": 0.1},
        "run": {"steps": 4, "batch_size": 4, "log_every": 1, "device": "cpu"},
        "evaluate": [{"use": "probes.cluster", "head": "clusters", "val": labeled, "size": [56, 80], "every": 2}],
    }
    folder = tmp_path_factory.mktemp("runs")
    (folder / "toy.toml").write_text(tomli_w.dumps(table))
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main(["train", str(folder / "toy.toml"), "--run", str(folder / "run")]) == 0
    return folder / "run", out.getvalue(), err.getvalue()


@pytest.fixture
def run(trained: tuple[Path, str, str]) -> Path:
    """The run, without scores of earlier evaluations."""
    (trained[0] / "scores.json").unlink(missing_ok=True)
    return trained[0]


def test_scores_stand_in_the_table_and_in_the_log(trained: tuple[Path, str, str]) -> None:
    assert "cluster miou" in trained[1] and ", cluster miou " in trained[2] and "collapsed" not in trained[1]


def rows(path: Path) -> list[dict[str, Any]]:
    table = json.loads((path / "scores.json").read_text())
    assert table["format"] == 1
    return list(table["scores"])


def test_a_run_is_scored_again(run: Path, labeled: str, capsys: pytest.CaptureFixture[str]) -> None:
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert main(["evaluate", "cluster", str(run)]) == 0
    said = capsys.readouterr().out
    assert f"{last['score/cluster/miou']:.3f}" in said and "random" in said and "pixels" in said
    assert "probes.cluster, checkpoint of step 4 (last), seed 0: head=clusters" in said and "scores.json: new" in said
    assert main(["evaluate", "cluster", str(run)]) == 0
    assert "scores.json: nothing changed since 20" in capsys.readouterr().out
    assert main(["evaluate", "probes.cluster", str(run), "--shards", labeled, "head=", "clusters=3", 'baselines=["random"]', "data.workers=0"]) == 0
    first, second = rows(run)
    assert first["scores"]["cluster/miou"] == last["score/cluster/miou"] and first["protocol"]["head"] == "clusters"
    assert set(first["floors"]) == {"random", "pixels"} and "cluster/miou" in first["floors"]["random"]
    assert second["protocol"]["clusters"] == 3 and set(second["floors"]) == {"random"} and second["checkpoint"]["step"] == 4
    assert second["data"][0]["checksum"] and second["seed"] == 0 and second["command"].startswith("twinview") and second["versions"]["torch"]
    assert main(["show", "segments", str(run), "--images", "3"]) == 0 and (run / "pictures" / "segments.png").is_file()


ROW: dict[str, Any] = {"use": "probes.cluster", "checkpoint": {"step": 4}, "seed": 0, "protocol": {}}


def test_a_collapsed_run_says_so(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("twinview.analysis.evaluate.evaluate", lambda *_: Evaluated({"cluster/miou": 3.0, "cluster/collapsed": 1.0}, ROW, "new"))
    assert main(["evaluate", "cluster", str(run)]) == 0
    said = capsys.readouterr().out
    assert "COLLAPSED   cluster: fewer than two clusters are left" in said and "cluster collapsed" not in said
    assert main(["evaluate", "cluster", str(run), "--json"]) == 0
    assert "fewer than two clusters are left" in json.loads(capsys.readouterr().out)["collapsed"][0]
    result = RunResult(folder=run, step=4, seconds=1.0, loss=1.0, scores={}, checkpoint=run, collapsed=["features are equal"])
    assert "COLLAPSED   features are equal" in summary(result)


def test_scores_as_json(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = {"cluster/miou": 30.0, "cluster/things": math.nan, "cluster/random/miou": 20.0}
    monkeypatch.setattr("twinview.analysis.evaluate.evaluate", lambda *_: Evaluated(found, ROW, "new"))
    assert main(["evaluate", "cluster", str(run), "--json"]) == 0
    row = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # no NaN, which is no JSON
    assert row["scores"] == {"cluster/miou": 30.0, "cluster/things": None} and row["floors"] == {"random": {"cluster/miou": 20.0}}
    assert row["use"] == "probes.cluster" and row["said"] == "new" and row["kept_in"] == str(run / "scores.json") and row["collapsed"] == row["below_start"] == []


@pytest.mark.parametrize(("what", "more"), [("rankme", []), ("occupancy", ["clusters=4"])])
def test_a_signal_stands_beside_the_random_start(what: str, more: list[str], run: Path, labeled: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", what, str(run), "--shards", labeled, "size=[56,80]", *more, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert list(row["floors"]) == ["random"] and set(row["floors"]["random"]) == set(row["scores"])


def test_two_ranks_count_together(run: Path, processes: Processes) -> None:
    done = processes.run("evaluate", "cluster", str(run), "--ranks", "2", 'baselines=["random"]')
    assert done.returncode == 0, done.stderr
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert rows(run)[0]["scores"]["cluster/miou"] == pytest.approx(last["score/cluster/miou"])


@pytest.mark.parametrize(("words", "message"), [
    (["clusters"], "no installed part evaluates 'clusters'. Did you mean 'cluster'?"),
    (["cluster", "--step", "3"], "holds no checkpoint of step 3. There is: 4."),
    (["cluster", "--shards", "nowhere.tar"], "there is no such shard"),
    (["cluster", "sizes=[1,2]"], "nothing takes 'sizes'. Did you mean 'size'?"),
    (["cluster", "head=other"], "no [[head]] has the name 'other'. There is: clusters."),
    (["knn", "val=nowhere.tar", "size=[8,8]"], "needs labels, and the shards of [data] hold no class numbers (field cls, from 0 to 2**20). Write train=PATHS.\n"),
    (["cluster", "--best"], "marks no checkpoint as the best. Train with run.keep_best"),
    (["cluster", "--best", "--step", "4"], "--best: names one checkpoint and --step another. Leave one out."),
    (["cluster", "--ranks", "0"], "--ranks: wants a number above 0, not 0."),
])
def test_what_is_refused(run: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", words[0], str(run), *words[1:]]) == 2
    assert message in capsys.readouterr().err and not (run / "scores.json").exists()


def test_a_folder_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "cluster", str(tmp_path)]) == 2
    assert "is no run's folder: it holds no recipe.toml. Give the folder" in capsys.readouterr().err


def test_short_and_full_names() -> None:
    found = evaluations()
    assert found["cluster"] == found["probes.cluster"] == ["probes.cluster"] and found["segment"] == ["probes.segment"]


TWIN = '''
from twinview import hookimpl, part
from twinview_probes.cluster import Cluster


@part
class Inherits(Cluster):
    pass


@hookimpl
def parts():
    return {"cluster": Inherits}
'''


def test_a_short_name_of_two_methods_is_refused_with_the_full_ones(install: Callable[..., None], run: Path) -> None:
    install("twin", TWIN)
    with pytest.raises(RecipeError, match="^evaluate: 'cluster' is probes.cluster or twin.cluster. Write one of them in full.$"):
        evaluation_recipe(run_recipe(run), "cluster", None, {})
    (use,) = evaluation_recipe(run_recipe(run), "twin.cluster", None, {"clusters": 3, "baselines": []}).evaluate
    assert use.use == "twin.cluster" and use.options == {"clusters": 3, "baselines": []}


def test_of_two_of_one_kind_the_name_says_which(run: Path, tmp_path: Path) -> None:
    table = tomllib.loads((run / "recipe.toml").read_text())
    (own,) = table["evaluate"]
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps({**table, "evaluate": [{**own, "name": "fine"}, {**own, "name": "coarse", "clusters": 3}]}))
    (use,) = evaluation_recipe(run_recipe(tmp_path), "coarse", None, {"crop": True}).evaluate
    assert use.use == "probes.cluster" and (use.options["clusters"], use.options["crop"], use.options["head"]) == (3, True, own["head"])
    for what in ("cluster", "probes.cluster"):
        with pytest.raises(RecipeError, match="^evaluate: the run has 2 evaluations probes.cluster: fine, coarse. Write the name of one.$"):
            evaluation_recipe(run_recipe(tmp_path), what, None, {})


def scored_by_two_ranks(run: Path) -> int:
    """The step whose scores two ranks give; the second never looks for a checkpoint itself."""
    target = find_target(str(run), [])
    assembly = checked(evaluation_recipe(target.recipe(""), "cluster", None, {}))
    module: Any = evaluate
    find = module.find_checkpoint

    def found(*args: Any) -> Any:
        assert os.environ["RANK"] == "0", "a run that goes on may have another newest checkpoint by now"
        return find(*args)

    module.find_checkpoint = found
    step: int = launch(2, lambda: module.evaluate(assembly, target).row["checkpoint"]["step"], device="cpu")
    return step


def test_one_rank_looks_for_the_checkpoint_of_all(run: Path, processes: Processes) -> None:
    assert processes.call(scored_by_two_ranks, run) == 4


def test_evaluations_that_end_together_keep_both_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real, other = tmp_path / "scores.json", scores.read_scores, list[threading.Thread]()

    def read_while_another_ends(file: Path) -> list[dict[str, Any]]:
        rows = real(file)
        if not other:
            other.append(threading.Thread(target=scores.record, args=(path, {**ROW, "seed": 1}, {"knn/top1": 2.0})))
            other[0].start()
            other[0].join(0.2)
        return rows

    monkeypatch.setattr(scores, "read_scores", read_while_another_ends)
    assert scores.record(path, ROW, {"knn/top1": 1.0}) == "new"
    other[0].join()
    assert [row["seed"] for row in real(path)] == [0, 1]


def test_the_set_without_labels_is_named_in_the_words_of_the_command(run: Path, labeled: str, photo_shards: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        ([f"val={photo_shards}"], "Write val=PATHS."), ([f"val={labeled}", f"train={photo_shards}"], "Write train=PATHS."),
        (["val=nowhere.tar"], "Write val=PATHS."), ([f"val={labeled}", "train=nowhere.tar"], "Write train=PATHS."),
    ):
        assert main(["evaluate", "segment", str(run), "size=[56,80]", 'levels=["cells"]', *words]) == 2
        assert capsys.readouterr().err.strip().endswith(said)
