"""What used to pass without a word, or with the wrong one: weights, scores, keys of a resume, folders of strangers, packages that end the process."""
from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

from twinview import api, progress
from twinview.cli import main
from twinview.cli.table import signs
from twinview.engine.checkpoint import find_checkpoint
from twinview.engine.collapse import below_start
from twinview.engine.metrics import read_metrics
from twinview.engine.resumable import may_change
from twinview.engine.train import train
from twinview.errors import CheckpointError, DataError, RecipeError, TwinviewError
from twinview.faults import explained, full, is_full
from twinview.recipe import from_table, read

Table = dict[str, Any]
SCORED = """
from twinview.hooks import hookimpl, part
from twinview.values import Traits


@part
class Errors:
    @hookimpl
    def traits(self):
        return Traits(scores=frozenset({"scored/error_x"}))

    @hookimpl
    def evaluate(self, progress):
        return {"scored/error_x": (float("nan"), float("nan"), 3.0, 1.0, 2.0)[progress.step]}


@hookimpl
def parts():
    return {"errors": Errors}
"""


def with_run(table: Table, **run: Any) -> Table:
    return {**table, "run": {**table["run"], **run}}


def test_weights_of_a_run_are_read_by_their_checksum(tiny: Table, tmp_path: Path) -> None:
    train(from_table(with_run(tiny, steps=2)), tmp_path / "a")
    path = find_checkpoint(tmp_path / "a/checkpoints").path / "model.pt"
    data = bytearray(path.read_bytes())
    for i in range(len(data) // 3, len(data) // 3 + 40):
        data[i] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"is damaged: model\.pt is not as it was written"):
        api.load(tmp_path / "a")
    from twinview.ops.weights import load_weights

    for source in (tmp_path / "a", path.parent):
        with pytest.raises(CheckpointError, match=r"is damaged: model\.pt is not as it was written"):
            load_weights(torch.nn.Linear(2, 2), str(source))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    from twinview.ops.weights import load_weights

    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    for name in ("0.weight", "1.running_var"):
        state = {k: v.clone() for k, v in module.state_dict().items()}
        state[name].flatten()[0] = value
        torch.save(state, tmp_path / "odd.pth")
        with pytest.raises(CheckpointError, match=rf"holds weights that are not finite: {name}\. Name weights of a training that went well"):
            load_weights(module, str(tmp_path / "odd.pth"))


def test_torchvisions_weights_do_not_belong_to_timm() -> None:
    from twinview_timm.create import refuse_torchvision

    for name in ("IMAGENET1K_V2", "DEFAULT"):
        with pytest.raises(RecipeError, match=rf"'{name}' are torchvision's\. Write use = \"torchvision\.resnet\" with them"):
            refuse_torchvision(name)
    refuse_torchvision("timm:resnet18")


def test_a_weight_that_no_loss_reaches_decays_alone_as_it_does_on_several_ranks(tiny: Table, install: Callable[..., None], tmp_path: Path) -> None:
    """DeepSpeed gives it a gradient of 0 where it sums gradients over ranks or shards them; alone it had none, and stayed."""
    install("spare", """
        import torch
        from torch import nn
        from twinview.hooks import hookimpl, part
        from twinview.values import Head
        @part
        class Spare:
            @hookimpl
            def heads(self, dims): return {"spare": Head(nn.Linear(2, 2), "online_only")}
            @hookimpl
            def after_step(self, branches): branches.online.of(self, "spare")
        @hookimpl
        def parts(): return {"spare": Spare}
    """)
    ends = []
    for stage in (0, 1):
        table = with_run({**tiny, "extra": [{"use": "spare.spare"}], "deepspeed": {"zero_optimization": {"stage": stage}}}, steps=3)
        train(from_table(table), tmp_path / str(stage))
        weights = find_checkpoint(tmp_path / str(stage) / "checkpoints").load("model.pt")
        ends.append(next(v for k, v in weights.items() if k.endswith("spare/spare.weight") or k.endswith("spare.weight")))
    assert torch.equal(*ends)


