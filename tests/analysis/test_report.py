"""Runs as things: found, compared, shown on a page that needs nothing else; all of it from their folders alone."""
from __future__ import annotations

import base64
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from PIL import Image
from processes import Processes

import twinview
from twinview.analysis.report import serve
from twinview.analysis.report.compare import compare
from twinview.analysis.report.curves import POINTS, charts_of, thinned
from twinview.analysis.report.page import BUDGET, Picture, figure_sections
from twinview.analysis.report.run_page import run_page
from twinview.analysis.report.runs import RunInfo, age, find_runs, open_run
from twinview.analysis.report.statistics import paired
from twinview.cli import main
from twinview.cli.seeds import parsed, run_command
from twinview.engine.run_lock import locked
from twinview.errors import CheckpointError, TwinviewError


def make_run(folder: Path, *, seed: int = 0, steps: int = 20, at: int = 20, lr: float = 0.1, score: float = 40.0, recipe: str = "simclr/quickstart", extra: dict[str, Any] | None = None, **row: Any) -> Path:
    """A folder as a run leaves it, without a network."""
    (folder / "checkpoints").mkdir(parents=True)
    table = {"format": 1, "loss": [{"use": "toy.pooled"}], "optimizer": {"use": "sgd", "lr": lr}, "run": {"steps": steps, "batch_size": 4, "seed": seed, "log_every": 5}}
    (folder / "recipe.toml").write_text(tomli_w.dumps(table))
    sitting = {"command": f"twinview train {recipe} run.seed={seed}", "step": 0, "ranks": 1, "device": "cpu", "versions": {"torch": "2.15.0"}, "started": "2026-01-01T00:00:00+00:00"}
    (folder / "manifest.json").write_text(json.dumps({"data": {"images": 100, "checksum": "abc", "shards": ["a.tar"]}, "methods": {"toy": "toy 1.0"}, "sittings": [sitting]}))
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, at + 1):
            values = {"step": step, "epoch": 0, "loss": 2 / step, "loss/pooled": 2 / step, "lr": lr, "momentum": 0.99, "spread/online": 0.9, "images_per_second": 10.0, **row, **(extra or {})}
            if step == at:
                values |= {"score/knn/top1": score + seed, "score/knn/random/top1": 30.0, "score/cluster/collapsed": 0.0}
            file.write(json.dumps(values) + "\n")
    return folder


