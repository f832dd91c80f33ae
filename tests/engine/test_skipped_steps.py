"""Steps whose loss or gradient is not finite touch nothing, on any rank, under any stage; and fp16's overflows, which are no fault."""
from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Processes

from twinview.engine import loss_scale
from twinview.engine import setup as build
from twinview.engine.distributed.launch import launch
from twinview.engine.metrics import read_metrics
from twinview.engine.train import train
from twinview.errors import RecipeError, TwinviewError
from twinview.recipe import from_table

Table = dict[str, Any]
SICK = '''
import os
import torch
from twinview.hooks import hookimpl, part


@part
class Sick:
    """At some steps its loss is NaN, or its gradient alone is; BatchNorm statistics are spoilt with it."""

    at: list[int] = []
    rank: int = 0
    gradient: bool = False

    @hookimpl
    def loss(self, step):
        x = step.online[0].pooled.float().square().mean()
        if step.progress.step + 1 not in self.at or int(os.environ.get("RANK", 0)) != self.rank:
            return {"sick": 0 * x}
        step.branches.online.encoder.body[1].running_mean.data.fill_(torch.nan)
        return {"sick": (0 * x).sqrt() if self.gradient else x + torch.nan}


@hookimpl
def parts():
    return {"sick": Sick}
'''


@pytest.fixture
def sick(tiny: Table, install: Callable[..., None]) -> Callable[..., Table]:
    """A recipe that is sick at some steps."""
    install("sick", SICK)

    def recipe(at: list[int], stage: int = 0, rank: int = 0, gradient: bool = False, **run: Any) -> Table:
        loss = [{"use": "toy.pooled"}, {"use": "sick.sick", "at": at, "rank": rank, "gradient": gradient}]
        run = {**tiny["run"], "steps": 6, "checkpoint_every": 1, "keep": 9, "bad_steps": 1, **run}
        return {**tiny, "loss": loss, "run": run, "deepspeed": {"zero_optimization": {"stage": stage}}}

    return recipe


def rows(run: Path) -> list[dict[str, Any]]:
    return list(read_metrics(run / "metrics.jsonl"))


def same(run: Path, one: int, other: int, but: str = "nothing") -> bool:
    """Whether two checkpoints hold the same weights, target, statistics, and memory of the optimizer; `but`: a word of names that may differ."""
    for file in ("model.pt", "optimizer.pt"):
        a, b = (torch.load(run / f"checkpoints/step-{step:06d}" / file, weights_only=True) for step in (one, other))
        for name, value in ((name, value) for name, value in a.items() if but not in name):
            parts, others = (v if isinstance(v, dict) else {"": v} for v in (value, b[name]))
            if not all(torch.equal(torch.as_tensor(v), torch.as_tensor(others[k])) for k, v in parts.items()):
                return False
    return True


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("change", [{}, {"accumulation": 2, "clip_gradients": 0.01}, {"gradient": True}], ids=["plain", "clipped", "gradient"])
def test_a_bad_step_is_left_out_whole(sick: Callable[..., Table], tmp_path: Path, stage: int, change: Table) -> None:
    run = tmp_path / "run"
    result = train(from_table(sick([3], stage, **change)), run)
    assert same(run, 2, 3) and not same(run, 3, 4) and result.bad_steps == 1
    logged = rows(run)
    bad = [row["step"] for row in logged if row["loss"] is None or row["grad_norm"] is None]
    assert bad == [3] and (logged[2]["loss"] is None) != change.get("gradient", False)
    assert [row.get("bad_steps") for row in logged] == [None, None, 1.0, 1.0, 1.0, 1.0]
    weights = torch.load(run / "checkpoints/step-000006/model.pt", weights_only=True)
    assert all(bool(v.isfinite().all()) for v in weights.values())