def test_a_single_image_at_once_is_no_collapse(tiny: Table, tmp_path: Path) -> None:
    """Its spread is 0 by definition; what is logged is that of the whole step, however it is split."""
    run = {"steps": 4, "batch_size": 4, "log_every": 1}
    table = {**tiny, "encoder": {**tiny["encoder"], "dropout": 0.0}, "optimizer": {"use": "sgd", "lr": 0.0}}
    results = [train(from_table(with_run(table, **run, accumulation=a)), tmp_path / str(a)) for a in (2, 4)]
    assert [result.collapsed for result in results] == [[], []]
    rows = [list(read_metrics(result.folder / "metrics.jsonl")) for result in results]
    assert all(row["spread/online"] > 0.02 and "erank/online" not in row for each in rows for row in each)


def test_scores_below_the_random_start_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    scores = {"segment/miou": 3.0, "segment/random/miou": 5.0, "segment/pixels/miou": 9.0, "segment/accuracy": 8.0, "segment/random/accuracy": 7.0}
    assert below_start(scores) == ["segment miou is 3.000, and 5.000 at the random start"]
    assert below_start({"cluster/empty": 1.0, "cluster/random/empty": 2.0}) == []
    assert below_start({"sphere/alignment": 0.3, "sphere/random/alignment": 0.6}) == []  # a loss
    assert below_start({"sphere/alignment": 0.6, "sphere/random/alignment": 0.3}) == ["sphere alignment is 0.600, and 0.300 at the random start"]
    said = signs(["knn: x"], below_start(scores))
    assert said[0] == "COLLAPSED   knn: x" and said[1].startswith("BELOW START segment miou is 3.000") and "Train longer (run.steps" in said[2]
    assert signs([], []) == []


def test_a_run_goes_on_with_its_batch_split_otherwise(tiny: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = with_run(tiny, steps=4, checkpoint_every=2)
    with pytest.raises(KeyboardInterrupt):
        train(from_table(first), tmp_path / "run", on_progress=stop_at(3))
    other = with_run({**tiny, "deepspeed": {"steps_per_print": 5, "wall_clock_breakdown": False}}, steps=4, checkpoint_every=2, accumulation=2, device="auto")
    other["run"]["precision"] = "fp32"
    assert train(from_table(other), tmp_path / "run", resume=True).step == 4
    assert "was written by 1 rank and goes on with 1 rank x 2 micro-batches: not to the last bit." in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"run\.batch_size 4 -> 8"):
        train(from_table(with_run(other, batch_size=8)), tmp_path / "run", resume=True)
    assert may_change("data.source.3.shards") and may_change("evaluate.0.val") and not may_change("data.source.3.weight") and not may_change("run.seed")


def stop_at(step: int) -> Callable[[Table], None]:
    def stop(row: Table) -> None:
        if row["step"] == step:
            raise KeyboardInterrupt

    return stop


