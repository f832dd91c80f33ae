from __future__ import annotations

import os

import pytest

from twinview.engine.distributed.process import adopt_slurm, first_host, quiet_deepspeed, telling_faults
from twinview.errors import RankLost

SRUN = {
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_ID": "412345",
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_TASKS_PER_NODE": "4(x2)",
    "SLURM_JOB_NODELIST": "gpu[007-008]",
}
WORDS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """srun's variables alone; whatever a test adds goes when it ends."""
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k not in WORDS} | SRUN)
    return monkeypatch


def test_srun_says_who_this_rank_is_and_where_to_meet(slurm: pytest.MonkeyPatch) -> None:
    adopt_slurm()
    assert [os.environ[w] for w in WORDS] == ["5", "8", "1", "4", "gpu007", "32345"]
    os.environ["SLURM_PROCID"] = "6"
    adopt_slurm()
    assert os.environ["RANK"] == "5"  # said once


@pytest.mark.parametrize("change", [{"RANK": "0"}, {"SLURM_NTASKS": "1"}, {"SLURM_STEP_ID": None}], ids=["torchrun", "one-task", "batch-script"])
def test_without_srun_or_under_another_launcher_slurm_is_left_alone(slurm: pytest.MonkeyPatch, change: dict[str, str | None]) -> None:
    for name, value in change.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    adopt_slurm()
    assert "WORLD_SIZE" not in os.environ


def test_the_place_to_meet_may_be_given(slurm: pytest.MonkeyPatch) -> None:
    os.environ.update(MASTER_ADDR="10.0.0.1", MASTER_PORT="1234")
    adopt_slurm()
    assert os.environ["MASTER_ADDR"] == "10.0.0.1" and os.environ["MASTER_PORT"] == "1234"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[007-010,12],login", "gpu007"), ("a", "a"), ("a,b[1-2]", "a"), ("n[3,5-9]", "n3"), ("rack1-n[08-09]-ib,x", "rack1-n08-ib"), ("n[1-2]", "n1")],
)
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_a_lost_rank_is_told_and_other_errors_are_not_touched() -> None:
    with pytest.raises(RankLost, match=r"another rank is gone, .* last checkpoint with resume=True\.$"), telling_faults():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:2")
    with pytest.raises(RuntimeError, match="shapes"), telling_faults():
        raise RuntimeError("shapes do not match")


def test_no_version_of_deepspeed_finds_a_kernel_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.17 indexes the table of kernels, later ones ask it."""
    import deepspeed

    monkeypatch.setattr(deepspeed.ops, "__compatible_ops__", {}, raising=False)
    quiet_deepspeed("cpu")
    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False
