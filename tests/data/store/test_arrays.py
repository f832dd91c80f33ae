from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from twinview.data.store import arrays
from twinview.data.store.arrays import stored_arrays
from twinview.data.store.regular import check_stored

MADE: dict[str, NDArray[Any]] = {
    "hashes": np.arange(-3, 9), "keys": np.frombuffer(b"some keys", np.uint8), "kinds": np.zeros(5, np.int32), "none": np.empty(0, np.int64)
}


def packed(**options: Any) -> bytes:
    file = io.BytesIO()
    save: Any = np.savez_compressed if options.pop("small", False) else np.savez
    save(file, **MADE)
    return file.getvalue()


def same(found: dict[str, NDArray[Any]]) -> bool:
    return list(found) == list(MADE) and all(found[name].dtype == value.dtype and np.array_equal(found[name], value) for name, value in MADE.items())


def test_members_are_those_of_zipfile(monkeypatch: pytest.MonkeyPatch) -> None:
    data = packed()
    by_zipfile = [(one.filename, one.header_offset, one.file_size, one.CRC) for one in check_stored(io.BytesIO(data))]
    assert list(arrays._listed(data)) == by_zipfile and same(stored_arrays(data))
    asked: list[object] = []
    monkeypatch.setattr(arrays, "check_stored", asked.append)
    stored_arrays(data)
    assert not asked, "zipfile is left alone"


def test_other_zips_go_to_zipfile() -> None:
    data, remarked = packed(), io.BytesIO(packed())
    with zipfile.ZipFile(remarked, "a") as archive:
        archive.comment = b"a remark"
    assert same(stored_arrays(remarked.getvalue()))
    with pytest.raises(ValueError, match="packed otherwise"):
        stored_arrays(packed(small=True))
    for cut in (b"", data[:40], data[:-1], data[:-30]):
        with pytest.raises(zipfile.BadZipFile):
            stored_arrays(cut)


def test_no_damage_gives_other_numbers() -> None:
    data, rng = packed(), np.random.default_rng(0)
    for at in rng.choice(len(data), 400, replace=False).tolist():
        damaged = bytearray(data)
        damaged[at] ^= 1 << int(rng.integers(8))
        try:
            found = stored_arrays(bytes(damaged))
        except Exception:  # whatever it is: the index is built anew
            continue
        assert all(np.array_equal(value, MADE[name]) for name, value in found.items() if name in MADE)
