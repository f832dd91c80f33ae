"""`twinview shards`: pack data sets, draw scenes, build indexes, check, count."""
from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from twinview.cli.commands import Commands, command, group
from twinview.data.prepare.layouts import KINDS
from twinview.errors import DataError
from twinview.paths import expand
from twinview.terminal import answer

if TYPE_CHECKING:
    from twinview.data.prepare.check import Checked
    from twinview.data.writing.parts import Part

CHOICES = ("labels", "split", "classes", "annotations", "objects", "fields", "dots", "keys")  # of some kinds of data sets


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
    made.add_argument("--objects", action="store_true", default=None, help="voc, bdd100k, cityscapes: with boxes and masks, as COCO's annotations")
    made.add_argument("--fields", metavar="NEW=OLD,...", help="webdataset: the files of a sample to keep, such as jpg=left.jpg,json (default: all)")
    made.add_argument("--dots", metavar="WHICH", help="webdataset: a key ends at the first dot of a name (default), or at the last")
    made.add_argument("--keys", metavar="WHAT", help="webdataset: own (default), or shard, which puts the shard's name before them")
    made.add_argument("--classes", metavar="N", type=int, help="cityscapes: 19, 27 or 34 (default: 19)")
    made.add_argument("--shard-size", metavar="N", type=int, default=1000, help="most samples in a shard (default: 1000)")
    made.add_argument("--shorter-side", metavar="N", type=int, help="pixels to shrink larger images to, as JPEG (default: bytes stay as they are)")
    made.add_argument("--quality", metavar="Q", type=int, help="1 to 100: write every image as a JPEG of it (default: shrunk ones, of 90)")
    made.add_argument("--workers", metavar="N", type=int, default=1, help="threads (default: 1); the shards are the same")
    made.add_argument("--bad-samples", metavar="N", type=int, default=0, help="most samples to leave out where they cannot be read (default: 0)")
    _add_part(made, "pack", "beside OUT; `shards join OUT` makes OUT of all parts")
    made = command(under, "join", join, "make one of the parts that several machines packed or checked")
    made.add_argument("out", metavar="OUT", help="the folder that parts were packed for, or that parts of a check were written to")
    made = command(under, "scenes", scenes, "draw street scenes with label maps, as shards")
    made.add_argument("out", metavar="OUT", help="an empty or new folder")
    made.add_argument("--count", metavar="N", type=int, default=1600, help="images (default: 1600)")
    made.add_argument("--size", metavar="HxW", default="160x240", help="pixels (default: 160x240)")
    made.add_argument("--seed", metavar="N", type=int, default=0)
    made = command(under, "index", index, "build (again) the index beside each shard")
    made.add_argument("shards", metavar="SHARDS", nargs="+", help="paths with {000..063}, or a folder")
    _add_part(made, "index", "the others are left alone; nothing is to be joined")
    made = command(under, "check", check, "read all of some shards, and name what is wrong with them")
    made.add_argument("shards", metavar="SHARDS", nargs="+", help="paths with {000..063}, or a folder")
    made.add_argument("--workers", metavar="N", type=int, default=1, help="threads (default: 1)")
    _add_part(made, "check", "with --out; `shards join DIR` says what all parts found, and compares keys over all shards")
    made.add_argument("--out", metavar="DIR", help="with --part: a folder for all parts to leave their findings in")
    made = command(under, "stat", stat, "count samples, fields, bytes, sizes and classes")
    made.add_argument("shards", metavar="SHARDS", nargs="+", help="paths with {000..063}, or a folder")
    made.add_argument("--images", metavar="N", type=int, default=1000, help="most samples to look into, evenly spaced (default: 1000)")
    made.add_argument("--out", metavar="FILE.png", help="draw some samples")
    made.add_argument("--json", action="store_true", help="the counts as JSON")


def _add_part(made: argparse.ArgumentParser, what: str, then: str) -> None:
    made.add_argument("--part", metavar="K/N", help=f"{what} one part of N, from 1/N to N/N, for an array of jobs: {then}")


def _part(args: argparse.Namespace) -> Part | None:
    from twinview.data.writing.parts import Part

    return None if args.part is None else Part.read(args.part)


def join(args: argparse.Namespace) -> None:
    """Make one of parts."""
    from twinview.data.prepare.check import CHECKED, join_checks
    from twinview.data.prepare.join import join_shards

    out = expand(args.out, "OUT")
    if out.is_dir() and any(out.glob(f"*{CHECKED}")):
        _say_checked(join_checks(out))
    else:
        answer(join_shards(out).text())


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
    answer(write(args.kind, source, expand(args.out, "OUT"), options, part=_part(args), **chosen).text())


def check(args: argparse.Namespace) -> None:
    """Name what is wrong with shards."""
    from twinview.data.prepare.check import check_part, check_shards

    if (args.part is None) != (args.out is None):
        raise DataError("--part, --out: go together: --part 1/8 --out found, for each part, and then `twinview shards join found`.")
    if (part := _part(args)) is not None:
        _say_checked(check_part(args.shards, expand(args.out, "--out"), part, workers=args.workers))
    else:
        _say_checked(check_shards(args.shards, workers=args.workers))


def _say_checked(found: Checked) -> None:
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
    from twinview.data.prepare.join import index_part

    if (part := _part(args)) is not None:
        count, samples, fields = index_part(args.shards, part)
    else:
        found = open_shards(args.shards, rebuild=True)
        count, samples, fields = len(found.paths), len(found), found.fields
    answer(f"{count} shards, {samples} samples, fields {', '.join(sorted(fields))}")
