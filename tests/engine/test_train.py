from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from twinview.engine.metrics import read_metrics
from twinview.engine.setup import _seed, build
from twinview.engine.train import train
from twinview.errors import CheckpointError, Preempted, RecipeError
from twinview.recipe import from_table

Table = dict[str, Any]


def with_run(table: Table, **run: Any) -> Table:
    return {**table, "run": {**table["run"], **run}}


def losses(run: Path) -> list[float]:
    rows = list(read_metrics(run / "metrics.jsonl"))
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]


def test_a_run_leaves_what_a_reader_needs(tiny: Table, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    result = train(from_table(tiny), tmp_path / "run", command="twinview train tiny", on_progress=seen.append)
    assert result.step == 12 and result.checkpoint == tmp_path / "run/checkpoints/step-000012"
    rows = list(read_metrics(tmp_path / "run/metrics.jsonl"))
    assert rows == seen and result.loss == rows[-1]["loss"]
    wanted = {"step", "epoch", "loss", "loss/pooled", "lr", "momentum", "images_per_second", "data_wait", "grad_norm"}
    wanted |= {"spread/online", "spread/target"}
    assert all(wanted <= row.keys() and "erank/online" not in row for row in rows)  # of four images the effective rank says nothing
    assert [row["epoch"] for row in rows] == [0] * 5 + [1] * 5 + [2] * 2
    assert rows[-1]["loss"] < rows[0]["loss"] and 0 <= rows[3]["data_wait"] < 1
    assert sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir()) == ["latest", "step-000008", "step-000012"]
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["data"]["images"] == 20 and manifest["methods"]["smallnet"] == "twinview_smallnet 1.0"
    assert manifest["sittings"][0]["command"] == "twinview train tiny" and "deepspeed" in manifest["sittings"][0]["versions"]


