from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from twinview.engine import deepspeed_config as config
from twinview.engine.deepspeed_config import check_recipe, deepspeed_config, micro_batch
from twinview.errors import RecipeError
from twinview.recipe import from_table

Table = dict[str, Any]
REFUSED: list[tuple[Table, str]] = [
    ({"bf16": {"enabled": True}}, r"bf16\.enabled: casts the averaged target to bf16.*Write run\.precision = \"bf16\""),
    ({"fp16": {"enabled": True}}, r"fp16\.enabled: casts the averaged target to fp16"),
    ({"torch_autocast": {"enabled": True}}, r"torch_autocast: .* Write run\.precision"),
    ({"amp": {"enabled": True}}, r"amp: .* Write run\.precision"),
    ({"train_batch_size": 8}, r"train_batch_size: .* Write run\.batch_size"),
    ({"train_micro_batch_size_per_gpu": 8}, r"Write run\.batch_size \(global\) and run\.accumulation"),
    ({"gradient_accumulation_steps": 8}, r"Write run\.accumulation"),
    ({"gradient_clipping": 1.0}, r"Write run\.clip_gradients"),
    ({"optimizer": {"type": "Adam"}}, r"Write the \[optimizer\] table"),
    ({"scheduler": {"type": "WarmupLR"}}, r"Write the \[schedule\] table"),
    ({"zero_optimization": {"stage": "two"}}, r"zero_optimization\.stage: wants 0, 1, 2 or 3, not 'two'"),
    ({"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}, r"zero_optimization: nothing takes 'zero_quantized_weights'"),
    ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}}, r"offload_optimizer: wants \{ device = \"cpu\" \}"),
    ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, r"offload_optimizer: stage 0 offloads nothing\. Write stage = 1, 2 or 3\."),
    ({"zero_optimization": 2}, r"zero_optimization: wants a table, not 2"),
]


@pytest.mark.parametrize(("table", "said"), REFUSED, ids=lambda x: next(iter(x)) if isinstance(x, dict) else "")
def test_what_goes_wrong_is_refused_with_the_right_key(toy: Table, table: Table, said: str) -> None:
    with pytest.raises(RecipeError, match=rf"^\[deepspeed\] .*{said}") as e:
        check_recipe(from_table({**toy, "deepspeed": table}))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_lars_needs_whole_layers(toy: Table, stage: int) -> None:
    table = {**toy, "optimizer": {"use": "lars", "lr": 1.0}, "deepspeed": {"zero_optimization": {"stage": stage}}}
    with pytest.raises(RecipeError, match=rf"stage: {stage} shards .*, and LARS needs the norms of whole layers\. Write stage = 0\."):
        check_recipe(from_table(table))
    check_recipe(from_table({**table, "optimizer": {"use": "adamw", "lr": 1.0}}))


def test_a_best_score_needs_an_evaluation(toy: Table) -> None:
    table = {**toy, "run": {**toy["run"], "keep_best": "segment/miou"}}
    with pytest.raises(RecipeError, match=r"^\[run\] keep_best: the recipe scores nothing\."):
        check_recipe(from_table(table))
    check_recipe(from_table({**table, "evaluate": [{"use": "probes.segment"}]}))


def test_a_monitor_that_is_not_installed_is_named_with_its_extra(toy: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r'tensorboard is not installed\. Install it: pip install "twinview\[tensorboard\]"$'):
        check_recipe(from_table({**toy, "deepspeed": {"tensorboard": {"enabled": True}}}))
    check_recipe(from_table({**toy, "deepspeed": {"tensorboard": {"enabled": False}}}))


def test_a_batch_that_does_not_divide_is_refused_with_numbers_that_do(toy: Table) -> None:
    recipe = from_table({**toy, "run": {"steps": 1, "batch_size": 36, "accumulation": 4}})
    assert micro_batch(recipe, 1) == 9 and micro_batch(recipe, 3) == 3
    with pytest.raises(RecipeError, match=r"^\[run\] batch_size: 36 does not divide by 2 ranks x run\.accumulation 4\. Write 32 or 40\.$"):
        micro_batch(recipe, 2)
    with pytest.raises(RecipeError, match=r"Write 64\.$"):
        micro_batch(recipe, 16)


def test_deepspeed_is_told_everything_that_it_would_guess(toy: Table) -> None:
    given = {"wall_clock_breakdown": True, "tensorboard": {"enabled": True}, "csv_monitor": {"enabled": True, "job_name": "mine"}}
    recipe = from_table({**toy, "run": {"steps": 1, "batch_size": 32, "accumulation": 2, "clip_gradients": 0.5}, "deepspeed": given})
    made = deepspeed_config(recipe, 4, Path("run"))
    assert made["train_micro_batch_size_per_gpu"] == 4 and made["gradient_accumulation_steps"] == 2 and made["gradient_clipping"] == 0.5
    assert made["tensorboard"] == {"output_path": "run", "job_name": "tensorboard", "enabled": True}
    assert made["csv_monitor"]["job_name"] == "mine" and made["wall_clock_breakdown"] is True
    assert deepspeed_config(from_table(toy), 1, Path("run"))["gradient_clipping"] == 0.0  # unsaid, DeepSpeed clips to norm 1


def test_checking_imports_nothing_heavy() -> None:
    code = "import sys, twinview.engine.deepspeed_config; print([m for m in ('torch', 'deepspeed', 'torchvision', 'timm') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
