from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from twinview.engine import compiled
from twinview.engine.deepspeed_config import check_recipe
from twinview.engine.metrics import read_metrics
from twinview.engine.train import train
from twinview.errors import RecipeError
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


def test_what_cannot_be_compiled_is_refused(tiny: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {**tiny, "run": {**tiny["run"], "compile": True}}
    with pytest.raises(RecipeError, match=r"\[run\] compile: ZeRO stage 3 .* Write stage = 2"):
        train(from_table({**tiny, "deepspeed": {"zero_optimization": {"stage": 3}}}), tmp_path / "run")
    with pytest.raises(RecipeError, match=r"\[run\] compile: .* activation_checkpointing .* Write one of the two\.$"):
        check_recipe(from_table({**tiny, "run": {**tiny["run"], "activation_checkpointing": True}}))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RecipeError, match=r"\[run\] compile: .* there is no no-such-compiler"):
        train(from_table(tiny), tmp_path / "run")
