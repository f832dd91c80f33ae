from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from twinview.assembly import assemble
from twinview.engine import compiled
from twinview.engine.metrics import read_metrics
from twinview.engine.train import train
from twinview.errors import RecipeError
from twinview.planning.sizes import check_sizes
from twinview.recipe import from_table

Table = dict[str, Any]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run / "metrics.jsonl")]


def test_compiled_steps_are_the_same_steps(tiny: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both encoders are compiled, for the size of the views alone, though an evaluation reads images of another; no weight has another name."""
    graphs: list[list[tuple[int, ...]]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append([tuple(x.shape) for x in inputs if x.ndim == 4 and x.shape[-1] > 8])  # the images, not the kernels
        return graph.forward

    watch = {"use": "smallnet.watch", "path": str(tmp_path / "log"), "every": 4}
    tiny = {**tiny, "target": {"momentum": 0.9}, "evaluate": [watch]}
    train(from_table(tiny), tmp_path / "plain")
    monkeypatch.setattr(compiled, "BACKEND", backend)
    result = train(from_table({**tiny, "run": {**tiny["run"], "compile": True}}), tmp_path / "compiled")
    assert losses(tmp_path / "compiled") == losses(tmp_path / "plain")
    assert graphs == [[(4, 3, 32, 32)]] * 2  # one with gradient, one without
    other = torch.load(tmp_path / "plain/checkpoints/step-000012/model.pt", weights_only=True)
    assert torch.load(result.checkpoint / "model.pt", weights_only=True).keys() == other.keys()


VIT = {"use": "timm.encoder", "name": "vit_tiny_patch16_224", "patch": 8, "width": 16, "depth": 2, "heads": 2}


def test_blocks_that_compute_twice_are_compiled_in_one_graph(tiny: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Steps are those of the same backend without them, and the run says what was compiled."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    images = {"views": {"use": "byol.crops", "size": 32}, "loss": [{"use": "byol.image", "hidden": 16, "channels": 8}], "encoder": VIT, "evaluate": []}
    said = {}
    for name, again in (("once", False), ("twice", True)):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        train(from_table({**tiny, **images, "run": {**tiny["run"], "steps": 3, "compile": True, "activation_checkpointing": again}}), tmp_path / name)
        said[name] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("run.compile: ")]
    assert losses(tmp_path / "once") == losses(tmp_path / "twice")
    assert said["once"] == said["twice"] == ["run.compile: 2 graphs, no breaks"]  # with gradient, and the target's without


def test_blocks_whose_statistics_would_move_twice_are_refused(tiny: Table) -> None:
    run = {**tiny["run"], "compile": True, "activation_checkpointing": True}
    table = {**tiny, "encoder": {"use": "torchvision.resnet", "name": "resnet18", "width": 8}, "loss": [{"use": "byol.image"}], "run": run}
    with pytest.raises(RecipeError, match=r"^\[run\] compile: compiled blocks .* BatchNorm statistics twice\. Leave activation_checkpointing out"):
        check_sizes(assemble(from_table({**table, "views": {"use": "byol.crops", "size": 32}})))


def test_what_cannot_be_compiled_is_refused(tiny: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {**tiny, "run": {**tiny["run"], "compile": True}}
    with pytest.raises(RecipeError, match=r"\[run\] compile: ZeRO stage 3 .* Write stage = 2"):
        train(from_table({**tiny, "deepspeed": {"zero_optimization": {"stage": 3}}}), tmp_path / "run")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RecipeError, match=r"\[run\] compile: .* there is no no-such-compiler"):
        train(from_table(tiny), tmp_path / "run")
