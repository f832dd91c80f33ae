"""What a recipe needs of each GPU and of the links between them under each ZeRO stage, and the stage to take.

Numbers of DeepSpeed's own buffers are what DeepSpeed 0.19 was seen to allocate and to send, `benchmarks/plan.py` compares; they are not its
documentation's.  fp32 weights, gradients and optimizer throughout, as twinview trains: low precision is autocast.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch

from twinview.assembly import assemble
from twinview.engine.deepspeed_config import check_recipe, micro_batch, stage
from twinview.engine.distributed.process import pick_device
from twinview.engine.setup import no_blocks
from twinview.errors import TwinviewError
from twinview.planning.memory import Footprint, Working, measure
from twinview.planning.sizes import ASSUMED_CLASSES, ASSUMED_IMAGES, check_sizes, with_numbers
from twinview.recipe import Recipe
from twinview.recipe.tables import LARS, AdamW

MARGIN = 0.1  # of a GPU's memory: context, kernels' workspace, what the allocator cannot use
STAGES = (0, 1, 2, 3)
MOST = 1 << 20  # images at once
ALL_REDUCED = 500_000_000  # elements that DeepSpeed averages at once under stage 0
DEFAULTS = {  # DeepSpeed's, in elements
    "reduce_bucket_size": 500_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_param_persistence_threshold": 100_000,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_max_reuse_distance": 1_000_000_000,
}


@attrs.frozen(kw_only=True)
class Machine:
    """What a run would have."""

    gpus: int
    memory: float  # bytes of each
    bandwidth: float = 0.0  # bytes/s that one of them sends; 0: unknown
    gpu: bool = True  # else processes on CPUs

    @property
    def usable(self) -> float:
        """Bytes of a GPU's memory that are planned with."""
        return self.memory * (1 - MARGIN)


@attrs.frozen(kw_only=True)
class Choice:
    """One stage."""

    stage: int
    memory: dict[str, int]  # item -> bytes of a GPU at the moment when most is needed
    host: int  # bytes of this rank on the host: an offloaded optimizer
    sent: dict[str, int]  # what for -> bytes that a GPU sends in a step
    largest: int  # images that a GPU can hold at once; 0: none
    fits: bool
    refused: str = ""  # why the recipe cannot take this stage

    @property
    def total(self) -> int:
        """Bytes of a GPU."""
        return sum(self.memory.values())


@attrs.frozen(kw_only=True)
class Plan:
    """What was found."""

    recipe: Recipe  # precision resolved
    machine: Machine
    footprint: Footprint
    micro_batch: int
    choices: tuple[Choice, ...]  # by stage
    take: int | None  # the stage; None: none fits
    accumulation: int | None  # to write, so that it fits; None: nothing does
    advice: tuple[str, ...]


def plan(recipe: Recipe, *, gpus: int = 1, memory: float = 0.0, bandwidth: float = 0.0) -> Plan:
    """Build the recipe's model on the CPU, take steps on a few images, and work out the rest.

    `memory`: GiB of a GPU, 0: of the one that is here; `bandwidth`: GB/s that a GPU sends.  Raises TwinviewError.
    """
    if gpus < 1:
        raise TwinviewError(f"gpus: wants a number above 0, not {gpus}.")
    for name, value in (("memory", memory), ("bandwidth", bandwidth)):
        if value < 0:
            raise TwinviewError(f"{name}: wants a number above 0, not {value:g}.")
    check_recipe(recipe)
    images = micro_batch(recipe, gpus)
    machine = Machine(gpus=gpus, memory=memory * 2**30 or _memory_here(), bandwidth=bandwidth * 1e9, gpu=recipe.run.device != "cpu")
    recipe = plain(recipe, machine.gpu)
    assembly = assemble(recipe)
    check_sizes(assembly)
    found = measure(recipe, assembly, gpu=machine.gpu)
    choices = tuple(choose(recipe, found, machine, s, images) for s in STAGES)
    rest = _taken(recipe, found, machine, choices, images)
    return Plan(recipe=recipe, machine=machine, footprint=found, micro_batch=images, choices=choices, **rest)


def plain(recipe: Recipe, gpu: bool) -> Recipe:
    """The recipe as it is measured: on the CPU, in the precision of a GPU that has bf16, mean and deviation as numbers."""
    low = recipe.run.precision in ("bf16", "fp16") or (recipe.run.precision == "auto" and gpu)  # fp16 takes as much as bf16
    made = attrs.evolve(recipe, run=attrs.evolve(recipe.run, device="cpu", precision="bf16" if low else "fp32"))
    return with_numbers(made)


def _memory_here() -> float:
    if pick_device("auto") == "cpu":
        raise TwinviewError("memory: this machine shows no GPU whose memory could be asked for. Write memory=80, in GiB.")
    return float(torch.cuda.get_device_properties(0).total_memory)


