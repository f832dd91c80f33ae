"""What 10 million, 100 million and a billion samples cost before the first batch: memory, time, growth.

    python benchmarks/scale.py                        # a few minutes, and 1 GB of small files in the temporary folder

`order`: the first batch of 4096 in the middle of an epoch, and the million samples after it, 10 000 samples a shard.  Format 1 sorts the epoch whole;
it is measured as far as --sorted.  `index`: a catalog of so many samples whose files are sparse (zeros that take no disk): opened, a resume in the
middle of an epoch up to the keys of its first batch, and 100 000 keys anywhere.  `write` ... `batch`: real tars of 4 samples, opened without any
index, with the shards' own indexes, with the catalog, and a first batch that is read from them.  Every figure is of a process of its own.  Memory, in
10^6 bytes: what the process has taken for itself (RssAnon), what it has of mapped files at the end (RssFile, which is shared, and given back when
memory is short), and the most of both at once.
"""
from __future__ import annotations

import argparse
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from twinview.data.dataset.open import open_shards
from twinview.data.dataset.order import BatchSampler
from twinview.data.dataset.orders import shuffled
from twinview.data.dataset.shards import Shards
from twinview.data.store import catalog
from twinview.machine import cores

RESULTS = Path(__file__).with_name("results") / "scale.json"
SIZES = (10**7, 10**8, 10**9)
SHARD, BATCH, KEY = 10_000, 4096, 20  # samples of a shard and of a batch, bytes of a key
Row = dict[str, Any]


def main() -> None:
    """Measure every case in a process of its own, print it, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--sorted", type=int, default=10**7, help="most samples of format 1")
    parser.add_argument("--shards", type=int, nargs="*", default=[10_000, 100_000], help="real tars")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        name, *numbers = args.case.split(":")
        print(json.dumps(CASES[name](*map(int, numbers))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TWINVIEW_CACHE"] = os.environ["TWINVIEW_SCALE"] = folder
        cases = [f"order:{n}:{window}:{number}" for n in args.sizes for number in (1, 2) for window in (0, 16) if number == 2 or n <= args.sorted]
        cases += [f"index:{n}" for n in args.sizes]
        cases += [f"{what}:{n}" for n in args.shards for what in ("write", "bare", "indexed", "mapped", "batch")]
        for case in cases:
            said = subprocess.run([sys.executable, __file__, "--case", case], stdout=subprocess.PIPE, check=True, text=True).stdout
            rows.append({"case": case, **json.loads(said)})
            print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()), flush=True)
    about = {
        "command": " ".join(["python benchmarks/scale.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {cores()} cores, load {os.getloadavg()[1]:.0f}, Python {platform.python_version()}",
    }
    args.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


class Watch:
    """Wall and CPU seconds, and memory, since it was made."""

    def __init__(self) -> None:
        self.before = memory()
        self.start()

    def start(self) -> None:
        """Count from now on."""
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def times(self, what: str) -> Row:
        """Seconds since `start`, which begins anew."""
        found = {f"{what}_s": time.perf_counter() - self.wall, f"{what}_cpu_s": time.process_time() - self.cpu}
        self.start()
        return found

    def memory(self) -> Row:
        """Growth."""
        after = memory()
        return {f"{name}_mb": (after[key] - self.before[key]) / 1e6 for name, key in (("own", "RssAnon"), ("mapped", "RssFile"), ("peak", "VmHWM"))}


def memory() -> dict[str, int]:
    """Bytes of this process, as the kernel counts them."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {name.rstrip(":"): 1024 * int(rest[0]) for name, *rest in lines if name in ("RssAnon:", "RssFile:", "VmHWM:")}


def order(n: int, window: int, number: int) -> Row:
    """The middle of an epoch."""
    starts = np.arange(n // SHARD + 1) * SHARD
    watch = Watch()
    epoch = shuffled(starts, 0, window, number).epoch(3, n)
    epoch[n // 2 : n // 2 + BATCH]
    row = watch.times("first_batch")
    for at in range(n // 2, n // 2 + 10**6, BATCH):
        epoch[at : at + BATCH]
    return {**row, "us_a_sample": watch.times("more")["more_cpu_s"], **watch.memory()}


def index(n: int) -> Row:
    """A catalog of sparse files."""
    folder = Path(os.environ["TWINVIEW_SCALE"]) / f"sparse-{n}"
    folder.mkdir()
    for name, kind in catalog.TYPES.items():
        per_shard = {"keys": SHARD * KEY, "key_starts": SHARD + 1, "members": SHARD + 1}.get(name, SHARD)
        (folder / name).touch()
        os.truncate(folder / name, n // SHARD * per_shard * np.dtype(kind).itemsize)
    shard = [SHARD, SHARD, SHARD * KEY, 0, 1, 1, 0]
    catalog.finish(folder, np.tile(np.array(shard, np.int64), (n // SHARD, 1)), [["jpg"]], "0")
    watch = Watch()
    found = catalog.Catalog(folder)
    shards = Shards([Path(f"{s:06}.tar") for s in range(len(found))], found)
    row = watch.times("open")
    plan = BatchSampler(order=shards.order(0, 16, 2), global_batch=BATCH, accumulation=1, rank=0, world=1)
    batch = next(plan.batches(3 * plan.steps + plan.steps // 2))
    keys = [shards.key(number) for _, number in batch]
    row |= watch.times("resume")
    assert len(keys) == BATCH
    for i in np.random.default_rng(0).integers(0, n, 100_000).tolist():
        shards.key(i)
    return {**row, "us_a_key": 10 * watch.times("keys")["keys_cpu_s"], "disk_gb_if_full": found.nbytes / 1e9, **watch.memory()}


def tars(n: int) -> Path:
    """The folder of real tars."""
    return Path(os.environ["TWINVIEW_SCALE"]) / f"tars-{n}"


def write(n: int) -> Row:
    """Tars of four samples."""
    watch = Watch()
    for s in range(n):
        file = io.BytesIO()
        for i in range(4):
            info = tarfile.TarInfo(f"{s:06}/{i:04}.jpg")
            info.size = 512
            file.write(info.tobuf() + bytes(512))
        path = tars(n) / f"{s // 1000:03}" / f"{s:06}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.getvalue() + bytes(1024))
    return watch.times("write")


def opened(n: int) -> tuple[Row, Shards]:
    """Open them."""
    watch = Watch()
    shards = open_shards(f"{tars(n)}/{{000..{n // 1000 - 1:03}}}")
    assert len(shards) == 4 * n
    return {**watch.times("open"), **watch.memory()}, shards


def indexed(n: int) -> Row:
    """Without a catalog."""
    for kept in (Path(os.environ["TWINVIEW_CACHE"]) / "catalogs").glob("*"):
        kept.rename(Path(os.environ["TWINVIEW_SCALE"]) / f"old-{n}-{kept.name}")
    return opened(n)[0]


def batch(n: int) -> Row:
    """A resume in the middle of an epoch, to the bytes of its first batch."""
    watch = Watch()
    shards = opened(n)[1]
    plan = BatchSampler(order=shards.order(0, 0, 2), global_batch=min(BATCH, n), accumulation=1, rank=0, world=1)
    places = next(plan.batches(plan.steps + plan.steps // 2))
    row = watch.times("to_the_order")
    for _, number in places:
        shards.read(number)
    return {**row, **watch.times("read"), **watch.memory()}


CASES: dict[str, Callable[..., Row]] = {
    "order": order, "index": index, "write": write, "bare": lambda n: opened(n)[0], "indexed": indexed, "mapped": lambda n: opened(n)[0],
    "batch": batch,
}

if __name__ == "__main__":
    main()
