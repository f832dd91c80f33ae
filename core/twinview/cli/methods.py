"""`twinview methods` and `recipes`: what is installed and what comes with it; the table of methods in a page of documentation."""
from __future__ import annotations

import argparse
import importlib
import json
import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

from twinview.cli.commands import Commands, command
from twinview.errors import RecipeError, TwinviewError, closest
from twinview.files import write_text
from twinview.terminal import answer

BEGIN, END = "<!-- methods: written by `twinview methods --write FILE` -->", "<!-- end of methods -->"


class Method(NamedTuple):
    """What is said of an installed method."""

    name: str
    distribution: str  # that offers it, with its version
    about: str  # first sentence of the module's docstring, or why it cannot be loaded
    parts: tuple[str, ...]
    recipes: tuple[str, ...]  # installed ones that have a loss of the method


def add(commands: Commands) -> None:
    """Add `methods` and `recipes` to the command line."""
    made = command(commands, "methods", methods, "list the installed methods: what each is, its parts, and recipes with its losses")
    made.add_argument("--write", metavar="FILE", help="write them as a table between the marks of a page of documentation, for example README.md")
    made.add_argument("--json", action="store_true", help="all of it as JSON")
    made = command(commands, "recipes", recipes, "list the recipes that come with twinview and with installed methods")
    made.add_argument("method", metavar="METHOD", nargs="?", help="only those that name a part of this method")
    made.add_argument("--json", action="store_true", help="names and titles as JSON")


def methods(args: argparse.Namespace) -> None:
    """List the installed methods, or write their table into a page."""
    if args.write:
        page = Path(args.write)
        if not page.is_file():
            raise RecipeError(f"methods: there is no file {page}. Name a page that has the line {BEGIN}")
        try:
            text = page.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise RecipeError(f"methods: {page} is no text in UTF-8. Name a page that has the line {BEGIN}") from None
        write_text(page, with_table(text, page))
        answer(f"{page}: the table of methods is current")
        return
    found = installed_methods()
    if args.json:
        answer(json.dumps([method._asdict() for method in found], indent=1))
        return
    for method in found:
        answer(f"{method.name} ({method.distribution})")
        answer(textwrap.fill(method.about, 120, initial_indent="  ", subsequent_indent="  "))
        for title, names in (("parts", method.parts), ("recipes", method.recipes)):
            if names:
                answer(textwrap.fill(", ".join(names), 120, initial_indent=f"  {title}: ", subsequent_indent="    "))


def recipes(args: argparse.Namespace) -> None:
    """List the recipes, each with the first line of its head comment; of another package than twinview, with its name and version."""
    installed_names = {entry.name for entry in entry_points(group="twinview")}  # without the assembly, which imports torch
    if args.method and args.method not in installed_names:
        raise RecipeError(f"recipes: no method {args.method!r} is installed.{closest(args.method, installed_names)}")
    found = {name: title for name, title, used, _ in _recipes() if not args.method or args.method in used}
    if args.json:
        answer(json.dumps(found, indent=1))
        return
    width = max(map(len, found), default=0)
    for name, title in found.items():
        answer(f"{name:<{width}}  {title}")
    if not found:
        answer(f"no installed recipe names a part of {args.method}")


def installed_methods(distribution: str = "") -> list[Method]:
    """Every installed method by name; of one distribution, where it is named.  All are imported."""
    from twinview.assembly import GROUP, installed

    modules = {entry.name: entry.value for entry in entry_points(group=GROUP)}
    with_losses = [(name, losses) for name, _, _, losses in _recipes()]
    found = []
    for name, who, parts in installed():
        if distribution and who.split()[0] != distribution:
            continue
        if isinstance(parts, TwinviewError):
            found.append(Method(name, who, str(parts), (), ()))
        else:
            about = first_sentence(importlib.import_module(modules[name]).__doc__ or "")
            found.append(Method(name, who, about, tuple(f"{name}.{part}" for part in parts), tuple(r for r, losses in with_losses if name in losses)))
    return found


def first_sentence(docstring: str) -> str:
    """Up to the first full stop that ends a sentence, in one line; stops of abbreviations have a small letter or a digit behind them."""
    text = " ".join(docstring.split())
    end = re.search(r"(?<!et al)\.(?= [A-Z`]|$)", text)
    return text[: end.end()] if end else text


def with_table(text: str, page: Path) -> str:
    """The text of a page with a current table between its marks.  Raises RecipeError for a page without them."""
    if text.count(BEGIN) != 1 or END not in text.partition(BEGIN)[2]:
        raise RecipeError(f"{page}: has no place for the table of methods. Write a line {BEGIN} and, below it, a line {END}")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table(page.parent)}\n{END}{rest.partition(END)[2]}"


def table(folder: Path) -> str:
    """Twinview's own methods as a table for a page in `folder`; a method that has a page in docs/ there is linked."""
    lines = ["| method | what it is |", "|---|---|"]
    for method in installed_methods("twinview"):
        pages = [p for p in (f"docs/methods/{method.name}.md", f"docs/{method.name}.md", f"{method.name}.md") if (folder / p).is_file()]
        name = f"[{method.name}]({pages[0]})" if pages else method.name
        lines.append(f"| {name} | {method.about} |")
    return "\n".join(lines)


def _recipes() -> Iterator[tuple[str, str, set[str], set[str]]]:
    """Each recipe: its name, its title, the methods that it names, and those that its losses are of.  A foreign one that is no TOML has none."""
    from twinview.recipe.library import shipped

    for name, (first, *_) in shipped().items():
        try:
            text = first.path.read_text(encoding="utf-8")
            tables = tomllib.loads(text)
            title = next(iter(text.splitlines()), "").lstrip("# ")
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            if not first.distribution:
                raise
            title, tables = f"is no TOML: {e}", {}
        title += f" ({first.distribution})" if first.distribution else ""
        yield name, title, set(_methods_in(tables)), set(_methods_in(tables.get("loss", [])))


def _methods_in(value: object) -> Iterator[str]:
    """Methods that `use` names anywhere in tables: of an optimizer's or a schedule's there is no part."""
    if isinstance(value, Mapping):
        use = value.get("use")
        if isinstance(use, str) and "." in use:
            yield use.partition(".")[0]
    children = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for child in children:
        yield from _methods_in(child)
