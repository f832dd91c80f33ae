"""A file is whole or as it was, whatever happens while it is written."""
from __future__ import annotations

import os
from pathlib import Path

import pytest

from twinview.files import write_atomic, write_text


def test_it_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text(path, "first ä", sync=True)
    write_text(path, "second")
    assert path.read_text() == "second" and os.listdir(tmp_path) == ["a.json"]


def test_an_error_leaves_what_was_there_and_nothing_besides(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt), write_atomic(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == ["a.bin"]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("another's")
    (tmp_path / "a").symlink_to(tmp_path / "other")
    write_text(tmp_path / "a", "mine")
    assert (tmp_path / "other").read_text() == "another's" and not (tmp_path / "a").is_symlink()


def test_permissions_are_those_asked_for(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "plain", "")
        with write_atomic(tmp_path / "own", mode=0o600):
            pass
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("plain", "own")] == [0o640, 0o600]
