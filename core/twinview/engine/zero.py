"""Weights and optimizer state between ZeRO's pieces and whole tensors by name.

Stages 1 and 2 lay the parameters of a group end to end and give each rank a piece of that row; stage 3 gives each rank a piece of every parameter.
"""
from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from twinview.engine.optimizer import load_optimizer_state, optimizer_state
from twinview.errors import PluginError

Named = dict[str, nn.Parameter]
Memory = dict[str, dict[str, Any]]  # parameter name -> what the optimizer remembers of it: tensors of its shape, counts


# ---- weights
def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """`model.state_dict()` with every parameter whole, on the CPU; empty on ranks other than 0.  Every rank calls it."""
    first, found = dist.get_rank() == 0, dict[str, Tensor]()
    parameters = dict(model.named_parameters())
    for name, value in model.state_dict().items():
        parameter = parameters.get(name, value)
        if hasattr(parameter, "ds_tensor"):  # one at a time: the device holds no second model
            pieces = _on_first(parameter.ds_tensor.data, value.device)
            if pieces is not None:
                found[name] = pieces.view(-1)[: _numel(parameter)].view(_shape(parameter))
        elif first:
            found[name] = value.detach().cpu()
    return found


@contextmanager
def gathered_weights(engine: Any, trainable: Named | None = None) -> Iterator[None]:
    """Under stage 3, every parameter whole on every rank, and modules free of DeepSpeed's hooks: ranks may call them as often as they like.

    Elsewhere nothing happens.  What is written to parameters meanwhile is lost, unless `trainable` says what the optimizer moves.
    """
    if not sharded(engine.module):
        yield
        return
    from deepspeed.runtime.zero import GatheredParameters

    offload, parameters = engine.optimizer.parameter_offload, list(engine.module.parameters())
    with GatheredParameters(parameters):
        for parameter in parameters:
            parameter.ds_active_sub_modules.clear()
        for hook in [*offload.forward_hooks, *offload.backward_hooks]:
            hook.remove()
        offload.forward_hooks, offload.backward_hooks = [], []
        try:
            yield
            if trainable is not None:
                _keep_writes(engine, trainable)
        finally:
            offload._register_deepspeed_module(offload.module)


@contextmanager
def plain_linear() -> Iterator[None]:
    """Put `torch.nn.functional.linear` back afterwards: DeepSpeed replaces it for the whole process under stage 3, and leaves it so."""
    before = torch.nn.functional.linear
    try:
        yield
    finally:
        torch.nn.functional.linear = before


@contextmanager
def writable_weights(engine: Any, trainable: Named, *, whole: bool = True) -> Iterator[None]:
    """What is written to parameters inside stays, under every stage; every rank writes the same.

    Stages 1-3 train copies of the parameters, of which each rank has a piece: what was written to the parameters is copied to them at the end.
    `whole`: under stage 3 gather the parameters, which else lie in shards that nothing should write to.
    """
    if not engine.zero_optimization() or (sharded(engine.module) and not whole):
        yield
    elif sharded(engine.module):
        with gathered_weights(engine, trainable):
            yield
    else:
        yield
        _keep_writes(engine, trainable)


@torch.no_grad()
def _keep_writes(engine: Any, trainable: Named) -> None:
    """Copy the whole parameters to the shards of stage 3, and to the pieces that the optimizer moves."""
    rank = dist.get_rank()
    for parameter in engine.module.parameters():
        if hasattr(parameter, "ds_tensor"):
            n = parameter.ds_tensor.numel()
            mine = parameter.data.reshape(-1)[rank * n : (rank + 1) * n]
            parameter.ds_tensor.data.view(-1)[: len(mine)].copy_(mine)
    for group in groups_of(engine.optimizer, trainable):
        group.refresh()


def sharded(model: nn.Module) -> bool:
    """Whether ZeRO-3 has cut the parameters into shards."""
    return any(hasattr(p, "ds_tensor") for p in model.parameters())