# ---- a stage
def choose(recipe: Recipe, found: Footprint, machine: Machine, at: int, images: int) -> Choice:
    """What stage `at` needs with micro-batches of `images`."""
    refused = f"{type(recipe.optimizer).__name__} needs the norms of whole layers" if at and isinstance(recipe.optimizer, LARS) else ""
    memory = memory_of(recipe, found, machine, at, images)
    return Choice(
        stage=at,
        memory=memory,
        host=host_of(recipe, found, machine, at),
        sent=sent_by(recipe, found, machine, at),
        largest=0 if refused else _largest(recipe, found, machine, at),
        fits=not refused and sum(memory.values()) <= machine.usable,
        refused=refused,
    )


def memory_of(recipe: Recipe, found: Footprint, machine: Machine, at: int, images: int) -> dict[str, int]:
    """Item -> bytes of a GPU under stage `at`, at the moment of a step when most is needed."""
    n, weights, gradients, target = machine.gpus, found.weights, found.gradients, 4 * sum(found.target)
    zero, offloaded = _zero(recipe), _offloaded(recipe, at)
    small = zero["stage3_param_persistence_threshold"]
    resident = {
        "weights, online": weights if at < 3 else weights // n + 4 * sum(p for p in found.online if p < small),
        "weights, target": target if at < 3 else target // n + 4 * sum(p for p in found.target if p < small),
        "buffers": found.buffers,
        "optimizer": 0 if offloaded else found.state // (n if at else 1),
        "second copy of weights": gradients // n if at and not offloaded else 0,
        "gradient shards": gradients // n if at == 3 and not offloaded else 0,
        "weights gathered": _gathered(found, zero, n) if at == 3 else 0,
    }
    bucket = 4 * zero["reduce_bucket_size"] * (2 if at in (1, 2) and zero["overlap_comm"] else 1) if at else 0
    working = working_of(recipe, found)
    moments = [_backward(recipe, found, at, phase.peak.at(images), phase.gradients, bucket, n) for phase in working.phases]
    moments += [{"activations": working.held.at(images), **moment} for moment in _update(recipe, found, machine, at, bucket)]
    most = max(moments, key=lambda moment: sum(moment.values()))
    return {item: size for item, size in (resident | most).items() if size}


def working_of(recipe: Recipe, found: Footprint) -> Working:
    """With or without activation checkpointing, as the recipe says.  Raises RecipeError where no block is named."""
    if not recipe.run.activation_checkpointing:
        return found.plain
    if found.recomputed is None:
        raise no_blocks(recipe)
    return found.recomputed


def _backward(recipe: Recipe, found: Footprint, at: int, activations: int, arrived: int, bucket: int, n: int) -> dict[str, int]:
    """A moment of the forward or backward pass.  Stages 2 and 3 move gradients into the bucket as they arrive."""
    if at < 2:
        gradients = found.gradients if recipe.run.accumulation > 1 else arrived
    else:
        gradients = found.gradients // n if recipe.run.accumulation > 1 and at == 2 else 0
    reducing = 2 * min(bucket, found.gradients) if at == 3 and n > 1 else 0
    return {"activations": activations, "gradients": gradients, "gradient buckets": bucket + reducing}


