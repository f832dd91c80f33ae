"""A slice of benchmarks/fuzz.py: random damage ends in a DataError or a BadSample."""
from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

FUZZ = Path(__file__).resolve().parents[2] / "benchmarks" / "fuzz.py"


def test_sixty_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("fuzz", FUZZ)
    assert spec and spec.loader
    fuzz = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz)
    monkeypatch.setenv("RANK", "1")
    found = fuzz.run_cases(0, 60, tmp_path)
    assert found["findings"] == [] and sum(found["ends"].values()) == 60
    assert min(found["ends"][end] for end in ("bad samples", "refused", "whole")) >= 3, "the damage is of every kind"
