"""`twinview shards`: pack data sets, draw scenes, build indexes, check, count."""
from __future__ import annotations

import argparse
import json

from twinview.cli.commands import Commands, command, group
from twinview.data.prepare.layouts import KINDS
from twinview.errors import DataError
from twinview.paths import expand
from twinview.terminal import answer

CHOICES = ("labels", "split", "classes", "annotations", "fields", "dots", "keys")  # of some kinds of data sets


def add(commands: Commands) -> None:
    """Add `shards` and its commands to the command line."""
    under = group(commands, "shards", "make and look after shards")
    made = command(under, "pack", pack, "pack a data set into shards")
    made.add_argument("kind", metavar="KIND", choices=KINDS, help="; ".join(f"{kind}: {what}" for kind, what in KINDS.items()))
    made.add_argument("source", metavar="SOURCE", help="the data set's folder; for webdataset the paths of its shards")
    made.add_argument("out", metavar="OUT", help="an empty or new folder")
    made.add_argument("--labels", metavar="DIR", help="images: label maps (.png), the same names")
    made.add_argument("--split", metavar="NAME", help="where the data set has splits (default: its training images)")
    made.add_argument("--annotations", metavar="FILE", help="coco: an annotation file of another name")
    made.add_argument("--fields", metavar="NEW=OLD,...", help="webdataset: the files of a sample to keep, such as jpg=left.jpg,json (default: all)")
    made.add_argument("--dots", metavar="WHICH", help="webdataset: a key ends at the first dot of a name (default), or at the last")
    made.add_argument("--keys", metavar="WHAT", help="webdataset: own (default), or shard, which puts the shard's name before them")
    made.add_argument("--classes", metavar="N", type=int, help="cityscapes: 19, 27 or 34 (default: 19)")
    made.add_argument("--shard-size", metavar="N", type=int, default=1000, help="most samples in a shard (default: 1000)")
    made.add_argument("--shorter-side", metavar="N", type=int, help="pixels to shrink larger images to, as JPEG (default: bytes stay as they are)")
    made.add_argument("--quality", metavar="Q", type=int, help="1 to 100: write every image as a JPEG of it (default: shrunk ones, of 90)")
    made.add_argument("--workers", metavar="N", type=int, default=1, help="threads (default: 1); the shards are the same")
    made.add_argument("--bad-samples", metavar="N", type=int, default=0, help="most samples to leave out where they cannot be read (default: 0)")
    made = command(under, "scenes", scenes, "draw street scenes with label maps, as shards")
    made.add_argument("out", metavar="OUT", help="an empty or new folder")
    made.add_argument("--count", metavar="N", type=int, default=1600, help="images (default: 1600)")
    made.add_argument("--size", metavar="HxW", default="160x240", help="pixels (default: 160x240)")
    made.add_argument("--seed", metavar="N", type=int, default=0)
    made = command(under, "index", index, "build (again) the index beside each shard")
    made.add_argument("shards", metavar="SHARDS", nargs="+", help="paths with {000..063}, or a folder")
    made = command(under, "check", check, "read all of some shards, and name what is wrong with them")
    made.add_argument("shards", metavar="SHARDS", nargs="+", help="paths with {000..063}, or a folder")
    made.add_argument("--workers", metavar="N", type=int, default=1, help="threads (default: 1)")
    made = command(under, "stat", stat, "count samples, fields, bytes, sizes and classes")
    made.add_argument("shards", metavar="SHARDS", nargs="+", help="paths with {000..063}, or a folder")
    made.add_argument("--images", metavar="N", type=int, default=1000, help="most samples to look into, evenly spaced (default: 1000)")
    made.add_argument("--out", metavar="FILE.png", help="draw some samples")
    made.add_argument("--json", action="store_true", help="the counts as JSON")


def pack(args: argparse.Namespace) -> None:
    """Pack a data set into shards."""
    from twinview.data.prepare.pack import pack as write
    from twinview.data.writing.prepare_sample import Recode
    from twinview.data.writing.writer import Options

    recode = Recode(shorter_side=args.shorter_side, quality=args.quality)
    options = Options(shard_size=args.shard_size, recode=recode, workers=args.workers, bad_samples=args.bad_samples)
    chosen = {name: value for name in CHOICES if (value := getattr(args, name)) is not None}
    chosen |= {name: str(expand(chosen[name], f"--{name}")) for name in ("labels", "annotations") if name in chosen}
    source = args.source if args.kind == "webdataset" else str(expand(args.source, "SOURCE"))  # shards are expanded where they are opened
    answer(write(args.kind, source, expand(args.out, "OUT"), options, **chosen).text())


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
    import attrs

    from twinview.data.prepare.stats import count, draw_sheet

    found = count(args.shards, args.images)
    answer(json.dumps(attrs.asdict(found), indent=1) if args.json else "\n".join(found.lines()))
    if args.out:
        draw_sheet(args.shards, expand(args.out, "--out"))
        if not args.json:
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
    found = write_scenes(expand(args.out, "OUT"), count=args.count, size=(int(height), int(width)), seed=args.seed)
    answer(found.text())


def index(args: argparse.Namespace) -> None:
    """Build the index beside each shard, whether or not there is one."""
    from twinview.data.dataset.open import open_shards

    found = open_shards(args.shards, rebuild=True)
    answer(f"{len(found.paths)} shards, {len(found)} samples, fields {', '.join(sorted(found.fields))}")