# ---- the optimizer's memory
class Group(NamedTuple):
    """Parameters that lie in one flat tensor on each rank."""

    flat: Tensor  # [n]: this rank's piece; the optimizer's key
    places: list[tuple[str, Any, int]]  # name, parameter, offset
    across: bool  # stage 3: offsets count inside every rank's piece; else in the row of all pieces

    def mine(self) -> list[slice]:
        """Where each parameter lies in this rank's piece; empty where other ranks have all of it."""
        rank, n = dist.get_rank(), len(self.flat)
        if self.across:
            return [slice(offset, offset + min(max(_numel(p) - rank * p.partition_numel(), 0), p.partition_numel())) for _, p, offset in self.places]
        inside = [(offset - rank * n, offset - rank * n + _numel(p)) for _, p, offset in self.places]
        return [slice(min(max(first, 0), n), min(max(last, 0), n)) for first, last in inside]

    def refresh(self) -> None:
        """Copy this rank's piece anew from the parameters, which are whole."""
        rank, n = dist.get_rank(), len(self.flat)
        for (_, p, offset), at in zip(self.places, self.mine(), strict=True):
            first = rank * p.partition_numel() if self.across else max(rank * n - offset, 0)
            self.flat.data[at].copy_(p.data.reshape(-1)[first : first + at.stop - at.start])

    def split(self, pieces: Tensor) -> dict[str, Tensor]:
        """[ranks, n] -> each parameter's values, in its shape."""
        return {name: self._at(pieces, p, offset).reshape(-1)[: _numel(p)].view(_shape(p)) for name, p, offset in self.places}

    def piece(self, values: Mapping[str, Tensor]) -> Tensor:
        """The inverse of `split`, of which this rank keeps its own [n]; zero where there is no value."""
        world, rank = dist.get_world_size(), dist.get_rank()
        pieces = torch.zeros(world, len(self.flat), dtype=self.flat.dtype)
        for name, p, offset in self.places:
            if name in values:
                place = self._at(pieces, p, offset)
                padded = torch.zeros(place.numel(), dtype=pieces.dtype)
                padded[: _numel(p)] = values[name].reshape(-1)
                place.copy_(padded.view_as(place))
        return pieces[rank].to(self.flat.device)

    def _at(self, pieces: Tensor, parameter: Any, offset: int) -> Tensor:
        if self.across:
            return pieces[:, offset : offset + parameter.partition_numel()]
        return pieces.view(-1)[offset : offset + parameter.numel()]


def whole_optimizer_state(engine: Any, optimizer: Optimizer, trainable: Named) -> Memory:
    """What the optimizer remembers (momenta, moments, counts) by parameter name, on the CPU; empty on ranks other than 0.  Every rank calls it."""
    if not engine.zero_optimization():
        return optimizer_state(optimizer, trainable) if _first() else {}
    found: Memory = {name: {} for name in trainable}
    for group in groups_of(engine.optimizer, trainable):
        for key, value in optimizer.state.get(group.flat, {}).items():
            if _is_count(value):
                for name, _, _ in group.places:
                    found[name][key] = copy.deepcopy(value)  # a count for each: shared, it would be raised once for every parameter
                continue
            pieces = _on_first(value, engine.device)
            if pieces is not None:
                for name, whole in group.split(pieces).items():
                    found[name][key] = whole.clone()
    return found if _first() else {}


