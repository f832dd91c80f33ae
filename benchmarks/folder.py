"""Opening a folder of many small images in place: time, memory, and what each worker process comes to hold.

    python benchmarks/image_folder.py

Beside it a Python list of (path, class), as torchvision's ImageFolder keeps.  CPU seconds of this process; memory is what a forked worker no longer
shares with its parent after it has looked up every sample (Private_Dirty of /proc/self/smaps_rollup).
"""
from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from twinview.data.dataset.open import open_shards
from twinview.data.store import image_folder
from twinview.machine import cores

RESULTS = Path(__file__).with_name("results") / "folder.json"


def main() -> None:
    """Write the files, measure, remove them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--folders", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        root = Path(made) / "images"
        for i in range(args.images):
            at = root / f"street-{i % args.folders:04}"
            if i < args.folders:
                at.mkdir(parents=True)
            (at / f"frame_{i:08}.jpg").write_bytes(b"\xff\xd8" + bytes(200))
        os.environ["TWINVIEW_CACHE"] = str(Path(made) / "cache")
        time.sleep(image_folder.SETTLED + 0.5)
        spec = f"images:{root}"
        first, shards = timed(lambda: open_shards(spec))
        again, shards = timed(lambda: open_shards(spec))
        (kept,) = (Path(made) / "cache/folders").iterdir()
        held = sum(getattr(shards.indexes[0], name).nbytes for name in image_folder.ARRAYS)
        listed, paths = timed(lambda: [(str(path), 0) for path in sorted(root.rglob("*.jpg"))])
        found: dict[str, Any] = {
            "command": " ".join(["python benchmarks/image_folder.py", *sys.argv[1:]]),
            "machine": f"{platform.machine()}, {cores()} cores, load {os.getloadavg()[1]:.0f}, Python {platform.python_version()}",
            "images": args.images, "folders": args.folders,
            "first_opening": first, "later_opening": again, "bytes_of_the_index": held, "bytes_kept": kept.stat().st_size,
            "us_a_read": 1e6 * timed(lambda: [shards.read(i) for i in anyhow(args.images, 10_000)])[0]["cpu"] / 10_000,
            "private_bytes_of_a_worker": worker(lambda: ((shards.key(i), shards.key_hash(i)) for i in anyhow(args.images, args.images))),
            "list": {"made": listed, "private_bytes_of_a_worker": worker(lambda: (paths[i][0] for i in anyhow(args.images, args.images)))},
        }
    print(json.dumps(found, indent=1))
    args.out.write_text(json.dumps(found, indent=1) + "\n")


def anyhow(images: int, count: int) -> Iterator[int]:
    """The first `count` of all images in a scattered order."""
    return (n * 7919 % images for n in range(count))


def timed(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Seconds by the clock and of the processor, and the result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return {"wall": round(time.perf_counter() - wall, 3), "cpu": round(time.process_time() - cpu, 3)}, result


def worker(look: Callable[[], Iterator[Any]]) -> int:
    """Bytes that a forked process comes to hold for itself by looking."""
    gc.freeze()
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        before = private()
        for _ in look():
            pass
        os.write(there, str(private() - before).encode())
        os._exit(0)
    gc.unfreeze()
    os.waitpid(child, 0)
    return int(os.read(here, 100))


def private() -> int:
    """Private_Dirty of this process, in bytes."""
    (line,) = (line for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if line.startswith("Private_Dirty"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()