@pytest.mark.parametrize("stage", [0, 3])
def test_a_target_that_follows_before_the_forward_pass_follows_once(sick: Callable[..., Table], tmp_path: Path, stage: int) -> None:
    """Step 3 is left out after the target followed; step 4 moves the weights without, in a run that goes on after step 3 too."""
    run, target = tmp_path / "run", {"momentum": 0.9, "schedule": "constant", "update": "before_forward"}
    table = {**sick([3], stage), "target": target}
    train(from_table(table), run)
    assert same(run, 2, 3, but="target.") and not same(run, 3, 4, but="target.")
    weights = [torch.load(run / f"checkpoints/step-{step:06d}/model.pt", weights_only=True) for step in range(2, 6)]
    name = next(n for n in weights[0] if n.startswith("target.") and n.endswith("body.4.weight"))
    two, three, four, five = (w[name] for w in weights)
    assert torch.equal(three, torch.lerp(two, weights[0][name.replace("target.", "online.")], 1 - 0.9)) and not torch.equal(two, three)
    assert torch.equal(four, three) and not torch.equal(five, four)
    before = rows(run)
    for step in (4, 5, 6):
        shutil.rmtree(run / f"checkpoints/step-{step:06d}")
    (run / "checkpoints/latest").write_text("step-000003")
    train(from_table(table), run, resume=True)
    assert [row["loss"] for row in rows(run)] == [row["loss"] for row in before]


