"""Checks of what a part does in a step: gradients, state, the order of a batch, low precision."""
from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from twinview.testing.data_checks import pick
from twinview.testing.failure import Failure
from twinview.testing.rehearsal import Still, imported_anew, new_folder, rows_of, terms, weights_of, whole_run
from twinview.testing.subject import STEPS
from twinview.testing.trial import Trial

STOP = 2  # the step behind which a run is broken off, in the middle of its first epoch


def gradients(trial: Trial) -> Iterator[Failure]:
    """Within two epochs a gradient reaches every parameter that the part declares and does not freeze, and the encoder; none the target."""
    rehearsal, subject = trial.rehearsal, trial.subject
    own = subject.name.replace(".", "/")
    missing = [name for name in rehearsal.setup.trainable if name not in rehearsal.reached]
    for name in missing:
        if name.startswith(f"heads.{own}/"):
            wanted = "one: use it in loss(), or declare Head(module, kind, ParamRule(frozen=True))"
            yield Failure(subject.name, "heads", f"no gradient in {name.removeprefix(f'heads.{own}/')} within {STEPS} steps", wanted)
            return
    encoder = [name for name in rehearsal.setup.trainable if name.startswith("encoder.")]
    if subject.slot == "loss" and encoder and not rehearsal.reached.intersection(encoder):
        yield Failure(
            subject.name, "loss", f"no gradient in the encoder within {STEPS} steps", "one: compute it from step.online or step.apply(..., 'online')",
        )
    branch = rehearsal.model.target
    for name, parameter in branch.named_parameters() if branch is not None else ():
        if parameter.requires_grad or parameter.grad is not None:
            yield Failure(subject.name, "loss", f"a gradient in the target's {name}", "none: the target follows the online branch by its average")
            return
    for name, value in rehearsal.model.state.named_parameters():
        if value.requires_grad:
            yield Failure(subject.name, "heads", f"a state {name} that is trained", "buffers: a state is neither trained nor averaged")
            return


def looks_at_target(trial: Trial) -> Iterator[Failure]:
    """A part that needs an averaged target asks for it in its loss."""
    if not trial.still.asks_target(trial.still.batches(1)[0]):
        wanted = "step.target, or step.apply(..., 'target'); or leave 'averaged_target' out of traits()"
        yield Failure(trial.subject.name, "loss", "needs an averaged target, and learns without one", wanted)


def repeats(trial: Trial) -> Iterator[Failure]:
    """The same batch and the same state give the same loss, to the last bit; and whatever torch's global generator holds."""
    still, subject = trial.still, trial.subject
    batch = still.batches(1)[0]
    still.restore()
    first = terms(still.forward(batch))
    still.restore()
    if change := changed(first, terms(still.forward(batch))):
        wanted = 'the same: keep what it learns in a module, Head(module, "state"), and not on the part, in a module of Python, or in a generator'
        yield Failure(subject.name, "loss", f"{change} for the same batch and the same state", wanted)
        return
    still.restore()
    if (change := changed(first, terms(still.forward(batch, seed=1)))) and not drops(still):
        wanted = "the same on any rank and after a resume: draw with step.uniform(purpose, n)"
        yield Failure(subject.name, "loss", f"{change} when only the global generators differ", wanted)


def keeps_state_until_the_step(trial: Trial) -> Iterator[Failure]:
    """Every micro-batch of a step meets the same state: what is learned from one is held, and committed in `after_step`."""
    still = trial.still
    one, two = still.batches(2)
    still.restore()
    try:
        still.after_micro_batch(still.forward(one, 0, grad=True), 0)
        after = terms(still.forward(two, 1, grad=True))
        still.restore()
        alone = terms(still.forward(two, 1, grad=True))
    finally:
        still.restore()
    if change := changed(alone, after):
        wanted = "the same: gather in after_micro_batch, and write to the state in after_step (run.accumulation then changes nothing)"
        yield Failure(trial.subject.name, "loss", f"{change} of a second micro-batch that met what the first had left", wanted)


