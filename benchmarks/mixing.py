"""The whole product of installed view samplers, masks, alignments, losses and encoders: which combinations train, and which are refused and why.

    python benchmarks/mixing.py --jobs 2              # about an hour of two cores
    python benchmarks/mixing.py --minutes 20          # what can be tried in that time, a sample drawn at random
    python benchmarks/mixing.py --assemble            # only what is refused, in minutes

Each that is not refused takes twenty steps on one batch of drawn street scenes; it must stay finite, lower its loss and have gradients in every
trainable parameter.  Writes benchmarks/results/mixing.json: counts by reason, and every combination that did not train.  Resumable: what is in
benchmarks/results/mixing.partial.jsonl is not tried again (of the same commit: remove the file after a change); the file goes once all is tried.
With --assemble nothing trains and nothing is written.
"""
from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

from machine import commit

RESULTS = Path(__file__).parent / "results" / "mixing.json"
PARTIAL = RESULTS.with_suffix(".partial.jsonl")


def main() -> None:
    """Try what has not been tried, then count."""
    ask = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ask.add_argument("--shards", default="scenes:val")
    ask.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, one thread each")
    ask.add_argument("--assemble", action="store_true", help="count what is refused, train nothing")
    ask.add_argument("--minutes", type=float, default=math.inf, help="stop then, and report what was tried")
    args = ask.parse_args()
    if args.assemble:
        print(json.dumps(refusals(), indent=1))
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in the processes
    from twinview.data.dataset.open import open_shards
    from twinview.testing import product

    open_shards(args.shards)  # drawn once, not by every process
    tried = {json.dumps(json.loads(line)["combination"]) for line in PARTIAL.read_text().splitlines()} if PARTIAL.is_file() else set()
    combinations = [dict(c) for c in product()]
    random.Random(0).shuffle(combinations)  # what is tried in part of the time is a fair sample
    left = [c for c in combinations if json.dumps(c) not in tried]
    end = time.monotonic() + 60 * args.minutes
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool, PARTIAL.open("a") as file:
        for row in pool.imap_unordered(one, [(c, args.shards) for c in left], chunksize=4):
            file.write(json.dumps(row) + "\n")
            file.flush()
            if time.monotonic() > end:
                break
    rows = [json.loads(line) for line in PARTIAL.read_text().splitlines()]
    found = {"commit": commit(), "product": len(combinations), **summary(rows)}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    if len(rows) == len(combinations):
        PARTIAL.unlink()
    print(json.dumps(found, indent=1))


def one(task: tuple[dict[str, str], str]) -> dict[str, Any]:
    """What came of a combination; an exception is a finding too."""
    from twinview.testing import attempt

    combination, shards = task
    try:
        found = attempt(combination, shards)
    except Exception as e:
        return {"combination": combination, "fault": f"{type(e).__name__}: {e}"}
    if found.refused:
        return {"combination": combination, "refused": found.refused}
    if found.trains:
        return {"combination": combination, "first": found.losses[0], "last": found.losses[-1]}
    return {"combination": combination, "fault": f"losses {found.losses[0]:g} to {found.losses[-1]:g}, no gradient in {list(found.untouched)}"}


def refusals() -> dict[str, Any]:
    """Combinations that are refused when they are assembled, by reason."""
    from twinview.assembly import assemble
    from twinview.errors import RecipeError
    from twinview.recipe import from_table
    from twinview.testing import product, recipe_of

    rows: list[dict[str, Any]] = []
    for combination in product():
        try:
            assemble(from_table(recipe_of(combination, "none.tar")))
            rows.append({})
        except RecipeError as e:
            rows.append({"refused": str(e)})
    return {k: v for k, v in summary(rows).items() if k in ("tried", "refused", "refused_by_reason")}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts, and what failed."""
    reasons = Counter(re.sub(r"\[\[?\w+\]\]? [\w.]+", "_", row["refused"]) for row in rows if "refused" in row)
    trained = sum("first" in row for row in rows)
    return {
        "tried": len(rows),
        "trained": trained,
        "refused": sum(reasons.values()),
        "refused_by_reason": dict(reasons.most_common()),
        "failed": [row for row in rows if "fault" in row],
    }


if __name__ == "__main__":
    main()
