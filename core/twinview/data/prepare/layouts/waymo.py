"""Waymo's perception data set, version 2 (waymo.com/open/data/perception; github.com/waymo-research/waymo-open-dataset, README).

    SOURCE/training/camera_image/10017090168044687777_6380_000_6400_000.parquet     a file a segment, a row a camera image

Columns: key.segment_context_name, key.frame_timestamp_micros, key.camera_name (1..5) and [CameraImageComponent].image, a JPEG.
"""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twinview.data.prepare.layouts import Found
from twinview.data.prepare.layouts.common import split_of
from twinview.data.prepare.layouts.partners import visible
from twinview.data.store.listing import folder
from twinview.data.writing.entry import Entry
from twinview.errors import DataError

SEGMENT, TIME, CAMERA, IMAGE = "key.segment_context_name", "key.frame_timestamp_micros", "key.camera_name", "[CameraImageComponent].image"
CAMERAS = {1: "front", 2: "front_left", 3: "front_right", 4: "side_left", 5: "side_right"}
ROWS = 16  # read at once; an image has some 300 kB


def find(source: str | Path, split: str = "training") -> Found:
    """Every camera image of `training`, `validation` or `testing`; a sample's key is SEGMENT/TIME_CAMERA.  Raises DataError, also without pyarrow."""
    parquet = _parquet()
    root = folder(Path(source), "of Waymo's splits")
    splits = {path.parent.name for path in visible(root.glob("*/camera_image"))}
    if not splits and next(root.glob("**/*.tfrecord"), None):
        raise DataError(f"{root}: holds .tfrecord files, which are of version 1. Download version 2, whose splits hold camera_image/*.parquet.")
    split_of(split, splits)
    paths = sorted(visible((root / split / "camera_image").glob("*.parquet")))
    if not paths:
        raise DataError(f"{root / split / 'camera_image'}: holds no .parquet.")
    total = 0
    for path in paths:
        try:
            about = parquet.read_metadata(path)
        except (OSError, ValueError) as e:  # pyarrow's ArrowInvalid is a ValueError
            raise DataError(f"{path}: is no parquet file: {' '.join(str(e).split())}. Copy it anew.") from None
        missing = {SEGMENT, TIME, CAMERA, IMAGE} - set(about.schema.to_arrow_schema().names)
        if missing:
            raise DataError(f"{path}: has no column {min(missing)}. It is no camera_image file of version 2.")
        total += about.num_rows
    return Found(entries=_entries(parquet, paths), total=total)


def _entries(parquet: Any, paths: list[Path]) -> Iterator[Entry]:
    homes: dict[str, Path] = {}  # segment -> its file
    for path in paths:
        seen = set[str]()
        try:
            with parquet.ParquetFile(path) as file:
                for rows in file.iter_batches(batch_size=ROWS, columns=[SEGMENT, TIME, CAMERA, IMAGE]):
                    for row in rows.to_pylist():
                        camera = CAMERAS.get(row[CAMERA], str(row[CAMERA]))
                        key = f"{row[SEGMENT]}/{row[TIME]}_{camera}"
                        if key in seen or homes.setdefault(row[SEGMENT], path) != path:
                            raise DataError(f"{path}: its image {key} stands in {homes[row[SEGMENT]]} already. Remove one of the two.")
                        seen.add(key)
                        yield Entry(key, {"jpg": row[IMAGE] or b""})  # without bytes it is a bad sample
        except (OSError, ValueError) as e:
            raise DataError(f"{path}: is damaged: {' '.join(str(e).split())}. Copy it anew.") from None


def _parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError("Waymo's images lie in parquet files, which pyarrow reads: `pip install 'twinview[waymo]'`.") from None
    return parquet