def order_of_batch(trial: Trial) -> Iterator[Failure]:
    """A batch in another order has the same loss, but for rounding."""
    still = trial.still
    batch = still.batches(1)[0]
    still.restore()
    first = terms(still.forward(batch))
    still.restore()
    turned = terms(still.forward(pick(batch, [3, 0, 7, 1, 6, 2, 5, 4])))
    still.restore()
    if (change := changed(first, turned, 2e-5)) and not drops(still):
        yield Failure(trial.subject.name, "loss", f"{change} for the same images in another order", "the same: which image stands where says nothing")


def low_precision(trial: Trial) -> Iterator[Failure]:
    """Under [run] precision = "bf16" losses and gradients are finite, and the hooks after a step find what they need."""
    still = Still(trial.subject, precision="bf16")
    outcome = still.forward(still.batches(1)[0], grad=True)
    for name, value in outcome.terms.items():
        if not bool(value.isfinite()):
            yield Failure(
                trial.subject.name, "loss", f"{name} = {float(value):g} in bf16", "a finite number: work out sums, norms and logarithms in float32",
            )
            return
    if outcome.loss.requires_grad:
        outcome.loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in still.model.online.named_parameters():
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            yield Failure(trial.subject.name, "loss", f"a gradient of {name} that is not finite in bf16", "finite numbers")
            return
    still.model.zero_grad()
    still.restore()
    next(still.rehearsal.steps())


def resumes(trial: Trial) -> Iterator[Failure]:
    """A run that is broken off in the middle of an epoch and goes on has the same losses and the same weights, to the last bit."""
    folder, rows = trial.run
    again = broken_off(trial)
    with imported_anew(trial.subject.package):
        whole_run(trial.subject.recipe(), again, resume=True)
    yield from compared(trial, rows, rows_of(again), f"in a run that went on from step {STOP}")
    before, after = weights_of(folder, STEPS), weights_of(again, STEPS)
    other = [name for name in before if name not in after or not torch.equal(before[name], after[name])]
    if other:
        yield Failure(trial.subject.name, "state", f"another {other[0]} in a run that went on from step {STOP}", SAME)


SAME = 'the same to the last bit: what is learned is in a module, Head(module, "state"), and draws are of step.uniform or of the rng that is given'


def broken_off(trial: Trial) -> Path:
    """A copy of the part's run as a kill after step `STOP` would have left it."""
    folder, _ = trial.run
    again = new_folder("again")
    shutil.copytree(folder, again)
    for step in range(STOP + 1, STEPS + 1):
        shutil.rmtree(again / "checkpoints" / f"step-{step:06d}")
    (again / "checkpoints" / "latest").write_text(f"step-{STOP:06d}")
    return again


def compared(
    trial: Trial, rows: list[dict[str, float]], others: list[dict[str, float]], where: str, tolerance: float = 0.0, wanted: str = "",
) -> Iterator[Failure]:
    """The losses of two runs, step by step: the first that differs."""
    for row, other in zip(rows, others, strict=True):
        mine = {name: value for name, value in row.items() if name == "loss" or name.startswith("loss/")}
        if change := changed(mine, other, tolerance):
            yield Failure(trial.subject.name, "loss", f"{change} at step {row['step']:g} {where}", wanted or SAME)
            return


def changed(one: Mapping[str, float], other: Mapping[str, float], tolerance: float = 0.0, least: float = 1.0) -> str:
    """`NAME = 1.2, not 1.3` of the first number that differs by more than a share of its size, or of `least` where it is less; "": none does."""
    for name, value in one.items():
        found = other.get(name, float("nan"))
        if not abs(found - value) <= tolerance * max(least, abs(value)):
            return f"{name} = {found:.6g}, not {value:.6g},"
    return ""


def drops(still: Still) -> bool:
    """Whether the model has layers that draw by design."""
    layers = [module for module in still.model.modules() if "drop" in type(module).__name__.lower()]
    return any(getattr(layer, "p", getattr(layer, "drop_prob", 1.0)) for layer in layers)
