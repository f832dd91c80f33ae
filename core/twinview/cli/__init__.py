"""The command line: parsed in plain Python, everything heavy imported inside the command that needs it."""
from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn, TypeAlias

from twinview.cli.words import Parser, in_options, tidied, unknown
from twinview.data.prepare.layouts import KINDS
from twinview.errors import Preempted
from twinview.faults import explained
from twinview.terminal import one_line, say
from twinview.version import __version__

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
EPILOG = "A wrong input gets one line and exit code 2.  Recipes by name: `twinview recipes`.  Options of a part: `twinview parts METHOD`."


def parser() -> argparse.ArgumentParser:
    """The whole command line; each command names the module that answers it."""
    top = Parser(prog="twinview", description="Pre-train vision backbones on unlabelled images.", epilog=EPILOG)
    top.add_argument("--version", action="version", version=f"twinview {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, answer: str, text: str, under: Commands = commands) -> argparse.ArgumentParser:
        made = under.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        made.set_defaults(answer=answer)
        return made

    def recipe(made: argparse.ArgumentParser) -> None:
        made.add_argument("recipe", metavar="RECIPE", help="a name from `twinview recipes`, or a .toml file")
        made.add_argument("overrides", metavar="key=value", nargs="*", help="keys of the recipe, for example run.steps=100 views.min_iou=0.4")

    train = command("train", "train.train", "train a recipe")
    recipe(train)
    train.add_argument("--run", metavar="DIR", help="the run's folder (default: runs/RECIPE)")
    train.add_argument("--resume", action="store_true", help="go on where the run stopped")
    train.add_argument("--resume-auto", action="store_true", help="start, or go on if the folder has a run (also written --resume auto)")
    train.add_argument("--ranks", metavar="N", type=int, default=1, help="processes on this machine (default: 1; launchers set their own)")
    train.add_argument("--dry-run", action="store_true", help="one real batch: memory, seconds a step, who answers what; writes nothing")

    plan = command("plan", "plan.plan", "say what a recipe needs of each GPU and of the links between them, and the ZeRO stage to take")
    recipe(plan)
    plan.add_argument("--gpus", metavar="N", type=int, default=1, help="ranks (default: 1)")
    plan.add_argument("--memory", metavar="GIB", type=float, default=0.0, help="of each GPU (default: of the GPU that is here)")
    plan.add_argument("--bandwidth", metavar="GB/S", type=float, default=0.0, help="that a GPU sends: adds seconds of communication")
    plan.add_argument("--json", action="store_true", help="everything in bytes, as JSON")

    recipe(command("check", "recipes.check", "print a recipe as resolved, and who answers each hook"))
    command("recipes", "recipes.recipes", "list the recipes that come with twinview")
    parts = command("parts", "recipes.parts", "list the parts of the installed methods, with their options")
    parts.add_argument("method", metavar="METHOD", nargs="?", help="one method, with options, defaults and docstrings")
    parts.add_argument("--installed", action="store_true", help="only the methods and the distributions that offer them")

    evaluate = command("evaluate", "evaluate.evaluate", "score a run with one evaluation, for example cluster, segment or knn")
    evaluate.add_argument("what", metavar="WHAT", help="an evaluation of `twinview parts`: cluster, or probes.cluster; or one of the run's by name")
    evaluate.add_argument("run", metavar="RUN", help="the folder that `twinview train` wrote")
    evaluate.add_argument("overrides", metavar="key=value", nargs="*", help="options of the evaluation; with a dot, keys of the run's recipe")
    evaluate.add_argument("--shards", metavar="SHARDS", help="shards to score on (its option val)")
    evaluate.add_argument("--step", metavar="N", type=int, help="the checkpoint of this step (default: the last)")
    evaluate.add_argument("--ranks", metavar="N", type=int, default=1, help="processes on this machine (default: 1)")

    export = command("export", "export.export", "write a run's encoder to a file that timm or torchvision loads")
    export.add_argument("run", metavar="RUN", help="the folder that `twinview train` wrote")
    export.add_argument("out", metavar="OUT", help="the file, .safetensors; a .json beside it says how to load and feed it")
    export.add_argument("--to", choices=["timm", "torchvision", "torch"], help="whose names the tensors have (torch: the encoder's own)")
    export.add_argument("--size", metavar="H|HxW", help="pixels of the images that positions are made for (default: the first view's)")
    export.add_argument("--step", metavar="N", type=int, help="the checkpoint of this step (default: the last)")

    shards = top_level(commands, "shards", "make and look after shards")
    pack = command("pack", "shards.pack", "pack a data set into shards", shards)
    pack.add_argument("kind", metavar="KIND", choices=KINDS, help="; ".join(f"{kind}: {what}" for kind, what in KINDS.items()))
    pack.add_argument("source", metavar="SOURCE", help="the data set's folder; for webdataset the paths of its shards")
    pack.add_argument("out", metavar="OUT", help="an empty or new folder")
    pack.add_argument("--labels", metavar="DIR", help="images: label maps (.png), the same names")
    pack.add_argument("--split", metavar="NAME", help="where the data set has splits (default: its training images)")
    pack.add_argument("--annotations", metavar="FILE", help="coco: an annotation file of another name")
    pack.add_argument("--fields", metavar="NEW=OLD,...", help="webdataset: the files of a sample to keep, such as jpg=left.jpg,json (default: all)")
    pack.add_argument("--dots", metavar="WHICH", help="webdataset: a key ends at the first dot of a name (default), or at the last")
    pack.add_argument("--keys", metavar="WHAT", help="webdataset: own (default), or shard, which puts the shard's name before them")
    pack.add_argument("--classes", metavar="N", type=int, help="cityscapes: 19, 27 or 34 (default: 19)")
    pack.add_argument("--shard-size", metavar="N", type=int, default=1000, help="most samples in a shard (default: 1000)")
    pack.add_argument("--shorter-side", metavar="N", type=int, help="pixels to shrink larger images to, as JPEG (default: bytes stay as they are)")
    pack.add_argument("--quality", metavar="Q", type=int, help="1 to 100: write every image as a JPEG of it (default: shrunk ones, of 90)")
    pack.add_argument("--workers", metavar="N", type=int, default=1, help="threads (default: 1); the shards are the same")
    pack.add_argument("--bad-samples", metavar="N", type=int, default=0, help="most samples to leave out where they cannot be read (default: 0)")
    scenes = command("scenes", "shards.scenes", "draw street scenes with label maps, as shards", shards)
    scenes.add_argument("out", metavar="OUT", help="an empty or new folder")
    scenes.add_argument("--count", metavar="N", type=int, default=1600, help="images (default: 1600)")
    scenes.add_argument("--size", metavar="HxW", default="160x240", help="pixels (default: 160x240)")
    scenes.add_argument("--seed", metavar="N", type=int, default=0)
    index = command("index", "shards.index", "build (again) the index beside each shard", shards)
    index.add_argument("shards", metavar="SHARDS", nargs="+", help="paths with {000..063}, or a folder")
    verify = command("check", "shards.check", "read all of some shards, and name what is wrong with them", shards)
    verify.add_argument("shards", metavar="SHARDS", nargs="+", help="paths with {000..063}, or a folder")
    verify.add_argument("--workers", metavar="N", type=int, default=1, help="threads (default: 1)")
    stat = command("stat", "shards.stat", "count samples, fields, bytes, sizes and classes", shards)
    stat.add_argument("shards", metavar="SHARDS", nargs="+", help="paths with {000..063}, or a folder")
    stat.add_argument("--images", metavar="N", type=int, default=1000, help="most samples to look into, evenly spaced (default: 1000)")
    stat.add_argument("--out", metavar="FILE.png", help="draw some samples")

    show = command("show", "show.show", "draw pictures of a recipe's views, or of what a run does with images")
    show.add_argument("what", metavar="WHAT", help="views, or a picture that a part of the run offers, for example clusters")
    show.add_argument("of", metavar="RECIPE|RUN", help="for views a recipe (or a run's folder), else a run's folder")
    show.add_argument("overrides", metavar="key=value", nargs="*", help="keys of the recipe, for example data.shards=DIR")
    show.add_argument("--out", metavar="FILE", help="the picture (default: in the run's pictures, or WHAT.png here)")
    show.add_argument("--images", metavar="N", type=int, default=6, help="images (default: 6)")
    return top


def top_level(commands: Commands, name: str, text: str) -> Commands:
    """A command that has commands of its own."""
    return commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".").add_subparsers(metavar="COMMAND", required=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, 2 for a fault of the input, 130 when interrupted, 143 when told to end."""
    args = None
    try:
        args, rest = (top := parser()).parse_known_args(tidied(sys.argv[1:] if argv is None else argv))
        if rest and hasattr(args, "overrides") and all("=" in word and not word.startswith("-") for word in rest):
            args.overrides += rest  # those that stand behind an option
        elif rest:
            top.error(unknown(rest, args))
        module, _, function = args.answer.partition(".")
        getattr(importlib.import_module(f"twinview.cli.{module}"), function)(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        say("twinview: interrupted")
        return 130
    except Exception as e:
        if isinstance(e, BrokenPipeError) and not _stdout_is_read():
            return 0  # `twinview parts | head`
        fault = explained(e)
        if fault is not None:
            say(f"twinview: {in_options(str(fault), args)}")
            return 128 + fault.number if isinstance(fault, Preempted) else 2
        if isinstance(e, OSError):
            say(f"twinview: {one_line(e.filename or 'a file')}: {e.strerror or e}. Name another place.")
            return 2
        say(traceback.format_exc().rstrip())  # whoever wrote the part needs it
        say(f"twinview: {_culprit(e)}: {type(e).__name__}: {e}")
        return 1
    return 0


def _stdout_is_read() -> bool:
    """Whether anyone still reads what is printed; where nobody does, nothing more is written."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def entry() -> NoReturn:
    """The `twinview` command: `main`, and the end of the process."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does: names of files may be no text
    code = main()
    _stdout_is_read()
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        sys.stderr.flush()
        os._exit(code)  # threads of the ranks' groups may outlive the groups; the interpreter's own shutdown aborts when it meets one
    sys.exit(code)


def _culprit(e: BaseException) -> str:
    """The plugin's file and line that an error comes from, or twinview itself."""
    frames = [f for f in traceback.extract_tb(e.__traceback__) if "twinview" in f.filename]
    own = [f for f in frames if f"{os.sep}twinview{os.sep}" not in f.filename]
    return f"a fault of {own[-1].filename}, line {own[-1].lineno}" if own else "a fault of twinview's own; please report it"
