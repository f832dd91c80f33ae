"""Checks that take a minute: several ranks, ZeRO stages, accumulation, a new process, torch.compile, another library."""
from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, nn

from twinview.testing.driver import on_ranks, states_of
from twinview.testing.failure import Failure
from twinview.testing.loss_checks import SAME, broken_off, changed, compared, drops
from twinview.testing.rehearsal import Rehearsal, new_folder, rows_of
from twinview.testing.subject import SIDE
from twinview.testing.trial import Trial

CLOSE = 2e-3  # of a loss, where the same is computed in another way
LATER = 1e-2  # of losses of later steps: sums over ranks and shards are taken in another order, and steps make more of it (densecl.dense: 3e-3)
FIRST, LEAST = 2e-5, 0.1  # of a term before any weight has moved, or of `LEAST` where it is smaller: rounding makes 1e-6 in twinview's own losses
STATE = 1e-5  # of the largest number of a state's tensor
RANKS = 2
GATHER = "about the same: gather over ranks with twinview.ops (gather_rows, Queue), and draw with step.uniform"
WHOLE = "the same, for no weight has moved: take what is of a whole batch (a variance, a mean, negatives) over gather_rows(x)"
EVERYWHERE = "the same on all, for checkpoints keep rank 0's: move it by what all ranks saw, gather_rows(x) or twinview.ops.ranks.summed(x)"
STAGES = "about the same, or a refusal in one line by check(): write to parameters in before_epoch and after_step alone"


def several_ranks(trial: Trial) -> Iterator[Failure]:
    """Two ranks with half of each batch have the losses of one rank and one state; so they have under every ZeRO stage; accumulation trains."""
    _, rows = trial.run
    kinds: dict[str, dict[str, Any]] = {"ranks": {}, **{f"stage {n}": {"deepspeed": {"zero_optimization": {"stage": n}}} for n in (1, 2, 3)}}
    kinds["accumulation"] = {"run": {"accumulation": 2}}
    table = trial.subject.table(checkpoint_every=1000)
    jobs: list[dict[str, Any]] = []
    for name, more in kinds.items():
        merged = {**table, **more, "run": {**table["run"], **more.get("run", {})}}
        jobs.append({"name": name, "recipe": merged, "folder": str(new_folder(name.replace(" ", "-"))), "state": name == "ranks"})
    try:
        refused = on_ranks(RANKS, jobs, new_folder("jobs"))
    except RuntimeError as e:
        yield Failure(trial.subject.name, "loss", f"on {RANKS} ranks: {e}", "a run that ends")
        return
    folders = {str(job["name"]): job["folder"] for job in jobs}
    for name in kinds:
        if refused[name]:
            if name in ("ranks", "accumulation"):
                yield Failure(
                    trial.subject.name, "loss", f"{name} refused: {refused[name]}", "a part that trains on any number of ranks and micro-batches",
                )
        elif name == "accumulation":
            if any(row["loss"] != row["loss"] for row in rows_of(Path(folders[name]))):
                yield Failure(trial.subject.name, "loss", "a loss that is not finite with run.accumulation = 2", "finite numbers")
        elif name == "ranks":
            found = list(_as_one_rank(trial, rows, Path(folders[name])))
            yield from found
            if found:
                return  # the others would say the same again
        else:
            yield from compared(trial, rows, rows_of(Path(folders[name])), f"on {RANKS} ranks under ZeRO {name}", LATER, STAGES)


def _as_one_rank(trial: Trial, rows: list[dict[str, float]], folder: Path) -> Iterator[Failure]:
    """The first loss of several ranks is that of one to rounding, for the weights are the same; all hold the same state; later losses are close."""
    others, terms = rows_of(folder), {name.removeprefix("loss/"): value for name, value in rows[0].items() if name.startswith("loss/")}
    tolerance, least = (CLOSE, 1.0) if drops(trial.still) else (FIRST, LEAST)  # each rank drops others
    if change := changed(terms, {name: others[0].get(f"loss/{name}", float("nan")) for name in terms}, tolerance, least):
        yield Failure(trial.subject.name, "loss", f"{change} at step 1 on {RANKS} ranks", WHOLE)
        return
    mine, *more = states_of(folder, RANKS)
    for rank, state in enumerate(more, 1):
        if name := next((name for name, value in mine.items() if not _alike(value, state[name])), ""):
            own = name.removeprefix(trial.subject.name.replace(".", "/") + "/")
            yield Failure(trial.subject.name, "state", f"another {own} on rank {rank} than on rank 0", EVERYWHERE)
            return
    yield from compared(trial, rows, others, f"on {RANKS} ranks", LATER, GATHER)


def _alike(one: Tensor, other: Tensor) -> bool:
    if not one.is_floating_point() or not one.numel():
        return torch.equal(one, other)
    return torch.allclose(one, other, rtol=0, atol=STATE * float(one.abs().max()))


def new_process(trial: Trial) -> Iterator[Failure]:
    """A run goes on in a new process as if it had not been broken off, to the last bit."""
    _, rows = trial.run
    again = broken_off(trial)
    try:
        said = on_ranks(1, [{"name": "again", "recipe": trial.subject.table(), "folder": str(again), "resume": True}], new_folder("jobs"))
    except RuntimeError as e:
        yield Failure(trial.subject.name, "state", f"in a new process: {e}", "a run that goes on")
        return
    if said["again"]:
        yield Failure(trial.subject.name, "state", f"in a new process: {said['again']}", "a run that goes on")
    else:
        yield from compared(trial, rows, rows_of(again), "in a new process", 1e-6, SAME)


def compiles(trial: Trial) -> Iterator[Failure]:
    """torch.compile takes the encoder, and its losses are the same; graphs are captured, code is not generated."""
    plain = [float(step.values["loss"]) for step in Rehearsal(trial.subject, steps=2).steps()]
    with mock.patch("twinview.engine.compiled.BACKEND", "eager"):
        try:
            found = [float(step.values["loss"]) for step in Rehearsal(trial.subject, steps=2, compile=True).steps()]
        except Exception as e:
            got = f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
            yield Failure(
                trial.subject.name, "make_encoder", f"under torch.compile {got}",
                "a module that can be compiled, or torch.compiler.disable where it cannot",
            )
            return
    if any(abs(one - other) > CLOSE * max(1, abs(one)) for one, other in zip(plain, found)):
        yield Failure(trial.subject.name, "make_encoder", f"losses {found} under torch.compile, not {plain}", "the same")


def loads_elsewhere(trial: Trial) -> Iterator[Failure]:
    """What the encoder publishes is taken by the library that it names."""
    encoder = trial.subject.assemble().encoder(random=True)
    if not hasattr(encoder, "published"):
        return
    try:
        found = cast(Any, encoder).published((SIDE, SIDE))
    except ValueError:
        return
    if found is None:
        return  # of this network its library has none
    module: nn.Module = eval(found.load, {found.library: importlib.import_module(found.library)})
    try:
        module.load_state_dict(found.tensors, strict=found.strict)
    except RuntimeError as e:
        yield Failure(trial.subject.name, "published", f"tensors that {found.load} refuses: {' '.join(str(e).split())[:200]}", "its names and shapes")
