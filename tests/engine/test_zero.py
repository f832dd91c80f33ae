"""ZeRO 1, 2 and 3 train what a plain all-reduce loop trains, and a run may change its stage between two sittings."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import zero_stages
from processes import Processes

from twinview.engine.metrics import read_metrics
from twinview.engine.train import train
from twinview.engine.zero import placed_count
from twinview.recipe import from_table

STAGES = ("0", "1", "2", "3")
Table = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zero")


@pytest.fixture
def found(tiny: Table, folder: Path, processes: Processes) -> dict[str, Any]:
    """What two ranks found, once for all tests of this file: BatchNorm over ranks, dropout on each."""
    if not (folder / "found.json").is_file():
        (folder / "found.json").write_text(json.dumps(processes.call(zero_stages.on_two_ranks, tiny, folder)))
    answer: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return answer


@pytest.mark.parametrize("case", ["sgd", "adamw", "bf16"])
def test_every_stage_trains_the_plain_loop_to_the_last_bit(found: dict[str, Any], case: str) -> None:
    """Online branch, target, BatchNorm statistics and losses; bf16 is autocast over fp32 parameters, which are gathered as they are."""
    for stage in STAGES:
        assert found["plain"][case][stage][:2] == [0.0, 0.0], stage


def test_accumulation_and_clipping_differ_in_the_order_of_sums_alone(found: dict[str, Any]) -> None:
    for case in ("accumulated", "clipped", "fused"):
        for stage in STAGES:
            assert max(found["plain"][case][stage]) < 1e-6, (case, stage)


def test_stage_3_holds_shards_of_the_target_too(found: dict[str, Any]) -> None:
    assert [found["plain"]["adamw"][stage][3] for stage in STAGES[:3]] == [1.0, 1.0, 1.0]
    assert 0.5 <= found["plain"]["adamw"]["3"][3] < 0.55  # a little more than half: shards are padded


def test_the_optimizers_memory_goes_by_name_and_hooks_find_whole_networks(found: dict[str, Any]) -> None:
    """There and back; a rank may call the encoder as often as it likes; the training goes on behind it."""
    for stage in STAGES:
        names, _, well = found["plain"]["adamw"][stage][2:]
        assert names == ["exp_avg", "exp_avg_sq", "step"] and well, stage


def test_a_run_that_is_told_to_end_goes_on_under_another_stage(found: dict[str, Any]) -> None:
    """SIGTERM reached rank 0 alone; stage 2 offloads its optimizer."""
    whole = found["resumed"].pop("whole")
    assert len(whole) == 6 and set(found["resumed"]) == {"0-3", "3-1", "1-2-0"}
    for name, losses in found["resumed"].items():
        assert losses == whole, name


def test_evaluations_run_between_steps_of_stage_3_and_move_nothing(tiny: Table, tmp_path: Path) -> None:
    """The hooks before an epoch and after N steps, on one rank, where a whole parameter is its own shard."""
    table = {**tiny, "run": {**tiny["run"], "steps": 7}}
    train(from_table(table), tmp_path / "plain")
    watched = {**table, "evaluate": [{"use": "smallnet.watch", "path": str(tmp_path / "said"), "every": 2}]}
    linear = torch.nn.functional.linear
    train(from_table({**watched, "deepspeed": {"zero_optimization": {"stage": 3}}}), tmp_path / "run")
    assert torch.nn.functional.linear is linear, "DeepSpeed's own is left behind"
    one, other = ([row["loss"] for row in read_metrics(tmp_path / run / "metrics.jsonl")] for run in ("plain", "run"))
    assert one == other and len(one) == 7
    weights, whole = (torch.load(tmp_path / run / "checkpoints/step-000007/model.pt", weights_only=True) for run in ("run", "plain"))
    assert weights.keys() == whole.keys() and all(torch.equal(weights[k], whole[k]) for k in whole)
    assert (tmp_path / "said").read_text().count("evaluate at") == 4


def test_counts_of_fused_optimizers_lie_where_their_kernels_read_them() -> None:
    """torch's own load_state_dict does so; a device without memory stands for a GPU."""
    count = torch.tensor(3.0)
    assert placed_count(count, torch.device("meta"), True).device.type == "meta"
    plain = placed_count(count, torch.device("meta"), False)
    assert plain.device.type == "cpu" and plain is not count and float(plain) == 3
    assert placed_count(3, torch.device("meta"), True) == 3