def test_a_run_s_own_recipe_runs_no_program(tiny: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(from_table(with_run(tiny, steps=1)), tmp_path / "a")
    path, mark = tmp_path / "a/recipe.toml", tmp_path / "RAN"
    text = path.read_text().replace(f'shards = "{tiny["data"]["shards"]}"', f'shards = "pipe:touch {mark}"\nallow_pipes = ["touch"]', 1)
    path.write_text("\n".join(line for line in text.splitlines() if line != "allow_pipes = []"))
    assert 'allow_pipes = ["touch"]' in path.read_text()
    for words in (["show", "views"], ["evaluate", "knn"]):
        assert main([*words, str(tmp_path / "a"), *(["val=x", "size=[8,8]"] if words[0] == "evaluate" else [])]) == 2
        said = capsys.readouterr().err
        assert not mark.exists() and ("runs a program. Allow it in a recipe of your own" in said or "there is no such shard" in said)
    main(["show", "views", str(tmp_path / "a"), 'data.allow_pipes=["touch"]'])  # the user's own word
    assert mark.exists()


def test_a_package_that_ends_the_process_is_one_line(install: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    install("quits", "raise SystemExit('not today')")
    assert main(["parts", "quits", "--installed"]) == 0  # imported in a process of its own
    said = capsys.readouterr().out
    assert "twinview_quits" in said and "cannot be loaded: SystemExit: not today" in said
    assert "twinview_quits" not in sys.modules
    assert main(["parts", "quits"]) == 2
    assert "cannot be loaded: SystemExit: not today" in capsys.readouterr().err
    assert main(["parts"]) == 0 and "multisiam.iou_crops" in capsys.readouterr().out


def test_evaluations_that_the_user_never_wrote_are_named(photo_shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["multisiam/camvid", f"data.shards={photo_shards}", "run.device=cpu", "encoder.use=timm.encoder", "encoder.name=test_resnet", "run.batch_size=4"]
    words += ["views.size=32", "data.workers=0", "run.steps=1", "evaluate.0.val=nowhere"]
    for more in (["--dry-run"], ["--run", str(tmp_path / "run")]):
        assert main(["train", *words, *more]) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("twinview: [[evaluate]] probes.") and "nowhere" in said and "evaluate.0.val=PATHS" in said and "evaluate=[]" in said


def test_keep_best_is_checked_before_anything_else(toy: Table, photo_shards: str) -> None:
    table = {**toy, "evaluate": [{"use": "probes.knn", "val": photo_shards, "size": [8, 8], "train": photo_shards, "baselines": ["random"]}]}
    with pytest.raises(RecipeError, match=r"\[run\] keep_best: no evaluation gives 'knn/top'\. Did you mean 'knn/top1'\?"):
        api.check({**table, "run": {**toy["run"], "keep_best": "knn/top"}})
    api.check({**table, "run": {**toy["run"], "keep_best": "knn/random/top1"}})
    with pytest.raises(RecipeError, match=r"\[run\] keep_best: of 'cluster/empty' neither more nor less is better"):
        api.check({**table, "run": {**toy["run"], "keep_best": "cluster/empty"}})


def test_the_best_of_an_error_is_the_least_and_no_number_is_none(toy: Table, photo_shards: str, tmp_path: Path, install: Callable[..., None]) -> None:
    """Scores of an evaluation that says them by step: nothing, 3, 1, 2."""
    install("scored", SCORED)
    table = {**toy, "data": {"shards": photo_shards, "workers": 0}, "evaluate": [{"use": "scored.errors", "every": 1}]}
    train(from_table({**table, "run": {**toy["run"], "steps": 4, "keep_best": "scored/error_x", "device": "cpu"}}), tmp_path / "run")
    said = json.loads((tmp_path / "run" / "checkpoints" / "best").read_text())
    assert (said["step"], said["score"]) == (3, 1.0)


def test_an_evaluation_names_a_loss_that_is_there(toy: Table, photo_shards: str) -> None:
    named = {"use": "probes.robustness", "val": photo_shards, "loss": "toy.poled", "size": [8, 8], "sets": {"same": photo_shards}}
    with pytest.raises(RecipeError, match=r"probes.robustness.loss: no \[\[loss\]\] is called 'toy.poled'. Did you mean 'toy.pooled'\?"):
        api.check({**toy, "evaluate": [named]})


def test_the_set_without_labels_is_the_one_that_is_named(toy: Table, photo_shards: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And a warm-up without an end is said before the first step."""
    table = {**with_run(toy, device="cpu"), "data": {"shards": photo_shards, "workers": 0}, "schedule": {"warmup_steps": 100}}
    cells = {"use": "probes.segment", "val": "scenes:val", "size": [32, 32], "levels": ["cells"]}
    with pytest.raises(DataError, match=r"has no label map .* train is empty, and so it reads the run's own shards\. Write evaluate\.0\.train=PATHS, or evaluate=\[\]"):
        train(from_table({**table, "evaluate": [cells]}), tmp_path / "a")
    assert [line for line in caplog.messages if "warmup_steps = 100: the run has 4 steps" in line]
    with pytest.raises(DataError, match=r"has no label map .*; it has jpg\. Write evaluate\.0\.val=PATHS, or evaluate=\[\]"):
        train(from_table({**table, "evaluate": [{**cells, "train": "scenes:train", "val": photo_shards}]}), tmp_path / "b")
    with pytest.raises(RecipeError, match=r"probes.knn: needs labels, and the shards of \[data\] hold no class numbers .*\. Write evaluate\.0\.train=PATHS, or evaluate=\[\]"):
        train(from_table({**table, "evaluate": [{"use": "probes.knn", "val": photo_shards, "size": [8, 8]}]}), tmp_path / "c")


def test_faults_of_the_system_are_one_line() -> None:
    assert "there is no memory left" in str(explained(MemoryError()))
    assert "there is no memory left" in str(explained(RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried")))
    assert "there is no memory left" in str(explained(OSError(12, "Cannot allocate memory")))
    assert is_full(OSError(28, "No space left on device")) and is_full(RuntimeError("[enforce fail at inline_container.cc:778] . unexpected pos 1 vs 2"))
    assert str(full(OSError(28, "x"), "run/checkpoints")).startswith("run/checkpoints: the disk is full, or the quota is used up.")
    assert "has not answered for" in str(explained(RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 8000ms for recv operation to complete")))
    assert explained(RuntimeError("shapes do not match")) is None and explained(ValueError("x")) is None


def test_a_disk_that_fills_up_while_saving_keeps_the_checkpoint_before(tiny: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from twinview.engine import checkpoint

    write = checkpoint._write

    def out_of_room(path: Path, content: Any) -> int:
        if "step-000004" in str(path) and path.name == "model.pt":
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(checkpoint, "_write", out_of_room)
    with pytest.raises(CheckpointError, match=rf"{tmp_path}/run/checkpoints: the disk is full, or the quota is used up\. Make room"):
        train(from_table(with_run(tiny, steps=6, checkpoint_every=2)), tmp_path / "run")
    assert find_checkpoint(tmp_path / "run/checkpoints").step == 2 and not list((tmp_path / "run/checkpoints").glob(".*.tmp"))
    monkeypatch.undo()


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", "two"), ("RANK", "-1"), ("TWINVIEW_TIMEOUT", "soon"), ("RANK", "3")])
def test_variables_that_are_no_number(tiny: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    from twinview.engine.distributed.process import join
    from twinview.machine import timeout

    for other in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    with pytest.raises(TwinviewError, match=rf"^{name}(: is '{value}' in the environment| is 3 and WORLD_SIZE 1)"):
        timeout() if name == "TWINVIEW_TIMEOUT" else join("cpu")


def test_silent_work_is_spoken_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.1)
    monkeypatch.delenv("RANK", raising=False)
    with progress.waiting("evaluate probes.knn"):
        time.sleep(0.5)
    said = capsys.readouterr().err.splitlines()
    assert said and all(line == "evaluate probes.knn: 0 s" for line in said) and len(said) <= 4
    with progress.waiting("quick"):
        pass
    assert list(progress.progress([], 0, "index", "shards")) == [] and capsys.readouterr().err == ""
    bar = progress.Bar(10, 0, 0.0, "2 evaluations")
    bar._began -= 5
    bar.tell({"step": 5, "epoch": 0, "loss": 0.1, "images_per_second": 9.0}, 0.5)
    assert capsys.readouterr().err.strip().endswith("s left, then 2 evaluations")


def test_messages_of_the_functions_speak_of_arguments(tiny: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(with_run(tiny, steps=1)))
    api.train(tmp_path / "tiny.toml", run=tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"holds a run already\. Write resume=True to go on with it, or run=DIR for another folder"):
        api.train(tmp_path / "tiny.toml", run=tmp_path / "run")
    assert main(["train", str(tmp_path / "tiny.toml"), "--run", str(tmp_path / "run")]) == 2
    assert "holds a run already. Write --resume to go on with it, or --run DIR for another folder." in capsys.readouterr().err
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])["step"] == 1 and read(tmp_path / "tiny.toml").run.steps == 1
    with pytest.raises(DataError, match=r"^workers: wants a number above 0"):
        from twinview.data.prepare.check import check_shards

        check_shards(["x"], workers=0)