def test_the_loop_is_plain_training(tiny: Table, tmp_path: Path) -> None:
    """The same numbers as a loop written out by hand, to the last bit: no clipping, no scaling, nothing else of DeepSpeed's."""
    from twinview.assembly import assemble
    from twinview.data.dataset.open import open_shards
    from twinview.data.loading.loader import training_batches
    from twinview.model import Siamese
    from twinview.values import Progress

    table = {**tiny, "optimizer": {"use": "sgd", "lr": 0.3, "momentum": 0.9}, "schedule": {"use": "constant"}}
    table["target"] = {"momentum": 0.9, "schedule": "constant"}
    recipe = from_table(table)
    train(recipe, tmp_path / "run")

    assembly, shards = assemble(recipe), open_shards(recipe.data.shards)
    encoder = assembly.encoder()
    model = Siamese(assembly, assembly.dims(encoder, len(shards)), encoder)
    optimizer = torch.optim.SGD(model.online.parameters(), lr=0.3, momentum=0.9)
    _seed(0, 0)
    expected = []
    for step, batch in enumerate(training_batches(recipe, model.dims, shards, rank=0, world=1, steps=12)):
        loss = model(batch, Progress(step, 12, step // 5, step / 12)).loss
        expected.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        online = dict(model.online.named_parameters())
        for name, still in model.branches.target.named_parameters():
            still.data.lerp_(online[name].data, 0.1)
    assert losses(tmp_path / "run") == expected


@pytest.mark.parametrize(
    "change",
    [{}, {"run": {"accumulation": 2}, "data": {"workers": 2}}, {"run": {"precision": "bf16"}, "optimizer": {"fused": True}}],
    ids=["plain", "accumulation-and-workers", "bf16-fused"],
)
def test_a_resumed_run_has_the_losses_of_one_that_was_never_stopped(tiny: Table, tmp_path: Path, change: Table) -> None:
    table = {**tiny, **{k: {**tiny[k], **v} for k, v in change.items()}}
    train(from_table(table), tmp_path / "whole")
    stop = 7  # in the middle of the second epoch, three steps behind a checkpoint

    def interrupt(row: dict[str, Any]) -> None:
        if row["step"] == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(from_table(table), tmp_path / "cut", on_progress=interrupt)
    assert len(losses(tmp_path / "cut")) == stop
    torch.manual_seed(99)  # nothing of the process may matter
    train(from_table(table), tmp_path / "cut", resume=True)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    one, other = (torch.load(tmp_path / run / "checkpoints/step-000012/model.pt", weights_only=True) for run in ("whole", "cut"))
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    assert [s["step"] for s in json.loads((tmp_path / "cut/manifest.json").read_text())["sittings"]] == [0, 4]


def test_accumulation_changes_the_memory_and_not_the_step(tiny: Table, tmp_path: Path) -> None:
    """Without BatchNorm and dropout, four micro-batches of one image are one batch of four."""
    table = {**tiny, "encoder": {"use": "toy.encoder"}, "optimizer": {"use": "sgd", "lr": 0.1}}
    train(from_table(table), tmp_path / "one")
    train(from_table(with_run(table, accumulation=4)), tmp_path / "four")
    assert losses(tmp_path / "four") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


def test_clipping_bounds_the_step_and_nothing_clips_by_itself(tiny: Table, tmp_path: Path) -> None:
    """With plain SGD at rate 1 a step is as long as the gradient; what is logged is its norm before clipping."""
    table = {**tiny, "optimizer": {"use": "sgd", "lr": 1.0, "momentum": 0.0}, "schedule": {"use": "constant"}, "target": {"momentum": 0.0}}
    start = build(from_table(table)).model.state_dict()
    logged, moved = {}, {}
    for clip in (0.0, 1e-3):
        run = tmp_path / f"clip{clip}"
        train(from_table(with_run(table, steps=1, clip_gradients=clip)), run)
        logged[clip] = next(read_metrics(run / "metrics.jsonl"))["grad_norm"]
        weights = torch.load(run / "checkpoints/step-000001/model.pt", weights_only=True)
        moved[clip] = torch.stack([(v - start[k]).norm() for k, v in weights.items() if "running" not in k and "num_" not in k]).norm().item()
    assert logged[0.0] == logged[1e-3] > 1e-2
    assert moved[0.0] == pytest.approx(logged[0.0], rel=1e-4) and moved[1e-3] == pytest.approx(1e-3, rel=1e-2)


def test_hooks_run_in_their_places_and_an_evaluation_moves_nothing(tiny: Table, tmp_path: Path) -> None:
    train(from_table(with_run(tiny, steps=6)), tmp_path / "plain")
    said = tmp_path / "said"
    watched = {**tiny, "evaluate": [{"use": "smallnet.watch", "path": str(said), "every": 2}]}
    result = train(from_table(with_run(watched, steps=6)), tmp_path / "run")
    assert losses(tmp_path / "run") == losses(tmp_path / "plain")
    expected = []
    for step in range(6):
        expected += [f"epoch {step // 5} before step {step}"] * (step % 5 == 0) + [f"after step {step}"]
        expected += [f"evaluate at {step + 1} on 20"] * (step % 2 == 1)
    assert said.read_text().splitlines() == expected
    rows = list(read_metrics(tmp_path / "run/metrics.jsonl"))
    assert ["score/noise" in row for row in rows] == [False, True] * 3
    assert result.scores == {"noise": rows[-1]["score/noise"]}




def test_an_existing_run_is_neither_overwritten_nor_continued_with_another_recipe(tiny: Table, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(CheckpointError, match=r"holds no run to go on with"):
        train(from_table(tiny), run, resume=True)
    train(from_table(with_run(tiny, steps=2)), run, resume="auto")
    with pytest.raises(CheckpointError, match=r"run: holds a run already\. Write resume=True to go on with it, or run=DIR"):
        train(from_table(tiny), run)
    with pytest.raises(CheckpointError, match=r"run\.steps 2 -> 12, run\.batch_size 4 -> 2"):
        train(from_table(with_run(tiny, batch_size=2)), run, resume=True)
    done = train(from_table({**with_run(tiny, steps=2, log_every=5), "data": {**tiny["data"], "workers": 1}}), run, resume=True)
    assert done.step == 2 and len(losses(run)) == 2


def test_a_run_of_hours_ends_by_the_clock_and_goes_on_by_it(tiny: Table, tmp_path: Path) -> None:
    run = {k: v for k, v in tiny["run"].items() if k != "steps"}
    table = {**tiny, "run": {**run, "hours": 1.0 / 3600, "log_every": 1000}, "schedule": {"warmup_share": 0.5}}
    result = train(from_table(table), tmp_path / "run")
    assert 1 <= result.seconds < 20 and result.step > 1
    rows = list(read_metrics(tmp_path / "run/metrics.jsonl"))
    assert [row["step"] for row in rows] == [1, result.step]
    again = train(from_table(table), tmp_path / "run", resume=True)
    assert again.step == result.step


def test_before_forward_moves_the_target_first(tiny: Table, tmp_path: Path) -> None:
    """After one step the target still is the start: what there was to follow had not moved yet."""
    for update, moved in (("after_step", True), ("before_forward", False)):
        table = {**with_run(tiny, steps=1), "schedule": {"use": "constant"}, "target": {"momentum": 0.5, "update": update}}
        train(from_table(table), tmp_path / update)
        weights = torch.load(tmp_path / update / "checkpoints/step-000001/model.pt", weights_only=True)
        name = "encoder.body.4.weight"
        gap = (weights[f"online.{name}"] - weights[f"target.{name}"]).abs().max().item()
        assert gap == pytest.approx(0.005 if moved else 0.01, rel=0.15)  # AdamW's first step is the rate


def test_the_best_checkpoint_is_kept_beside_the_newest(tiny: Table, tmp_path: Path) -> None:
    """The best score falls on a step without a checkpoint of its own; a resume knows it still."""
    table = {**tiny, "data": {**tiny["data"], "workers": 1}, "evaluate": [{"use": "smallnet.peak", "every": 3}]}
    kept = with_run(table, steps=12, checkpoint_every=5, keep=1, keep_best="peak")

    def end(row: dict[str, Any]) -> None:
        if row["step"] == 8:  # a scheduler tells every process, the data worker too
            for pid in (*(child.pid for child in multiprocessing.active_children()), os.getpid()):
                os.kill(pid or 0, signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match=r"run: told to end, and saved at step 8\. Go on with resume=True\.$"):
        train(from_table(kept), tmp_path / "run", on_progress=end)
    assert signal.getsignal(signal.SIGTERM) is before
    train(from_table(kept), tmp_path / "run", resume="auto")
    checkpoints = tmp_path / "run/checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir()) == ["best", "latest", "step-000006", "step-000012"]
    assert json.loads((checkpoints / "best").read_text()) == {"checkpoint": "step-000006", "step": 6, "score": 0.0, "name": "peak"}
    train(from_table(with_run(tiny, steps=12)), tmp_path / "plain")
    assert losses(tmp_path / "run") == losses(tmp_path / "plain")
    with pytest.raises(RecipeError, match=r"^\[run\] keep_best: no evaluation gives 'peek'\. Did you mean 'peak'\?"):
        train(from_table(with_run(table, steps=2, keep_best="peek")), tmp_path / "other")
