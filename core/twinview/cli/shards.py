"""`twinview shards`: pack images, draw scenes, build indexes."""
from __future__ import annotations

import argparse
from pathlib import Path

from twinview.errors import DataError


def pack(args: argparse.Namespace) -> None:
    """Pack a folder of images into shards."""
    from twinview.data.pack import pack_images

    found = pack_images(Path(args.images), Path(args.out), Path(args.labels) if args.labels else None, shard_size=args.shard_size)
    print(found.text())


def scenes(args: argparse.Namespace) -> None:
    """Draw street scenes into shards."""
    from twinview.data.embedded import write_scenes

    height, x, width = args.size.partition("x")
    if not (x and height.isdigit() and width.isdigit() and min(int(height), int(width)) >= 32):
        raise DataError(f"--size: wants HEIGHTxWIDTH in pixels, each at least 32, for example 160x240, not {args.size!r}.")
    if args.count < 1:
        raise DataError(f"--count: wants a number of at least 1, not {args.count}.")
    if args.seed < 0:
        raise DataError(f"--seed: wants a number of at least 0, not {args.seed}.")
    found = write_scenes(Path(args.out), count=args.count, size=(int(height), int(width)), seed=args.seed)
    print(found.text())


def index(args: argparse.Namespace) -> None:
    """Build the index beside each shard, whether or not there is one."""
    from twinview.data.shards import open_shards

    found = open_shards(args.shards, rebuild=True)
    print(f"{len(found.paths)} shards, {len(found)} samples, fields {', '.join(sorted(found.fields))}")
