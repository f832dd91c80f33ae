"""The GPU script's rehearsal: a line for each case, faults kept and tried again by another call, nothing measured twice."""
from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu  # noqa: E402


def rows(out: Path) -> dict[str, Any]:
    return {row["case"]: row for row in map(json.loads, out.read_text().splitlines())}


def test_cases_are_run_once_and_faults_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, called = tmp_path / "gpu.jsonl", list[str]()

    def fails(bench: gpu.Bench) -> dict[str, Any]:
        called.append("fails")
        raise ValueError("of\nno use")

    def last(bench: gpu.Bench) -> dict[str, Any]:
        called.append("last")
        return {"x": len(called)}

    cases = {"photometry": gpu.photometry, "fails": fails, "last": last}
    monkeypatch.setattr(gpu, "CASES", cases)
    monkeypatch.setattr(gpu, "commit", lambda: "c")
    first = time.time() + 1000
    assert gpu.run(list(cases), out, True, time.time() - 1) == 3, "no time, nothing begun"
    assert gpu.run(list(cases), out, True, first) == 0
    found = rows(out)
    assert list(found) == list(cases) and found["photometry"]["values"] > 10_000 and found["photometry"]["differ"] == 0, "on the CPU, with the CPU's"
    assert found["fails"]["error"] == "ValueError: of no use" and found["last"]["x"] == 2 and found["last"]["commit"] == "c"
    gpu.write(out, {**found["last"], "error": gpu.BEGUN})  # as a process that died in it leaves it
    assert gpu.run(list(cases), out, True, first) == 0 and called == ["fails", "last"], "the process that follows in the same call goes on behind it"
    assert gpu.run(list(cases), out, True, first + 1) == 0 and called == ["fails", "last", "fails", "last"], "and another call tries both again"
    assert rows(out)["last"]["x"] == 4 and rows(out)["photometry"] == found["photometry"] and len(out.read_text().splitlines()) == 3
    monkeypatch.setattr(gpu, "commit", lambda: "d")
    assert gpu.run(["last"], out, True, first) == 0 and len(out.read_text().splitlines()) == 4, "another commit has rows of its own"


def test_losses_are_compared_relatively() -> None:
    assert gpu.apart([1.0, 2.0], [1.1, 2.0]) == pytest.approx(0.1)
    assert {name for name in gpu.TINY} == set(gpu.MODELS)
