"""Packing: images a second, of one thread and of several, bytes untouched and shrunk.

    python benchmarks/pack.py --images camvid/images/train --labels camvid/labels/train

The folder is packed `--repeat` times over (as links: the measuring of about 1000 images' colors, which every packing does, comes nearer to its share
in a large set), `--rounds` times each; the fastest round counts, as wall time and as process CPU time.  The shards of any number of workers
are compared, byte for byte.  The result goes to benchmarks/results/pack.json.
"""
from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from twinview.data.prepare.pack import pack_images
from twinview.data.writing.prepare_sample import Recode
from twinview.machine import cores

OUT = Path(__file__).parent / "results" / "pack.json"
CASES = {"untouched": Recode(), "shorter side 256, quality 90": Recode(shorter_side=256), "quality 90": Recode(quality=90)}


def repeated(folder: Path, times: int, to: Path) -> Path:
    """A folder of folders that each link to the files of one."""
    for n in range(times):
        (to / f"{n:02}").mkdir(parents=True)
        for path in sorted(folder.iterdir()):
            (to / f"{n:02}" / path.name).symlink_to(path.resolve())
    return to


def timed(images: Path, labels: Path | None, out: Path, workers: int, recode: Recode) -> tuple[dict[str, Any], list[str]]:
    started, cpu = time.perf_counter(), time.process_time()
    found = pack_images(images, out, labels, name="x", workers=workers, recode=recode)
    wall, spent = time.perf_counter() - started, time.process_time() - cpu
    sums = [shard["sha256"] for shard in json.loads((out / "manifest.json").read_text())["shards"]]
    shutil.rmtree(out)
    rate = {"images_per_second": round(found.images / wall), "per_cpu_second": round(found.images / spent)}
    return {"images": found.images, **rate}, sums


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=Path, required=True)
    options.add_argument("--labels", type=Path)
    options.add_argument("--repeat", type=int, default=8)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    args = options.parse_args()
    os.environ["RANK"] = "1"  # no progress bars
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        images = repeated(args.images, args.repeat, Path(folder) / "images")
        labels = repeated(args.labels, args.repeat, Path(folder) / "labels") if args.labels else None
        for name, recode in CASES.items():
            first: list[str] = []
            for workers in args.workers:
                rounds = [timed(images, labels, Path(folder) / "out", workers, recode) for _ in range(args.rounds)]
                first = first or rounds[0][1]
                same = all(sums == first for _, sums in rounds)
                best = max((row for row, _ in rounds), key=lambda row: row["images_per_second"])
                rows.append({"case": name, "workers": workers, **best, "same_bytes": same})
                print(rows[-1], file=sys.stderr)
    machine = f"{platform.processor() or platform.machine()}, {cores()} cores, load {os.getloadavg()[1]:.0f}, Python {platform.python_version()}"
    command = " ".join(["python benchmarks/pack.py", *sys.argv[1:]])
    OUT.write_text(json.dumps({"command": command, "machine": machine, "rounds": args.rounds, "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
