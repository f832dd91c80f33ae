"""Files of features: .npy, .parquet, .h5; written a part at a time, so that memory does not grow with the number of images."""
from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from twinview.analysis.own_files import has_keys, marked, refuse_others
from twinview.errors import DataError
from twinview.files import in_place_of, write_text
from twinview.terminal import one_line

SUFFIXES = (".npy", ".parquet", ".h5")
ABOUT = "twinview"  # where a file says what its features are of


class Part(NamedTuple):
    """Features of some images, in order."""

    keys: list[str]
    features: Mapping[str, NDArray[Any]]  # name -> [n, ...]


class FeatureFile(NamedTuple):
    """What a file of features holds."""

    keys: list[str]
    features: dict[str, NDArray[Any]]  # name -> [N, C] or [N, C, h, w]
    about: dict[str, Any]  # the target, its transform, what was chosen


def check_out(out: Path, names: Sequence[str]) -> None:
    """Raises DataError for a file that cannot be written: its suffix, several features in a .npy, a package that is missing."""
    if out.suffix not in SUFFIXES:
        raise DataError(f"{out}: is no name for features. Write one that ends in {', '.join(SUFFIXES)}.")
    if out.suffix == ".npy" and len(names) > 1:
        raise DataError(f"{out}: a .npy file holds one array, and {', '.join(names)} are {len(names)}. Write .parquet or .h5, or choose one.")
    if out.is_dir():
        raise DataError(f"{out}: is a folder. Name a file.")
    _package(out)


def check_replaced(out: Path) -> None:
    """Raises DataError where `out`, or a file that is written beside it, is there and is not of `twinview embed`."""
    if out.suffix != ".npy":
        refuse_others("twinview embed", [out], marked, DataError)
        return
    beside = out.with_suffix(".json")  # a .npy file itself says nothing of where it comes from
    told = has_keys(beside, ("target", "encoder", "features"))
    refuse_others("twinview embed", [out, beside, out.with_suffix(".keys.txt")], lambda _: told, DataError)


def write(out: Path, parts: Iterable[Part], total: int, about: Mapping[str, Any]) -> None:
    """Write the parts, `total` images in all, to `out`, whole or not at all.  Of a .npy file the keys go to NAME.keys.txt, the rest to NAME.json."""
    with in_place_of(out) as path:
        if out.suffix == ".npy":
            keys = _write_npy(path, parts, total)
            write_text(out.with_suffix(".json"), json.dumps(about, indent=1) + "\n")  # first: it tells that the others are ours
            write_text(out.with_suffix(".keys.txt"), "".join(one_line(key) + "\n" for key in keys))
        else:
            (_write_parquet if out.suffix == ".parquet" else _write_h5)(path, parts, total, about)


def read(path: Path) -> FeatureFile:
    """Read what `write` wrote.  Raises DataError."""
    check_out(path, ())
    if not path.is_file():
        raise DataError(f"{path}: there is no such file.")
    try:
        return {".npy": _read_npy, ".parquet": _read_parquet, ".h5": _read_h5}[path.suffix](path)
    except DataError:
        raise
    except Exception as e:  # each library raises its own
        raise DataError(f"{path}: is no file of features, or a damaged one: {' '.join(str(e).split())[:200]}") from None


def _package(out: Path) -> Any:
    """The library that reads and writes such files.  Raises DataError where it is not installed."""
    names = {".npy": "numpy", ".parquet": "pyarrow", ".h5": "h5py"}
    name = names[out.suffix]
    try:
        return import_module(name)
    except ImportError:
        raise DataError(f"{out}: {out.suffix} files want the package {name}. Install twinview[features], or write .npy.") from None


# ---- .npy
def _write_npy(path: Path, parts: Iterable[Part], total: int) -> list[str]:
    array, keys = None, list[str]()
    for part in parts:
        (values,) = part.features.values()
        if array is None:
            array = np.lib.format.open_memmap(path, mode="w+", dtype=values.dtype, shape=(total, *values.shape[1:]))
        array[len(keys) : len(keys) + len(values)] = values
        keys += part.keys
    if array is not None:
        array.flush()
    return keys


def _read_npy(path: Path) -> FeatureFile:
    about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    keys = path.with_suffix(".keys.txt").read_text(encoding="utf-8").splitlines()
    return FeatureFile(keys, {about["features"][0]: np.load(path, mmap_mode="r", allow_pickle=False)}, about)


# ---- .parquet
def _write_parquet(path: Path, parts: Iterable[Part], total: int, about: Mapping[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    try:
        for part in parts:
            columns: dict[str, Any] = {"key": pa.array(part.keys, pa.string())}
            for name, values in part.features.items():
                columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), int(np.prod(values.shape[1:])))
            table = pa.table(columns)
            if writer is None:
                shapes = {name: list(values.shape[1:]) for name, values in part.features.items()}
                said = json.dumps({**about, "shapes": shapes, "images": total})
                writer = pq.ParquetWriter(path, table.schema.with_metadata({ABOUT: said}), compression="zstd")
            writer.write_table(table.cast(writer.schema))
    finally:
        if writer is not None:
            writer.close()


def _read_parquet(path: Path) -> FeatureFile:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[ABOUT.encode()])
    features = {}
    for name, shape in about["shapes"].items():
        flat = table.column(name).combine_chunks()
        features[name] = np.asarray(flat.flatten()).reshape(len(table), *shape)
    return FeatureFile(table.column("key").to_pylist(), features, about)


# ---- .h5
def _write_h5(path: Path, parts: Iterable[Part], total: int, about: Mapping[str, Any]) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs[ABOUT] = json.dumps(about)
        keys = file.create_dataset("keys", (total,), dtype=h5py.string_dtype())
        at = 0
        for part in parts:
            for name, values in part.features.items():
                if name not in file:
                    file.create_dataset(name, (total, *values.shape[1:]), dtype=values.dtype)
                file[name][at : at + len(values)] = values
            keys[at : at + len(part.keys)] = part.keys
            at += len(part.keys)


def _read_h5(path: Path) -> FeatureFile:
    import h5py

    with h5py.File(path, "r") as file:
        about = json.loads(file.attrs[ABOUT])
        return FeatureFile([key.decode() for key in file["keys"][()]], {name: file[name][()] for name in about["features"]}, about)
