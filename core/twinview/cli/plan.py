"""`twinview plan`."""
from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from twinview.cli.commands import Commands, command, recipe_arguments
from twinview.terminal import answer

if TYPE_CHECKING:
    from twinview.planning.plan import Choice, Plan

GIB = 2**30


def add(commands: Commands) -> None:
    """Add `plan` to the command line."""
    made = command(commands, "plan", plan, "say what a recipe needs of each GPU and of the links between them, and the ZeRO stage to take")
    recipe_arguments(made)
    made.add_argument("--gpus", metavar="N", type=int, default=1, help="ranks (default: 1)")
    made.add_argument("--memory", metavar="GIB", type=float, default=0.0, help="of each GPU (default: of the GPU that is here)")
    made.add_argument("--bandwidth", metavar="GB/S", type=float, default=0.0, help="that a GPU sends: adds seconds of communication")
    made.add_argument("--json", action="store_true", help="everything in bytes, as JSON")


def plan(args: argparse.Namespace) -> None:
    """Print what a recipe needs of each GPU, stage by stage."""
    from twinview.planning.plan import plan as make
    from twinview.recipe import read

    found = make(read(args.recipe, args.overrides), gpus=args.gpus, memory=args.memory, bandwidth=args.bandwidth)
    answer(json.dumps(as_table(found), indent=1) if args.json else "\n".join(lines(found)))


def as_table(found: Plan) -> dict[str, object]:
    """The plan as plain values, bytes throughout."""
    import attrs

    parameters = {key: sum(getattr(found.footprint, key)) for key in ("online", "trained", "target")}
    return {
        "recipe": found.recipe.name,
        "precision": found.recipe.run.precision,
        "machine": attrs.asdict(found.machine),
        "parameters": parameters,
        "micro_batch": found.micro_batch,
        "stages": [{**attrs.asdict(c), "total": c.total} for c in found.choices],
        "take": found.take,
        "accumulation": found.accumulation,
        "advice": list(found.advice),
    }


def lines(found: Plan) -> Iterator[str]:
    """What was assumed, a column for each stage, and what to take."""
    from twinview.planning.plan import MARGIN, assumed

    recipe, machine, footprint = found.recipe, found.machine, found.footprint
    million = [f"{sum(p) / 1e6:.1f} M" for p in (footprint.online, footprint.trained, footprint.target)]
    devices = ("GPU", "GPUs") if machine.gpu else ("process", "processes")
    yield f"recipe      {recipe.name}, {recipe.run.precision}, batch {recipe.run.batch_size}"
    yield f"machine     {machine.gpus} {devices[machine.gpus > 1]} of {machine.memory / GIB:.0f} GiB, of which {MARGIN:.0%} is left free"
    yield f"on each     {found.micro_batch} images at once, {recipe.run.accumulation} times a step"
    yield f"parameters  {million[0]} online, {million[1]} of them trained; {million[2]} target"
    yield f"assumed     {assumed(recipe)}"
    yield ""
    yield from _table(found)
    yield ""
    yield from (f"{'take' if i == 0 else '':<11} {line}" for i, line in enumerate(found.advice))


def _table(found: Plan) -> Iterator[str]:
    choices = found.choices
    items = list(dict.fromkeys(item for c in choices for item in c.memory))
    rows = [["memory of a GPU, GiB", *(f"stage {c.stage}" for c in choices)]]
    rows += [[f"  {item}", *(_small(c.memory.get(item, 0) / GIB) for c in choices)] for item in items]
    rows += [["  together", *(_small(c.total / GIB) for c in choices)]]
    if any(c.host for c in choices):
        rows += [["  on the host", *(_small(c.host / GIB) for c in choices)]]
    rows += [["fits", *(_fits(c) for c in choices)], ["most images at once", *(str(c.largest) if not c.refused else "-" for c in choices)]]
    if found.machine.gpus > 1:
        kinds = list(dict.fromkeys(what for c in choices for what in c.sent))
        rows += [["sent by a GPU in a step, GB", *("" for _ in choices)]]
        rows += [[f"  {what}", *(_small(c.sent.get(what, 0) / 1e9) for c in choices)] for what in kinds]
        rows += [["  together", *(_small(sum(c.sent.values()) / 1e9) for c in choices)]]
        if found.machine.bandwidth:
            rows += [["  seconds", *(_small(sum(c.sent.values()) / found.machine.bandwidth) for c in choices)]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield f"{row[0]:<{widths[0]}}  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:]))
    yield from dict.fromkeys(f"refused: {c.refused}" for c in choices if c.refused)


def _small(number: float) -> str:
    return "-" if not number else f"{number:.2f}" if number >= 0.1 else f"{number:.4f}"


def _fits(choice: Choice) -> str:
    return "refused" if choice.refused else "yes" if choice.fits else "no"
