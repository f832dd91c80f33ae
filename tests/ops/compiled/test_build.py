"""Machine code is kept by what it comes from: every file of its folder, and of the folder of the compiled operations."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from twinview.ops.compiled import build


def test_a_change_in_any_file_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    core, plugin = tmp_path / "core", tmp_path / "plugin"
    for folder in (core, plugin):
        folder.mkdir()
        (folder / "a.py").write_text("one = 1\n")
        (folder / "b.py").write_text("two = 2\n")
    monkeypatch.setattr(build, "__file__", str(core / "build.py"))

    def found() -> Path:
        build._folder.cache_clear()
        return build._folder("kept", plugin)

    try:
        seen = {found()}
        assert found() in seen and next(iter(seen)).parent == Path("kept")
        changes: list[Callable[[], object]] = [
            lambda: (core / "b.py").write_text("two = 3\n"), lambda: (plugin / "b.py").write_text("two = 3\n"),
            lambda: (plugin / "c.py").write_text(""), lambda: (plugin / "c.py").rename(plugin / "d.py"),
        ]
        for change in changes:
            change()
            assert found() not in seen
            seen.add(found())
    finally:
        build._folder.cache_clear()


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TWINVIEW_CACHE", str(tmp_path))
    build._folder.cache_clear()
    try:
        assert build._folder("", Path(build.__file__).parent).parent == tmp_path / "compiled"
    finally:
        build._folder.cache_clear()
