"""`twinview shards`: pack data sets, draw scenes, build indexes, check, count."""
from __future__ import annotations

import argparse
from pathlib import Path

from twinview.errors import DataError
from twinview.terminal import answer

CHOICES = ("labels", "split", "classes", "annotations", "fields", "dots", "keys")  # of some kinds of data sets


def pack(args: argparse.Namespace) -> None:
    """Pack a data set into shards."""
    from twinview.data.prepare.pack import pack as write
    from twinview.data.writing.prepare_sample import Recode
    from twinview.data.writing.writer import Options

    recode = Recode(shorter_side=args.shorter_side, quality=args.quality)
    options = Options(shard_size=args.shard_size, recode=recode, workers=args.workers, bad_samples=args.bad_samples)
    chosen = {name: value for name in CHOICES if (value := getattr(args, name)) is not None}
    answer(write(args.kind, args.source, Path(args.out), options, **chosen).text())


def check(args: argparse.Namespace) -> None:
    """Name what is wrong with shards."""
    from twinview.data.prepare.check import check_shards

    found = check_shards(args.shards, workers=args.workers)
    for fault in found.faults:
        answer(fault)
    if found.faults:
        raise DataError(f"{len(found.faults)} faults in {found.text()}.")
    answer(f"{found.text()}: nothing wrong")


def stat(args: argparse.Namespace) -> None:
    """Count what shards hold, and draw some of it."""
    from twinview.data.prepare.stats import count, draw_sheet

    answer("\n".join(count(args.shards, args.images).lines()))
    if args.out:
        draw_sheet(args.shards, Path(args.out))
        answer(f"picture     {args.out}")


def scenes(args: argparse.Namespace) -> None:
    """Draw street scenes into shards."""
    from twinview.data.scenes.shards import write_scenes

    height, x, width = args.size.partition("x")
    if not (x and height.isdigit() and width.isdigit() and min(int(height), int(width)) >= 32):
        raise DataError(f"--size: wants HEIGHTxWIDTH in pixels, each at least 32, for example 160x240, not {args.size!r}.")
    if args.count < 1:
        raise DataError(f"--count: wants a number of at least 1, not {args.count}.")
    if args.seed < 0:
        raise DataError(f"--seed: wants a number of at least 0, not {args.seed}.")
    found = write_scenes(Path(args.out), count=args.count, size=(int(height), int(width)), seed=args.seed)
    answer(found.text())


def index(args: argparse.Namespace) -> None:
    """Build the index beside each shard, whether or not there is one."""
    from twinview.data.dataset.open import open_shards

    found = open_shards(args.shards, rebuild=True)
    answer(f"{len(found.paths)} shards, {len(found)} samples, fields {', '.join(sorted(found.fields))}")