def test_runs_are_found_and_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "deep" / "done")
    make_run(tmp_path / "half", at=7)
    (tmp_path / "none").mkdir()
    busy = make_run(tmp_path / "busy", at=3)
    with locked(busy):
        states = {run.name: run.state for run in find_runs(tmp_path)}
        assert states == {"done": "finished", "half": "stopped", "busy": "running"}
        assert main(["runs", "--delete", str(busy), "--yes"]) == 2
        assert "is at work now" in capsys.readouterr().err
    assert open_run(busy).state == "stopped"
    assert main(["runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "state", "step", "recipe", "seed", "loss", "scores", "age"] and "20/20" in "".join(lines) and "knn/top1 40.0" in "".join(lines)
    assert main(["runs", str(tmp_path), "--json"]) == 0
    rows = {Path(row["run"]).name: row for row in json.loads(capsys.readouterr().out)}
    assert rows["half"]["step"] == 7 and rows["half"]["steps"] == 20 and rows["done"]["recipe"] == "simclr/quickstart"
    assert main(["runs", "--delete", str(tmp_path / "half")]) == 2  # nobody is at the terminal
    assert "--yes" in capsys.readouterr().err and (tmp_path / "half").is_dir()
    assert main(["runs", "--delete", str(tmp_path / "half"), "--yes"]) == 0 and not (tmp_path / "half").exists()
    assert main(["runs", str(tmp_path / "nowhere")]) == 2
    with pytest.raises(CheckpointError):
        open_run(tmp_path / "none")
    assert [age(s) for s in (3, 200, 9000, 200000)] == ["3 s", "3 min", "2 h", "2 days"]
    assert len(twinview.runs(tmp_path)) == 2 and "<table>" in twinview.runs(tmp_path)._repr_html_()


def test_a_lock_is_looked_at_from_another_process_without_taking_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    code = "import sys; from pathlib import Path; from twinview.engine.run_lock import holder; print(holder(Path(sys.argv[1])) is not None)"
    import sys

    with locked(run):
        assert subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True).stdout.strip() == "True"
    assert subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_runs_of_two_recipes_are_paired_by_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1, 2):
        make_run(tmp_path / f"a{seed}", seed=seed, score=40)
        make_run(tmp_path / f"b{seed}", seed=seed, score=43 + 0.1 * (seed % 2), lr=0.2)
    names = [f"{kind}{seed}" for kind in "ab" for seed in (0, 1, 2)]
    found = compare([open_run(tmp_path / name) for name in names])
    assert [len(group.runs) for group in found.groups] == [3, 3] and found.keys == {"optimizer.lr": ["0.1", "0.2"]}
    (line,) = [line for line in found.lines if line.score == "knn/top1"]
    difference = line.differences[1]
    assert difference is not None and abs(difference.mean - 3.0333) < 1e-3 and difference.verdict == "more than chance"
    assert paired({0: 1.0, 1: 2.0, 2: 0.5}, {0: 1.1, 1: 1.7, 2: 0.6}).verdict == "may be chance"
    assert paired({0: 1.0}, {0: 2.0}).verdict == "one seed tells nothing of chance"
    page = tmp_path / "page.html"
    assert main(["compare", *(str(tmp_path / name) for name in names), "--out", str(page)]) == 0
    out = capsys.readouterr().out
    assert "optimizer.lr" in out and "41.00 ± 1.00 (3)" in out and "+3.03 [" in out
    assert "more than chance" in page.read_text() and "optimizer.lr" in page.read_text()
    assert main(["compare", str(tmp_path / "a0"), str(tmp_path / "b1"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"][0]["differences"] == [None, None]  # no seed is in both
    for words in (["compare", str(tmp_path)], ["compare", str(tmp_path / "a0"), "--out", "page.png"]):
        assert main(words) == 2


def test_curves_keep_their_spikes_and_scores_their_floors(tmp_path: Path) -> None:
    points = [(float(x), 1.0 if x != 4711 else 99.0) for x in range(20000)]
    kept = thinned([(x, y) for x, y in points])
    assert len(kept) <= POINTS + 2 and max(y for _, y in kept if y is not None) == 99 and kept[0][0] == 0 and kept[-1][0] == 19999
    charts = {chart["title"]: chart for chart in charts_of(open_run(make_run(tmp_path / "run", weird=None, extra={"clusters/entropy": 1.5})).rows)}
    score = charts["knn top1"]["series"]
    assert [(s["name"], s["dash"]) for s in score] == [("trained", False), ("random", True)]
    assert {"Loss", "Learning rate", "Momentum of the target", "Spread of features", "clusters"} <= charts.keys() and "weird" not in charts


def test_the_page_is_whole_small_and_escapes_what_it_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "x<script>alert(1)", recipe="simclr/quickstart")
    noise = Image.effect_noise((3000, 2400), 90)
    html = run_page(open_run(run), {"Views": [Picture("", noise.convert("RGB"), "a <caption>")]}, notes=["why & how"])
    assert "<script>alert(1)" not in html and "x&lt;script&gt;alert(1)" in html and "a &lt;caption&gt;" in html
    assert len(html) < 8e6 and not re.search(r"""(src|href)=["'](https?:)?//""", html) and "@import" not in html
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)[1])  # type: ignore[index]
    assert [c["title"] for c in data["charts"]][:2] == ["knn top1", "Loss"]
    for said in ("finished", "step 20 of 20", "What differs from", "optimizer.lr", "torch", "2.15.0", "a.tar", "why &amp; how"):
        assert said in html, said
    many = figure_sections({f"s{n}": [Picture("", noise)] for n in range(12)})
    assert sum(len(section.html) for section in many) <= BUDGET


def test_a_run_below_its_random_start_says_so(tmp_path: Path) -> None:
    html = run_page(open_run(make_run(tmp_path / "run", score=20.0)))
    assert "at the random start" in html and 'class="warn"' in html
    empty = tmp_path / "empty"
    (empty / "checkpoints").mkdir(parents=True)
    (empty / "recipe.toml").write_text("not = [toml")
    assert "empty" in run_page(open_run(empty))


