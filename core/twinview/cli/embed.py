"""`twinview embed`: features of images as a file; near duplicates and outliers."""
from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from twinview.cli.commands import TARGET, Commands, command
from twinview.cli.sizes import size_of
from twinview.errors import TwinviewError
from twinview.paths import expand
from twinview.terminal import answer

if TYPE_CHECKING:
    from twinview.analysis.features.embed import Options
    from twinview.analysis.targets import Target


def add(commands: Commands) -> None:
    """Add `embed` to the command line."""
    made = command(commands, "embed", embed, "write features of your images to a file, or list near duplicates and outliers among them")
    made.add_argument("target", metavar="TARGET", help=TARGET)
    made.add_argument("images", metavar="IMAGES", nargs="+", help="a folder of images, or shards; encoder.key=value: options of the target's network")
    made.add_argument("--out", metavar="FILE", help="the features: .parquet, .h5 or .npy")
    kinds = "pooled, cells, c2 ..., cells.mean, token, token.N"
    made.add_argument("--features", metavar="NAMES", default="pooled", help=f"of {kinds}; with commas (default: pooled)")
    made.add_argument("--duplicates", metavar="DIR", help="a folder for lists and pictures of near duplicates and outliers")
    made.add_argument("--threshold", metavar="R", type=float, default=0.94, help="correlation of pixels from which two are copies (default: 0.94)")
    made.add_argument("--size", metavar="H|HxW", help="pixels of the images (default: as the target was trained)")
    made.add_argument("--whole", action="store_true", help="squeeze the whole image into that size instead of cutting out its middle")
    made.add_argument("--half", action="store_true", help="numbers of 16 bits")
    made.add_argument("--step", metavar="N", type=int, help="of a run: the checkpoint of this step (default: the last)")
    made.add_argument("--branch", choices=["online", "target"], default="online", help="of a run (default: online)")
    made.add_argument("--batch-size", metavar="N", type=int, default=64, help="images that the encoder sees at once (default: 64)")
    made.add_argument("--workers", metavar="N", type=int, default=2, help="processes that read images, on each rank (default: 2)")
    made.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="(default: auto)")
    made.add_argument("--ranks", metavar="N", type=int, default=1, help="processes on this machine (default: 1; launchers set their own)")
    made.add_argument("--bad-images", metavar="N", type=int, default=100, help="images that may fail to decode and are left out (default: 100)")
    made.add_argument("--json", action="store_true", help="say what came of it as JSON")


def embed(args: argparse.Namespace) -> None:
    """Write features, duplicates, or both."""
    for name, least in (("batch_size", 1), ("workers", 0), ("ranks", 1), ("bad_images", 0)):
        if getattr(args, name) < least:
            raise TwinviewError(f"--{name.replace('_', '-')}: wants a number of at least {least}, not {getattr(args, name)}.")
    if not (args.out or args.duplicates):
        raise TwinviewError("embed: say what is wanted: --out features.parquet, or --duplicates DIR.")
    if args.duplicates:
        _check_duplicates(args)
    if not args.out and (args.half or args.features != "pooled"):
        raise TwinviewError("embed: --features and --half are of --out, and no file is named. Add --out, or leave them out.")
    if not 0 < args.threshold <= 1:
        raise TwinviewError(f"--threshold: wants a number above 0, up to 1, not {args.threshold:g}.")
    from twinview.analysis.features.embed import Options
    from twinview.analysis.targets import find_target

    size = size_of(args.size) if args.size else None
    names = tuple(dict.fromkeys(name for name in args.features.split(",") if name))
    options = Options(
        features=names, size=size, crop=not args.whole, half=args.half, batch_size=args.batch_size, workers=args.workers, device=args.device,
        bad_images=args.bad_images,
    )
    overrides = [word for word in args.images if re.match(r"(encoder|data)\.\w+=", word)]
    args.images = [word for word in args.images if word not in overrides]
    if not args.images:
        raise TwinviewError("embed: name a folder of images, or shards, behind the target.")
    target = find_target(args.target, overrides, step=args.step, branch=args.branch)
    said = (_write(args, target, options) if args.out else {}) | (_duplicates(args, target, options) if args.duplicates else {})
    if said:
        answer(json.dumps(said) if args.json else "\n".join(f"{name:<11} {value}" for name, value in said.items()))


def _write(args: argparse.Namespace, target: Target, options: Options) -> dict[str, object]:
    from twinview.analysis.features.choose import check_names
    from twinview.analysis.features.embed import embed_to, open_images
    from twinview.analysis.features.files import check_out, check_replaced
    from twinview.engine.distributed.launch import launch
    from twinview.engine.distributed.process import leave
    from twinview.machine import rank_variable

    out = expand(args.out, "--out")
    check_names(target.encoder, options.features)
    check_out(out, options.features)
    check_replaced(out)
    images = open_images(args.images)
    total = launch(args.ranks, lambda: embed_to(target, images, out, options), device=args.device)
    leave()
    return {"features": str(out), "images": total} if rank_variable("RANK") == 0 else {}


def _check_duplicates(args: argparse.Namespace) -> None:
    """What --duplicates cannot be asked with, before hours of features are written."""
    from twinview.data.dataset.open import expand as braces
    from twinview.machine import rank_variable

    if args.ranks > 1:
        raise TwinviewError("--ranks: near duplicates are looked for in one process. Leave --ranks out, or --duplicates.")
    if rank_variable("RANK") or rank_variable("WORLD_SIZE", 1) > 1:
        raise TwinviewError("--duplicates: is looked for in one process. Leave the launcher out.")
    folder: Path = expand(args.duplicates, "--duplicates")
    if folder.is_file():
        raise TwinviewError(f"--duplicates: {folder} is a file. Name a folder.")
    for word in (one for name in args.images for one in braces(name.removeprefix("images:"))):
        images = expand(word, "IMAGES")
        if images.is_dir() and folder.resolve().is_relative_to(images.resolve()):
            where = "is that of the images" if folder.resolve() == images.resolve() else f"lies in {images}, which holds the images"
            raise TwinviewError(f"--duplicates: {folder} {where}, and pictures written there would be among them. Name a folder beside it.")


def _duplicates(args: argparse.Namespace, target: Target, options: Options) -> dict[str, object]:
    import attrs

    from twinview.analysis.features.curation_files import write_curation
    from twinview.analysis.features.duplicates import curate
    from twinview.analysis.features.embed import embed as features_of
    from twinview.analysis.features.embed import open_images
    from twinview.data.formats.decode import PixelFormat

    folder: Path = expand(args.duplicates, "--duplicates")
    images = open_images(args.images)
    found = features_of(target, images, attrs.evolve(options, features=("pooled",), half=False, mirrored=True))
    form = PixelFormat(target.transform.channels, target.transform.white)
    curation = curate(found.features["pooled"], images, found.ids, form, threshold=args.threshold)
    written = write_curation(folder, curation, images, found.keys, found.ids.tolist(), form)
    copies = sum(len(group) - 1 for group in curation.groups)
    where = {path.name: str(path) for path in written}
    return {"images": len(found.keys), "duplicates": f"{copies} copies in {len(curation.groups)} groups", "outliers": len(curation.outliers), **where}
