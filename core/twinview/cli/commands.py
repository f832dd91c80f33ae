"""What the files of the commands share: each adds its own parser with these."""
from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeAlias

from twinview.cli.words import Parser

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
TARGET = "a run's folder, a file that `twinview export` wrote, a checkpoint of another project (with encoder.use=...), timm:NAME or torchvision:NAME"


def command(commands: Commands, name: str, answer: Callable[[argparse.Namespace], None], text: str) -> Parser:
    """Add a command that the function `answer` answers."""
    made = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    made.set_defaults(answer=answer)
    return made


def group(commands: Commands, name: str, text: str) -> Commands:
    """Add a command that has commands of its own."""
    return commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".").add_subparsers(metavar="COMMAND", required=True)


def recipe_arguments(made: Parser) -> None:
    """A recipe, and keys of it."""
    made.add_argument("recipe", metavar="RECIPE", help="a name from `twinview recipes`, or a .toml file")
    made.add_argument("overrides", metavar="key=value", nargs="*", help="keys of the recipe, for example run.steps=100 views.min_iou=0.4")
