"""Which keys of a recipe may change when a run goes on.  The table of docs/large-runs.md is made of this one."""
from __future__ import annotations

import re
from collections.abc import Mapping

from twinview.engine.deepspeed_config import MONITORS

MAY_CHANGE: Mapping[str, str] = {  # key, or table -> what it does to a run that goes on
    "data.shards": "where the samples lie; they have to be the same ones, as their checksum says",
    "data.source.shards": "where the samples lie; they have to be the same ones, as their checksum says",
    "data.workers": "the speed; of a stream only between epochs",
    "data.bad_samples": "how many samples may fail",
    "data.cache": "where fetched shards are kept",
    "data.cache_gb": "how much of them is kept",
    "data.allow_pipes": "which programs `pipe:` may run",
    "run.accumulation": "how the batch is split, with other ranks or without: not to the last bit, and BatchNorm sees other parts of it",
    "run.device": "where it is computed: not to the last bit",
    "run.log_every": "which steps have a row",
    "run.checkpoint_every": "which steps have a checkpoint",
    "run.keep": "how many checkpoints stay",
    "run.keep_best": "which checkpoint stays besides",
    "run.bad_steps": "how many steps may be left out",
    "run.any_versions": "whether the packages of its methods may have other versions than the run began with",
    "run.activation_checkpointing": "memory and time",
    "evaluate": "what is scored, and when",
    "deepspeed.zero_optimization": "memory; checkpoints are whole, whatever stage wrote them",
    **{f"deepspeed.{monitor}": "where rows are sent" for monitor in MONITORS},
    **dict.fromkeys(
        ("deepspeed.steps_per_print", "deepspeed.dump_state", "deepspeed.comms_logger", "deepspeed.wall_clock_breakdown"), "what DeepSpeed prints"
    ),
    **dict.fromkeys(("deepspeed.memory_breakdown", "deepspeed.flops_profiler"), "what DeepSpeed measures and prints"),
}


def may_change(key: str) -> bool:
    """Whether a leaf of a resolved recipe (`data.source.0.shards`) may be another one when the run goes on."""
    plain = re.sub(r"\.\d+(?=\.)", "", key)  # data.source.0.shards -> data.source.shards
    return any(plain == allowed or plain.startswith(f"{allowed}.") for allowed in MAY_CHANGE)


def table() -> str:
    """The keys as a Markdown table, those that do the same in one row."""
    rows: dict[str, list[str]] = {}
    for key, what in MAY_CHANGE.items():
        rows.setdefault(what, []).append(f"`{key}`")
    return "\n".join(["| key | it changes |", "|---|---|", *(f"| {', '.join(keys)} | {what} |" for what, keys in rows.items())])