def test_a_bad_step_is_told_with_its_images_and_one_too_many_ends_the_run(
    sick: Callable[..., Table], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with pytest.raises(TwinviewError, match=r"^step 5: the loss is nan \(pooled [\d.]+, sick nan\) after 1 that were left out\. Lower \[optimizer\] lr or "):
        train(from_table(sick([3, 5])), run)
    said = capsys.readouterr().err
    assert said.count("WARNING") == 1
    assert "WARNING step 3: the loss is nan (pooled " in said and "sick nan). Left out, 1 of 1 that may be; the images were " in said
    told = json.loads((run / "nonfinite/step-000003.json").read_text())
    (micro,) = told["micro_batches"]
    assert told["step"] == 3 and told["epoch"] == 0 and micro["rank"] == 0 and micro["loss"] == micro["terms"]["sick"] == "nan"
    assert len(micro["keys"]) == 4 and all(f" {key}" in said for key in micro["keys"]) and isinstance(micro["terms"]["pooled"], float)
    with pytest.raises(TwinviewError, match=r"^step 5: .* after 1 that were left out"):  # counted over sittings
        train(from_table(sick([3, 5])), run, resume=True)
    assert train(from_table(sick([3, 5], bad_steps=2)), run, resume=True).bad_steps == 2  # what may be left out may change
    assert len(rows(run)) == 6 and same(run, 4, 5)


def test_the_first_ends_a_run_that_leaves_none_out(sick: Callable[..., Table], tmp_path: Path) -> None:
    with pytest.raises(TwinviewError, match=r"^step 6: the loss is nan \(.*\)\. Lower .* the images were \d\d, \d\d, \d\d, \d\d \(.*/nonfinite/step-000006\.json\)\.$"):
        train(from_table(sick([6], bad_steps=0)), tmp_path / "run")
    assert (tmp_path / "run/checkpoints/latest").read_text() == "step-000005"
    with pytest.raises(TwinviewError, match=r"^step 3: the gradient is not finite, and the loss is \(pooled [\d.]+, sick 0\)\. Lower"):
        train(from_table(sick([3], gradient=True, bad_steps=0)), tmp_path / "gradient")
    assert (tmp_path / "gradient/checkpoints/latest").read_text() == "step-000002"


def train_on_two(tables: dict[str, Table], folder: Path) -> dict[str, str]:
    """What is raised, by recipe."""
    raised = {}
    for name, table in tables.items():
        try:
            launch(2, partial(train, from_table(table), folder / name))
        except TwinviewError as e:
            raised[name] = str(e)
    return raised


def test_ranks_leave_a_step_out_together(sick: Callable[..., Table], tmp_path: Path, processes: Processes) -> None:
    """Rank 1 alone has the bad loss; under stages 0 and 2 both leave the step out, and end together when it is one too many."""
    tables = {"zero": sick([3], 0, rank=1), "two": sick([3], 2, rank=1), "ends": sick([3], 0, rank=1, bad_steps=0)}
    said = processes.call(train_on_two, tables, tmp_path)
    for name in ("zero", "two"):
        assert same(tmp_path / name, 2, 3) and not same(tmp_path / name, 3, 4) and rows(tmp_path / name)[-1]["loss"] > 0
        told = json.loads((tmp_path / name / "nonfinite/step-000003.json").read_text())["micro_batches"]
        assert [m["rank"] for m in told] == [0, 1] and [m["loss"] == "nan" for m in told] == [False, True] and len(told[1]["keys"]) == 2
        for rank in (0, 1):
            buffers = torch.load(tmp_path / name / f"checkpoints/step-000006/rank-{rank}.pt", weights_only=True)["buffers"]
            assert all(bool(b.isfinite().all()) for b in buffers.values())
    assert said.keys() == {"ends"} and said["ends"].startswith("step 3: the loss is nan (") and "another rank is gone" not in said["ends"]
    assert (tmp_path / "ends/checkpoints/latest").read_text() == "step-000002"


# ---- fp16
@pytest.fixture
def fp16(tiny: Table, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Table]:
    """fp16 on the CPU, where a recipe may not ask for it; the scale starts where a test wants it."""
    monkeypatch.setattr(build, "resolve_precision", lambda recipe, device: recipe)

    def recipe(first: float, stage: int = 0, **run: Any) -> Table:
        monkeypatch.setattr(loss_scale, "FIRST", first)
        return {**tiny, "run": {**tiny["run"], "precision": "fp16", **run}, "deepspeed": {"zero_optimization": {"stage": stage}}}

    return recipe


def test_a_scaled_run_learns_what_fp32_learns(fp16: Callable[..., Table], tmp_path: Path) -> None:
    plain = fp16(2.0**10)
    train(from_table({**plain, "run": {**plain["run"], "precision": "fp32"}}), tmp_path / "fp32")
    expected = rows(tmp_path / "fp32")
    for stage in (0, 2, 3):
        run = tmp_path / f"stage{stage}"
        train(from_table(fp16(2.0**10, stage, clip_gradients=0.5)), run)
        found = rows(run)
        assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected], rel=0.05)
        assert found[0]["grad_norm"] == pytest.approx(expected[0]["grad_norm"], rel=0.01) and found[0]["loss_scale"] == 2.0**10
        assert not any("overflow_steps" in row for row in found)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_an_overflow_leaves_the_step_out_and_halves_the_scale(
    fp16: Callable[..., Table], tmp_path: Path, stage: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loss_scale, "PATIENCE", 4)
    run, table = tmp_path / "run", fp16(2.0**22, stage, steps=16, checkpoint_every=1, keep=99)

    def interrupt(row: dict[str, Any]) -> None:
        if row["step"] == 9:
            raise KeyboardInterrupt

    result = train(from_table(table), run)
    found = rows(run)
    over = [row["step"] for row in found if row["grad_norm"] is None]
    assert over and result.bad_steps == 0 and "WARNING" not in capsys.readouterr().err
    assert all(same(run, step - 1, step, but="body.1.") for step in over if step > 1) and found[-1]["overflow_steps"] == len(over)
    for before, after in pairwise(found):
        ratio = after["loss_scale"] / before["loss_scale"]
        assert ratio == 0.5 if before["step"] in over else ratio in (1.0, 2.0)
    assert any(a["loss_scale"] > b["loss_scale"] for b, a in pairwise(found))  # PATIENCE steps without one
    with pytest.raises(KeyboardInterrupt):
        train(from_table(table), tmp_path / "cut", on_progress=interrupt)
    train(from_table(table), tmp_path / "cut", resume=True)
    assert [(row["loss"], row["loss_scale"]) for row in rows(tmp_path / "cut")] == [(row["loss"], row["loss_scale"]) for row in found]


def test_fp16_is_refused_on_a_processor(tiny: Table, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"^\[run\] precision: fp16 is for GPUs; .* Write bf16, or fp32\.$"):
        train(from_table({**tiny, "run": {**tiny["run"], "precision": "fp16"}}), tmp_path / "run")