def _update(recipe: Recipe, found: Footprint, machine: Machine, at: int, bucket: int) -> list[dict[str, int]]:
    """The moments of the update: gradients are laid end to end, then the optimizer works, with intermediates of its own."""
    n, gradients = machine.gpus, found.gradients
    if at == 0:
        flat = min(gradients, 4 * ALL_REDUCED) if n > 1 else 0
        own = gradients if machine.gpu else 8 * max(found.trained, default=0)  # all parameters at once, or one at a time
        return [{"gradients": gradients + max(flat, own)}]
    whole = gradients if at == 1 else gradients // n
    own = 3 if isinstance(recipe.optimizer, AdamW) and not machine.gpu else 2  # on a CPU one intermediate more
    kept = bucket if at == 3 else 0
    return [
        {"gradients": whole + 2 * gradients // n, "gradient buckets": bucket if n > 1 else kept},
        {"gradients": (1 + own) * gradients // n, "gradient buckets": kept},
    ]


def _gathered(found: Footprint, zero: Mapping[str, int], n: int) -> int:
    """Bytes of whole parameters under stage 3.  What is used again within max_reuse_distance, or lies in the prefetched bucket, is not let go."""
    if n == 1:
        return 0  # the shard is the parameter
    online, both = sum(found.online), sum(found.online) + sum(found.target)
    kept = max(zero["stage3_max_reuse_distance"], zero["stage3_prefetch_bucket_size"], max(found.online))
    return 4 * (min(both, kept, max(zero["stage3_max_live_parameters"], max(found.online))) + min(zero["stage3_prefetch_bucket_size"], online))


def host_of(recipe: Recipe, found: Footprint, machine: Machine, at: int) -> int:
    """Bytes on the host for a rank: optimizer, second copy of its weights, gradients, and the weights on their way back."""
    return (found.state + 3 * found.gradients) // machine.gpus if _offloaded(recipe, at) else 0


def sent_by(recipe: Recipe, found: Footprint, machine: Machine, at: int) -> dict[str, int]:
    """What for -> bytes that a GPU sends in a step, by ring algorithms.  What losses gather themselves is not in it."""
    n, steps = machine.gpus, recipe.run.accumulation
    if n == 1:
        return {}
    share, gradients, zero = (n - 1) / n, found.gradients, _zero(recipe)
    sent: dict[str, float] = {"gradients": share * gradients * (1 if at == 3 else 2) * (steps if at > 1 else 1)}
    if at in (1, 2):
        sent["weights"] = share * gradients
    if at == 3:
        kept = sum(found.online) <= max(zero["stage3_max_reuse_distance"], zero["stage3_prefetch_bucket_size"])  # until the backward pass
        small = zero["stage3_param_persistence_threshold"]
        online, target = (sum(p for p in branch if p >= small) for branch in (found.online, found.target))
        sent["weights"] = share * 4 * (online * (1 if kept else 2) + target) * steps
    if recipe.run.sync_batchnorm and found.norms:
        sent["BatchNorm"] = share * 4 * (2 * n + 4) * found.norms * steps  # a gather of two numbers forward, a sum of two backward
    return {what: round(size) for what, size in sent.items()}


def _zero(recipe: Recipe) -> dict[str, int]:
    table = recipe.deepspeed.get("zero_optimization", {})
    return {"overlap_comm": int(bool(table.get("overlap_comm"))), **{key: int(table.get(key, default)) for key, default in DEFAULTS.items()}}


def _offloaded(recipe: Recipe, at: int) -> bool:
    return at > 0 and recipe.deepspeed.get("zero_optimization", {}).get("offload_optimizer", {}).get("device") == "cpu"


def _largest(recipe: Recipe, found: Footprint, machine: Machine, at: int) -> int:
    """The most images that fit, by halving: bytes grow with them."""
    low, high = 0, MOST
    while high - low > 1:
        middle = (low + high) // 2
        fits = sum(memory_of(recipe, found, machine, at, middle).values()) <= machine.usable
        low, high = (middle, high) if fits else (low, middle)
    return low


# ---- the stage to take
def _taken(recipe: Recipe, found: Footprint, machine: Machine, choices: tuple[Choice, ...], images: int) -> dict[str, Any]:
    """The lowest stage that fits as the recipe stands, else with more accumulation; and what else is worth saying."""
    advice: list[str] = []
    open_to = [c for c in choices if not c.refused]
    take = next((c for c in open_to if c.fits), None)
    accumulation: int | None = recipe.run.accumulation
    if take is None:
        take = next((c for c in open_to if c.largest), None)
        accumulation = _accumulation(recipe, machine.gpus, take.largest) if take else None
        take = take if accumulation else None
    if take is not None and take.fits:
        least = machine.gpus > 1 and sum(take.sent.values()) == min(sum(c.sent.values()) for c in open_to)
        advice.append(f"stage {take.stage}: the lowest that fits" + (", and what sends least" if least else ""))
    elif take is not None:
        advice.append(f"stage {take.stage} with run.accumulation = {accumulation}; BatchNorm and losses then see micro-batches of "
                      f"{recipe.run.batch_size // machine.gpus // (accumulation or 1)}")
    else:
        advice.append("no stage holds one image: a GPU with more memory, smaller views or a smaller network")
    advice += _savings(recipe, found, images)
    if stage(recipe) != (take.stage if take else stage(recipe)):
        advice.append(f"the recipe says stage {stage(recipe)}")
    if take and take.stage and 4 * _zero(recipe)["reduce_bucket_size"] > 4 * found.gradients:
        size = max(*found.trained, min(found.gradients // 4, 50_000_000))
        advice.append(f"reduce_bucket_size = {size} frees memory: DeepSpeed makes room for as many gradients, there or not")
    return {"take": take.stage if take else None, "accumulation": accumulation if take else None, "advice": tuple(advice)}


def _accumulation(recipe: Recipe, gpus: int, largest: int) -> int | None:
    whole = recipe.run.batch_size // gpus
    return next((a for a in range(1, whole + 1) if recipe.run.batch_size % (gpus * a) == 0 and whole // a <= largest), None)


def _savings(recipe: Recipe, found: Footprint, images: int) -> list[str]:
    if found.recomputed is None:
        return []
    plain_bytes, again = (_peak(working, images) for working in (found.plain, found.recomputed))
    if recipe.run.activation_checkpointing:
        return [f"run.activation_checkpointing saves {_gib(plain_bytes - again)} of {_gib(plain_bytes)} of activations"]
    return [f"run.activation_checkpointing = true would leave {_gib(again)} of {_gib(plain_bytes)} of activations, for one more forward pass"]


def _peak(working: Working, images: int) -> int:
    return max(phase.peak.at(images) for phase in working.phases)


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def assumed(recipe: Recipe) -> str:
    """What the plan takes for granted."""
    labels = f", {ASSUMED_CLASSES} classes" if any("labels" in t.needs for t in assemble(recipe).traits.values()) else ""
    return f"no data opened: {ASSUMED_IMAGES:,} images{labels}; random weights; losses' own communication left out"