def load_whole_optimizer_state(engine: Any, optimizer: Optimizer, trainable: Named, saved: Memory) -> None:
    """The inverse of `whole_optimizer_state`, whatever stage and number of ranks it was saved from.

    Raises KeyError on a name that nothing has, ValueError on another shape.
    """
    for name, values in saved.items():
        shape = _shape(trainable[name])
        for key, value in values.items():
            if not _is_count(value) and value.shape != shape:
                raise ValueError(f"{key} of {name!r} is {tuple(value.shape)}, not {tuple(shape)}")
    if not engine.zero_optimization():
        load_optimizer_state(optimizer, trainable, saved)
        return
    fused = any(group.get("fused") for group in optimizer.param_groups)
    for group in groups_of(engine.optimizer, trainable):
        state: dict[str, Any] = {}
        for key in dict.fromkeys(key for name, _, _ in group.places for key in saved.get(name, {})):
            values = {name: saved[name][key] for name, _, _ in group.places if key in saved.get(name, {})}
            some = next(iter(values.values()))
            state[key] = placed_count(some, group.flat.device, fused) if _is_count(some) else group.piece(values)
        optimizer.state[group.flat] = state


def placed_count(count: Any, device: torch.device, fused: bool) -> Any:
    """A copy of an optimizer's count, where its kernels read it: fused ones on the device of the parameters, others on the CPU."""
    return count.to(device, copy=True) if fused and isinstance(count, Tensor) else copy.deepcopy(count)


def forget(engine: Any, optimizer: Optimizer, trainable: Named, names: Collection[str]) -> None:
    """What the optimizer remembers of these parameters becomes what it was before its first step.  Every rank calls it.

    Raises PluginError where a count is shared with others: under stages 1-3 the parameters of a group are counted together.
    """
    if not engine.zero_optimization():
        for name in names:
            _zero(optimizer.state.get(trainable[name], {}).values())
        return
    for group in groups_of(engine.optimizer, trainable):
        chosen = [(name in names, at) for (name, _, _), at in zip(group.places, group.mine(), strict=True)]
        state = optimizer.state.get(group.flat, {})
        if all(inside for inside, _ in chosen):
            _zero(state.values())
        elif any(inside for inside, _ in chosen):
            name = next(name for name, _, _ in group.places if name in names)
            if any(_is_count(value) for value in state.values()):
                why = "has its optimizer steps counted together with other parameters, under this ZeRO stage. A part resets heads of its own"
                raise PluginError(f"branches.reset: {name!r} {why}; or write stage = 0.")
            _zero(value[at] for value in state.values() for inside, at in chosen if inside)


def _zero(values: Iterable[Any]) -> None:
    for value in values:
        value.zero_()


def _is_count(value: Any) -> bool:
    return not isinstance(value, Tensor) or value.ndim == 0


def groups_of(zero: Any, trainable: Named) -> Iterator[Group]:
    """As DeepSpeed's optimizer of stage 1, 2 or 3 has laid them out."""
    names = {id(p): name for name, p in trainable.items()}
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        for flat, parameters in zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True):
            places, offset = [], 0
            for p in parameters:
                places.append((names[id(p)], p, offset))
                offset += p.partition_numel()
            yield Group(flat, places, across=True)
    else:
        rows = zip(zero.single_partition_of_fp32_groups, zero.round_robin_bit16_groups, zero.round_robin_bit16_offsets, strict=True)
        for flat, parameters, offsets in rows:
            yield Group(flat, [(names[id(p)], p, o) for p, o in zip(parameters, offsets, strict=True)], across=False)


# ---- small things
def _first() -> bool:
    return dist.get_rank() == 0


def _on_first(piece: Tensor, device: torch.device) -> Tensor | None:
    """[n] on each rank -> [ranks, n] on rank 0's CPU, None elsewhere.  `device`: where ranks can send from."""
    piece, world = piece.to(device).contiguous(), dist.get_world_size()
    if world == 1:
        return piece.cpu().clone()[None]
    pieces = [torch.empty_like(piece) for _ in range(world)] if _first() else None
    dist.gather(piece, pieces, dst=0)
    return torch.stack([p.cpu() for p in pieces]) if pieces is not None else None


def _numel(parameter: Any) -> int:
    return int(getattr(parameter, "ds_numel", None) or parameter.numel())


def _shape(parameter: Any) -> torch.Size:
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))
