"""What DeepSpeed is told.  A recipe's `[deepspeed]` is handed on; the core fills in the rest and refuses what is known to go wrong."""
from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from twinview.engine.mlflow_log import check_table
from twinview.errors import RecipeError, closest
from twinview.recipe import Recipe
from twinview.recipe.tables import LARS

ELSEWHERE = {  # keys of DeepSpeed that a recipe says in its own words
    "train_batch_size": "run.batch_size (global)",
    "train_micro_batch_size_per_gpu": "run.batch_size (global) and run.accumulation",
    "gradient_accumulation_steps": "run.accumulation",
    "gradient_clipping": "run.clip_gradients",
    "optimizer": "the [optimizer] table",
    "scheduler": "the [schedule] table",
    "amp": 'run.precision = "bf16"',
    "torch_autocast": 'run.precision = "bf16"',
}
LOW_PRECISION = {  # DeepSpeed casts the target's parameters too; a bf16 average at momentum 0.996 leaves nine weights in ten where they were
    "bf16": 'casts the averaged target to bf16, which then hardly moves. Write run.precision = "bf16": autocast over fp32 parameters.',
    "fp16": 'casts the averaged target to fp16, which then loses most of its moves. Write run.precision = "bf16": autocast over fp32 parameters.',
}
PASSED_ON = (  # tables and keys of DeepSpeed that are handed on as they are
    *("zero_optimization", "steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "flops_profiler", "comms_logger"),
    *("communication_data_type", "prescale_gradients", "gradient_predivide_factor", "sparse_gradients", "disable_allgather"),
)
ZERO = (  # keys of zero_optimization that are handed on: those under which the target's shards and the checkpoints are known to be right
    *("stage", "offload_optimizer", "overlap_comm", "contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "allgather_partitions"),
    *("allgather_bucket_size", "round_robin_gradients", "sub_group_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"),
    *("stage3_max_live_parameters", "stage3_max_reuse_distance"),
)
MONITORS = {  # table of DeepSpeed -> the module it needs, how to get it
    "tensorboard": ("tensorboard", 'pip install "twinview[tensorboard]"'),
    "wandb": ("wandb", 'pip install "twinview[wandb]"'),
    "mlflow": ("mlflow", 'pip install "twinview[mlflow]"'),  # not DeepSpeed's: `engine/mlflow_log.py`
    "comet": ("comet_ml", "pip install comet-ml"),
    "csv_monitor": ("csv", ""),
}


def check_recipe(recipe: Recipe) -> None:
    """Everything about a recipe that the engine can refuse before data or device is touched; imports nothing heavy.  Raises RecipeError."""
    check_deepspeed(recipe)
    if recipe.run.keep_best and not recipe.evaluate:
        raise RecipeError("[run] keep_best: the recipe scores nothing. Add an [[evaluate]] table, or leave keep_best out.")
    if recipe.run.compile and stage(recipe) == 3:
        raise RecipeError("[run] compile: ZeRO stage 3 gathers parameters layer by layer, inside what would be compiled. Write stage = 2.")
    if recipe.run.clip_gradients and recipe.optimizer.clip:
        raise RecipeError("[optimizer] clip: run.clip_gradients clips the same gradients, all together. Write one of the two.")
    if recipe.schedule.grain == "epoch" and recipe.run.hours is not None:
        raise RecipeError('[schedule] grain: a run of run.hours does not know how many epochs it takes. Write grain = "step".')
    for key in ("warmup_steps", "warmup_epochs"):
        if recipe.run.hours is not None and getattr(recipe.schedule, key) is not None:
            raise RecipeError(f"[schedule] {key}: a run of run.hours does not know its steps. Write warmup_share.")


def check_deepspeed(recipe: Recipe) -> None:
    """Refuse what DeepSpeed is known to do wrong, or what the recipe says elsewhere.  Raises RecipeError."""
    table = recipe.deepspeed
    for key, own in ELSEWHERE.items():
        if key in table:
            raise RecipeError(f"[deepspeed] {key}: the recipe says this in its own words. Write {own}.")
    for key in table:
        if key not in (*LOW_PRECISION, *MONITORS, *PASSED_ON):
            raise RecipeError(f"[deepspeed]: nothing takes {key!r}.{closest(key, [*MONITORS, *PASSED_ON])}")
    for key in (*LOW_PRECISION, *MONITORS, "zero_optimization"):
        if not isinstance(table.get(key, {}), Mapping):
            raise RecipeError(f"[deepspeed] {key}: wants a table, not {table[key]!r}.")
    for key, why in LOW_PRECISION.items():
        if table.get(key, {}).get("enabled"):
            raise RecipeError(f"[deepspeed] {key}.enabled: {why}")
    _check_zero(recipe)
    check_table(table.get("mlflow", {}))
    for key, (module, install) in MONITORS.items():
        if table.get(key, {}).get("enabled") and find_spec(module) is None:
            raise RecipeError(f"[deepspeed] {key}.enabled: {module} is not installed. Install it: {install}")


def stage(recipe: Recipe) -> int:
    """The ZeRO stage: 0 averages gradients; 1, 2 and 3 also shard the optimizer state, the gradients, the parameters."""
    return int(recipe.deepspeed.get("zero_optimization", {}).get("stage", 0))


def _check_zero(recipe: Recipe) -> None:
    place, table = "[deepspeed] zero_optimization", recipe.deepspeed.get("zero_optimization", {})
    given = table.get("stage", 0)
    if given not in (0, 1, 2, 3) or isinstance(given, bool):
        raise RecipeError(f"{place}.stage: wants 0, 1, 2 or 3, not {given!r}.")
    for key in table:
        if key not in ZERO:
            raise RecipeError(f"{place}: nothing takes {key!r}.{closest(key, ZERO)}")
    if given and isinstance(recipe.optimizer, LARS):
        raise RecipeError(f"{place}.stage: {given} shards what lies end to end, and LARS needs the norms of whole layers. Write stage = 0.")
    offload = table.get("offload_optimizer")
    if offload is not None:
        if not isinstance(offload, Mapping) or offload.get("device", "none") not in ("cpu", "none"):
            raise RecipeError(f'{place}.offload_optimizer: wants {{ device = "cpu" }}, not {offload!r}.')
        if offload.get("device") == "cpu" and not given:
            raise RecipeError(f"{place}.offload_optimizer: stage 0 offloads nothing. Write stage = 1, 2 or 3.")


def micro_batch(recipe: Recipe, world: int) -> int:
    """Images that a rank holds at once.  Raises RecipeError where the global batch does not divide."""
    run = recipe.run
    if run.batch_size % (world * run.accumulation):
        parts = f"{world} rank{'s' * (world > 1)} x run.accumulation {run.accumulation}"
        below = run.batch_size // (world * run.accumulation) * world * run.accumulation
        instead = f"{below} or {below + world * run.accumulation}" if below else str(world * run.accumulation)
        raise RecipeError(f"[run] batch_size: {run.batch_size} does not divide by {parts}. Write {instead}.")
    return run.batch_size // (world * run.accumulation)


def deepspeed_config(recipe: Recipe, world: int, folder: Path) -> dict[str, Any]:
    """The configuration for `deepspeed.initialize`.  Monitors that name no place write into `folder`.

    Clipping is always written: DeepSpeed clips to norm 1 where nothing is said.  Precision stays out: autocast is in the model's forward.
    """
    filled: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch(recipe, world),
        "gradient_accumulation_steps": recipe.run.accumulation,
        "gradient_clipping": recipe.run.clip_gradients,
        "steps_per_print": recipe.deepspeed.get("steps_per_print", 10**9),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # it would be compiled at the first start
        "zero_optimization": {"stage": 0, **recipe.deepspeed.get("zero_optimization", {})},
    }
    for key in ("tensorboard", "csv_monitor"):
        if recipe.deepspeed.get(key, {}).get("enabled"):
            filled[key] = {"output_path": str(folder), "job_name": key, **recipe.deepspeed[key]}
    if "wandb" in recipe.deepspeed:
        filled["wandb"] = {"project": "twinview", **recipe.deepspeed["wandb"]}
    return {key: value for key, value in (recipe.deepspeed | filled).items() if key != "mlflow"}