def test_the_server_answers_on_loopback_and_to_no_other_name(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", at=5)
    server = serve.Server(run, None)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        assert server.server_address[0] == "127.0.0.1"
        assert "data-live" in urllib.request.urlopen(server.url).read().decode()
        before = json.load(urllib.request.urlopen(server.url + "data.json"))
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 6, "loss": 0.1}) + "\n")
        after = json.load(urllib.request.urlopen(server.url + "data.json"))
        assert "step 5" in before["head"] and "step 6" in after["head"]
        old, new = (next(c for c in said["charts"] if c["title"] == "Loss")["series"][0]["points"] for said in (before, after))
        assert old[-1][0] == 5 and new[-1] == [6, 0.1]
        for request in (urllib.request.Request(server.url, headers={"Host": "evil.example"}), server.url + "recipe.toml", server.url + "../manifest.json"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(request)
        with pytest.raises(TwinviewError, match="--port"):
            serve.Server(run, None, server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="no browser here")
def test_a_browser_draws_the_curves(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(run_page(open_run(make_run(tmp_path / "run"))))
    browser = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", "--dump-dom"]
    dom = subprocess.run([*browser, page.as_uri()], capture_output=True, text=True, timeout=120, check=True).stdout
    assert dom.count("<svg") >= 6 and re.search(r'<path d="M[\d.]+ [\d.]+L', dom) and "stroke-dasharray" in dom and ">random<" in dom


def test_notebooks_show_a_table_and_the_pictures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "pictures").mkdir()
    Image.new("RGB", (4, 4)).save(run / "pictures" / "views.png")
    html = RunInfo(run)._repr_html_()
    code = re.search(r"base64,([\w+/=]+)", html)
    assert code and base64.b64decode(code[1]).startswith(b"\x89PNG") and "knn/top1" in html
    metrics = RunInfo(run).metrics
    assert list(metrics["loss"])[:2] == [2.0, 1.0]


SLOW = "import pathlib, signal, sys, time; signal.signal(15, lambda *_: sys.exit(CODE)); pathlib.Path('FILE').touch(); time.sleep(60)"


def seed_that_waits(file: str, code: int) -> None:
    raise SystemExit(run_command([sys.executable, "-c", SLOW.replace("FILE", file).replace("CODE", str(code))]))


@pytest.mark.parametrize("code", [143, 0])
def test_a_scheduler_that_ends_a_run_of_several_seeds_ends_the_one_that_trains(processes: Processes, tmp_path: Path, code: int) -> None:
    """And no other begins, even where it was at its end."""
    process = processes.begin(seed_that_waits, str(tmp_path / "begun"), code)
    process.wait_for((tmp_path / "begun").is_file)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143


def test_seeds_are_read_as_they_are_written() -> None:
    assert parsed("0,1,2") == [0, 1, 2] and parsed("3..5") == [3, 4, 5] and parsed("7") == [7]
    for wrong in ("a", "1,,2", "1,1", "5..3", "-1", ""):
        with pytest.raises(TwinviewError, match="--seeds"):
            parsed(wrong)
    for words in (["--seeds", "0,1", "--dry-run"], ["run.seed=1", "--seeds", "0,1"], ["--seeds", "x"]):
        assert main(["train", "simclr/quickstart", *words]) == 2


def test_scores_of_a_run_are_of_its_last_step_and_its_own_options(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", score=60.0)
    before = dict(open_run(run).scores)
    name = next(name for name in before if name.count("/") == 1)
    rows = [
        {"use": "probes.knn", "name": "", "checkpoint": {"step": step}, "overrides": overrides, "scores": {name: value}, "floors": {}}
        for step, overrides, value in ((2, [], 1.0), (20, ["encoder.pooled=token"], 2.0))
    ]
    (run / "scores.json").write_text(json.dumps({"format": 1, "scores": rows}))
    assert open_run(run).scores == before
    rows.append({"use": "probes.knn", "name": "", "checkpoint": {"step": 20}, "overrides": [], "scores": {name: 3.0}, "floors": {}})
    (run / "scores.json").write_text(json.dumps({"format": 1, "scores": rows}))
    assert open_run(run).scores == {**before, name: 3.0}


def test_a_run_is_called_by_its_recipe_and_not_by_a_value_of_an_option(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", recipe="--ranks 2 --run runs/x --seeds 1,2 byol/quickstart")
    assert open_run(run).recipe == "byol/quickstart"
