"""`twinview show`: pictures of views and of what a run's parts do with images, and the page of a run."""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from twinview.cli.commands import Commands, command
from twinview.errors import RecipeError, TwinviewError, closest
from twinview.paths import expand
from twinview.terminal import answer, say

if TYPE_CHECKING:
    from twinview.analysis.report.page import Picture

    Drawn = tuple[dict[str, list[Picture]], list[str]]

PAGE_IMAGES, SHEET_IMAGES = 160, 6


def add(commands: Commands) -> None:
    """Add `show` to the command line."""
    made = command(commands, "show", show, "write the page of a run, or draw pictures of views and of what a run does with images")
    made.add_argument("what", metavar="WHAT", help="run (a page of everything), views, or a picture that a part offers, for example clusters")
    made.add_argument("of", metavar="RECIPE|RUN", help="for views a recipe (or a run's folder), else a run's folder")
    made.add_argument("overrides", metavar="key=value", nargs="*", help="keys of the recipe, for example data.shards=DIR")
    made.add_argument("--out", metavar="FILE", help="the page or the picture (default: in the run's folder, or WHAT.png here)")
    made.add_argument("--images", metavar="N", type=int, help=f"images (default: {SHEET_IMAGES} of a picture, {PAGE_IMAGES} of a page)")
    made.add_argument("--no-pictures", action="store_true", help="of a page: only what the run has written, without making its network")
    made.add_argument("--serve", action="store_true", help="show the page at an address of this machine, and keep it fresh while the run goes on")
    made.add_argument("--port", metavar="N", type=int, default=0, help="of --serve (default: any that is free)")


def show(args: argparse.Namespace) -> None:
    """Draw `views` of a recipe or run, a picture that a part of a run offers, or the page of a run."""
    if args.images is not None and args.images < 1:
        raise TwinviewError(f"--images: wants a number above 0, not {args.images}.")
    if args.what != "run" and (args.no_pictures or args.serve or args.port):
        raise TwinviewError("--no-pictures, --serve and --port are of `twinview show run`. Leave them out.")
    endings = (".html", ".htm") if args.what == "run" else (".png", ".jpg", ".jpeg")
    if args.out and Path(args.out).suffix.lower() not in endings:
        raise TwinviewError(f"--out: wants a file that ends in {' or '.join(endings[:2])}, not {args.out!r}.")
    of = expand(args.of, args.what)
    is_run = (of / "recipe.toml").is_file()
    if args.what != "views" and not is_run:
        raise TwinviewError(f"{of}: there is no run here. `twinview show {args.what}` wants the folder that `twinview train` wrote.")
    if args.what == "run":
        (serve if args.serve else write)(args, of)
        return
    from twinview.analysis.figures import draw
    from twinview.engine.run_recipe import run_recipe
    from twinview.recipe import read

    recipe = run_recipe(of, args.overrides) if is_run else read(args.of, args.overrides)
    found = draw(recipe, of if is_run else None, images=args.images or SHEET_IMAGES)
    if args.what not in found:
        raise RecipeError(f"show {args.what}: no part of this run draws it.{closest(args.what, ['run', 'views', *found])}")
    out = expand(args.out, "--out") if args.out else (of / "pictures" if is_run else Path()) / f"{args.what}.png"
    out.parent.mkdir(parents=True, exist_ok=True)
    found[args.what].save(out)
    answer(out)


def write(args: argparse.Namespace, run: Path) -> None:
    """The page as a file."""
    from twinview.analysis.report.run_page import run_page
    from twinview.analysis.report.runs import open_run
    from twinview.files import write_text

    if args.port:
        raise TwinviewError("--port: is of --serve. Leave it out, or write --serve too.")
    drawn: Drawn = ({}, []) if args.no_pictures else _drawn(args, run)
    pictures, notes = drawn
    for note in notes:
        say(f"not drawn: {note}")
    out = expand(args.out, "--out") if args.out else run / "report.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    html = run_page(open_run(run), pictures, notes=notes)
    write_text(out, html)
    answer(f"{out} ({len(html) / 1e6:.1f} MB)")


def serve(args: argparse.Namespace, run: Path) -> None:
    """The page at a loopback address, until Ctrl-C."""
    from twinview.analysis.report.serve import Server

    if args.out:
        raise TwinviewError("--out: --serve writes no file. Leave one of the two out.")
    server = Server(run, None if args.no_pictures else lambda: _drawn(args, run), args.port)
    answer(f"{server.url} shows {run} until Ctrl-C")
    try:
        server.serve_forever()
    finally:
        server.server_close()


def _drawn(args: argparse.Namespace, run: Path) -> Drawn:
    from twinview.analysis.report.drawn import draw_run

    return draw_run(run, args.overrides, images=args.images or PAGE_IMAGES)
