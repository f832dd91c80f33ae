"""Tables of the results page come from the rows."""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from proof.page import filled  # noqa: E402
from proof.rows import Rows  # noqa: E402


def row(method: str, seed: int, score: float) -> dict[str, Any]:
    return {"task": "streets", "method": method, "seed": seed, "miou": score, "confusions": [[1, 0, 0, 1]] * 2, "cpu_seconds": 10.0}


def test_blocks_are_made_of_the_newest_rows_that_pair() -> None:
    old = [row("pixels", 0, 10.0), *(row(method, seed, 11.0) for method in ("random", "multisiam") for seed in (1, 2))]
    new = [row("pixels", 0, 10.0), *(row("random", seed, 20.0 + seed) for seed in (1, 2, 3)), row("multisiam", 1, 25.0), row("multisiam", 2, 27.0)]
    newest = [row("byol", 1, 12.0)]  # has no floors
    page = "# A\n\n<!-- floors -->\n\nold\n\n<!-- end -->\n\ntext\n\n<!-- table streets miou old -->\n\nold\n\n<!-- end -->\n"
    made = filled(page, {"old": old, "new": new, "newest": newest})
    assert "| **MultiSiam** | street scenes of another place, linear, mIoU | 2 | 26.0 ± 1.4 | 21.5 ± 0.7 | 10.0 | +4.5 ± 0.7 [-1.9, +10.9] |" in made
    assert "BYOL" not in made and "| multisiam | 11.0, 11.0 | 11.0 ± 0.0 |" in made and "\ntext\n" in made and "old\n" not in made.replace("old -->", "")
    assert filled(made, {"old": old, "new": new, "newest": newest}) == made
    assert filled(page, {"old": old}, kinds=["claims"]) == page


def test_what_papers_claim_is_paired_by_seed() -> None:
    rows = [row("multisiam", seed, 20.0 + 2 * seed) for seed in (1, 2, 3)] + [row("byol", seed, 20.0 + seed) for seed in (2, 3, 4)]
    made = filled("<!-- claims -->\n\n<!-- end -->\n\nkept\n\n<!-- lightly -->\n\n<!-- end -->", {"one": rows})
    assert "\n\nkept\n\n" in made
    assert "| **MultiSiam above BYOL** on street scenes, mIoU | 2 | +2.5 ± 0.7 | [-3.9, +8.9] |" in made
    assert "DenseCL" not in made


def test_the_page_says_what_the_rows_say() -> None:
    text = (ROOT / "docs" / "results.md").read_text()
    by_commit = Rows(ROOT / "benchmarks" / "results" / "proof.jsonl", ("task", "method", "seed")).by_commit()
    assert text.count("<!-- end -->") > 6
    assert filled(text, by_commit, kinds=["floors", "table"]) == text, "run `python benchmarks/results_page.py`"
