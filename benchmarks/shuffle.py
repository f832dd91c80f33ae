"""How good an epoch's shuffle is, and what it costs a disk: `window = 0` and windows of shards, beside true permutations and a shuffle buffer.

    python benchmarks/shuffle.py

Statistics over many epochs, relative to true permutations (1 = as good): `distance`, the mean |position - place in the shards|; `same_shard`,
pairs of one shard in a batch; `neighbors`, pairs that stand next to each other in a shard, in a batch.  `buffer`: shards shuffled and read one
after another through a buffer of that many samples, as streaming loaders do.  Cost: `fetches`, how often a cache that holds so many whole shards must
fetch one, for each shard and epoch (1 = every shard once).  `reads` were counted on real shards by the kernel (/proc/self/io): bytes and calls for
each sample that was read, whatever the order.
"""
from __future__ import annotations

import argparse
import io
import json
import os
import platform
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinview.data.dataset.open import open_shards
from twinview.data.dataset.orders import shuffled
from twinview.data.writing.writer import Options, write_shards
from twinview.machine import cores

RESULTS = Path(__file__).with_name("results") / "shuffle.json"
Order = Callable[[int], NDArray[np.int64]]  # of an epoch


def main() -> None:
    """Measure, print, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=128)
    parser.add_argument("--samples", type=int, default=1000, help="of a shard")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--cache", type=int, default=16, help="shards that the cache holds")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    starts = np.arange(args.shards + 1) * args.samples
    orders: dict[str, Order] = {"true permutations": lambda epoch: np.random.default_rng([7, epoch]).permutation(int(starts[-1]))}
    for number in (2, 1):
        for window in (0, 64, 16, 4, 1):
            orders[f"window = {window}" + " (format 1)" * (number == 1)] = whole(starts, window, number)
    for size in (10_000, 1000):
        orders[f"buffer {size}"] = lambda epoch, size=size: buffered(starts, size, epoch)  # type: ignore[misc]
    rows = {name: statistics(order, args) for name, order in orders.items()}
    true = rows["true permutations"]
    for name, row in rows.items():
        row.update({f"{what} / true": row[what] / true[what] for what in ("distance", "same_shard", "neighbours")})
        print(f"{name:<22}", "  ".join(f"{what} {value:.4g}" for what, value in row.items()))
    about = {
        "command": " ".join(["python benchmarks/shuffle.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {cores()} cores, load {os.getloadavg()[1]:.0f}, Python {platform.python_version()}",
    }
    found = {**about, **{k: v for k, v in vars(args).items() if k != "out"}, "orders": rows, "reads": reads()}
    print(found["reads"])
    args.out.write_text(json.dumps(found, indent=1) + "\n")


def whole(starts: NDArray[np.int64], window: int, number: int) -> Order:
    """All of an epoch, in a format of the order."""
    order = shuffled(starts, 0, window, number)
    return lambda epoch: order.epoch(epoch, order.samples)[: order.samples]


def statistics(order: Order, args: argparse.Namespace) -> dict[str, float]:
    """Means over the epochs."""
    total, cpu = args.shards * args.samples, 0.0
    rows = []
    for epoch in range(args.epochs):
        started = time.process_time()
        read = order(epoch)
        cpu += time.process_time() - started
        assert len(read) == total and len(np.unique(read)) == total
        position = np.empty(total, np.int64)
        position[read] = np.arange(total)
        batches = read[: total // args.batch * args.batch].reshape(-1, args.batch) // args.samples
        counts = np.stack([np.bincount(batch, minlength=args.shards) for batch in batches])
        together = (position[1:] // args.batch == position[:-1] // args.batch) & (np.arange(1, total) % args.samples != 0)
        rows.append((
            np.abs(position - np.arange(total)).mean() / total,
            (counts * (counts - 1)).sum(1).mean() / (args.batch * (args.batch - 1)),
            together.mean(),
            (counts > 0).sum(1).mean(),
            fetches(read // args.samples, args.cache) / args.shards,
        ))
    names = ("distance", "same_shard", "neighbours", "shards_of_a_batch", "fetches")
    return {**dict(zip(names, np.mean(rows, 0).tolist())), "ms_an_epoch": 1000 * cpu / args.epochs}


def fetches(shards: NDArray[np.int64], room: int) -> int:
    """How often a cache of `room` whole shards, the longest unused leaving first, has to fetch one."""
    held, count = OrderedDict[int, None](), 0
    for shard in shards.tolist():
        if shard not in held:
            count += 1
            if len(held) == room:
                held.popitem(last=False)
        held[shard] = None
        held.move_to_end(shard)
    return count


def buffered(starts: NDArray[np.int64], size: int, epoch: int) -> NDArray[np.int64]:
    """Shards in a shuffled order through a buffer out of which each next sample is drawn at random."""
    rng = np.random.default_rng([11, epoch])
    stream = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in rng.permutation(len(starts) - 1)])
    held, out = stream[:size].copy(), np.empty_like(stream)
    places = rng.integers(0, size, len(stream) - size)
    for n, (place, sample) in enumerate(zip(places.tolist(), stream[size:].tolist())):
        out[n] = held[place]
        held[place] = sample
    out[len(stream) - size :] = rng.permutation(held)
    return out


def reads(samples: int = 2000) -> dict[str, Any]:
    """Bytes and calls that reading real shards takes."""
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).resize((240, 180)).save(file, "JPEG", quality=90)
    picture = file.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        entries = ((f"{i:05}", {"jpg": picture, "json": b" " * 500}) for i in range(samples))
        write_shards(entries, Path(folder) / "shards", total=samples, options=Options(shard_size=samples // 8), what="write")
        shards = open_shards(str(Path(folder) / "shards"))
        size = sum(path.stat().st_size for path in (Path(folder) / "shards").glob("*.tar"))
        order = whole(shards.starts, 0, 2)(0)
        shards.read(0)
        before, started = counted(), time.process_time()
        for i in order.tolist():
            shards.read(i, ("jpg",))
        seconds, after = time.process_time() - started, counted()
    spent = [(after[what] - before[what]) / samples for what in ("rchar", "syscr")]
    return {"samples": samples, "bytes_of_an_image": len(picture), "bytes_in_the_tar_for_each": size / samples,
            "bytes_read_for_each": spent[0], "calls_for_each": spent[1], "us_for_each": 1e6 * seconds / samples}


def counted() -> dict[str, int]:
    """What the kernel counts of this process."""
    return {name: int(value) for name, value in (line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())}


if __name__ == "__main__":
    main()
