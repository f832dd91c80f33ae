"""`twinview show`: pictures of views and of what a run's parts do with images."""
from __future__ import annotations

import argparse
from pathlib import Path

from twinview.cli.commands import Commands, command
from twinview.errors import RecipeError, TwinviewError, closest
from twinview.paths import expand
from twinview.terminal import answer


def add(commands: Commands) -> None:
    """Add `show` to the command line."""
    made = command(commands, "show", show, "draw pictures of a recipe's views, or of what a run does with images")
    made.add_argument("what", metavar="WHAT", help="views, or a picture that a part of the run offers, for example clusters")
    made.add_argument("of", metavar="RECIPE|RUN", help="for views a recipe (or a run's folder), else a run's folder")
    made.add_argument("overrides", metavar="key=value", nargs="*", help="keys of the recipe, for example data.shards=DIR")
    made.add_argument("--out", metavar="FILE", help="the picture (default: in the run's pictures, or WHAT.png here)")
    made.add_argument("--images", metavar="N", type=int, default=6, help="images (default: 6)")


def show(args: argparse.Namespace) -> None:
    """Draw `views` of a recipe or run, or a picture that a part of a run offers."""
    if args.images < 1:
        raise TwinviewError(f"--images: wants a number above 0, not {args.images}.")
    if args.out and Path(args.out).suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise TwinviewError(f"--out: wants a file that ends in .png or .jpg, not {args.out!r}.")
    of = expand(args.of, args.what)
    is_run = (of / "recipe.toml").is_file()
    if args.what != "views" and not is_run:
        raise TwinviewError(f"{of}: there is no run here. `twinview show {args.what}` wants the folder that `twinview train` wrote.")
    from twinview.analysis.figures import draw
    from twinview.engine.run_recipe import run_recipe
    from twinview.recipe import read

    recipe = run_recipe(of, args.overrides) if is_run else read(args.of, args.overrides)
    found = draw(recipe, of if is_run else None, images=args.images)
    if args.what not in found:
        raise RecipeError(f"show {args.what}: no part of this run draws it.{closest(args.what, ['views', *found])}")
    out = expand(args.out, "--out") if args.out else (of / "pictures" if is_run else Path()) / f"{args.what}.png"
    out.parent.mkdir(parents=True, exist_ok=True)
    found[args.what].save(out)
    answer(out)
