"""Fill the tables of docs/results.md from the rows in benchmarks/results/proof.jsonl.

    python benchmarks/results_page.py                  # writes docs/results.md; which blocks there are: proof/page.py
    python benchmarks/results_page.py --check          # exit code 1 where the page says something else; writes nothing
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from proof.page import filled
from proof.rows import Rows
from prove import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "results.md"


def main() -> None:
    """Write the page, or say whether it is as the rows are."""
    ask = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ask.add_argument("--check", action="store_true")
    ask.add_argument("--page", type=Path, default=PAGE)
    ask.add_argument("--results", type=Path, default=RESULTS)
    args = ask.parse_args()
    text = args.page.read_text()
    made = filled(text, Rows(args.results, ("task", "method", "seed")).by_commit())
    if not args.check:
        args.page.write_text(made)
    elif made != text:
        print(f"{args.page}: its tables are not those of {args.results}. Run `python benchmarks/results_page.py`.", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
