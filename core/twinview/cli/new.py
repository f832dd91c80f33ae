"""`twinview new method`: a package to begin a method with."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from twinview.cli.commands import Commands, command, group
from twinview.terminal import answer


def add(commands: Commands) -> None:
    """Add `new method` to the command line."""
    new = group(commands, "new", "begin something of your own")
    made = command(new, "method", method, "write a package for a new method, which passes its tests as it stands")
    made.add_argument("name", metavar="NAME", help="of the method, as recipes will write it: small letters, digits and _")
    made.add_argument("--parts", metavar="KIND,...", help="loss (the default), views, augment, masks, encoder, align, evaluate, extra")
    made.add_argument("--author", metavar="NAME", help="whom the license names")
    made.add_argument("--description", metavar="TEXT", help="one sentence")
    made.add_argument("--out", metavar="DIR", help="the folder that is written (default: twinview-NAME)")


def method(args: argparse.Namespace) -> None:
    """Write the package; on a terminal, ask for what no option says."""
    from twinview.scaffold.method import KINDS, NewMethod, write_method

    asks = sys.stdin.isatty() and sys.stdout.isatty() and args.parts is None
    parts = args.parts or (_asked(f"Parts ({', '.join(KINDS)})", "loss") if asks else "loss")
    description = args.description or (_asked("One sentence about it", "") if asks else "")
    author = args.author or (_asked("Author, for the licence", "the authors") if asks else "the authors")
    kinds = tuple(word.strip() for word in parts.split(",") if word.strip())
    new = NewMethod(name=args.name, kinds=kinds, author=author, description=description)
    out = Path(args.out or f"twinview-{args.name.replace('_', '-')}")
    for path in write_method(new, out):
        answer(path)
    answer(f'\nNext: cd {out} && pip install -e ".[test]" && pytest && twinview train {args.name}/quickstart')


def _asked(question: str, default: str) -> str:
    answer(f"{question}{f' [{default}]' if default else ''}:")
    return sys.stdin.readline().strip() or default
