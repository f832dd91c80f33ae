"""`twinview check` and `parts`: what a recipe resolves to, and what parts there are."""
from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from twinview.cli.commands import Commands, command, recipe_arguments
from twinview.errors import RecipeError, TwinviewError, closest
from twinview.terminal import answer

if TYPE_CHECKING:
    from twinview.recipe.tables import Data


def add(commands: Commands) -> None:
    """Add `check` and `parts` to the command line."""
    made = command(commands, "check", check, "print a recipe as resolved, and who answers each hook")
    recipe_arguments(made)
    made.add_argument("--json", action="store_true", help="the same as JSON")
    made = command(commands, "parts", parts, "list the parts of the installed methods, with their options")
    made.add_argument("method", metavar="METHOD", nargs="?", help="one method, with options, defaults and docstrings")
    made.add_argument("--installed", action="store_true", help="a table: method, distribution, version, parts and the hooks that they answer")
    made.add_argument("--json", action="store_true", help="parts, options and defaults as JSON")


def check(args: argparse.Namespace) -> None:
    """Print the recipe as resolved, with every default, and who answers each hook; then refuse what its sizes and shards do not allow."""
    import tomli_w

    from twinview.api import checked
    from twinview.recipe import read

    assembly = checked(read(args.recipe, args.overrides))
    if args.json:
        from twinview.hooks import HOOKS

        who = {hook: [*assembly.answers(hook), *assembly.wrappers(hook)] for hook in HOOKS}
        answer(json.dumps({"recipe": assembly.table(), "answers": who, "methods": assembly.distributions()}, indent=1))
    else:
        answer(tomli_w.dumps(assembly.table()).rstrip())
        answer()
        answer("\n".join(f"# {line}" for line in (*sources(assembly.recipe.data), *answers(assembly))))
    from twinview.planning.sizes import check_sizes, warn_of_weights

    check_sizes(assembly)
    warn_of_weights(assembly.recipe)


def sources(data: Data) -> Iterator[str]:
    """Each source that [data] mixes, and its share of an epoch; nothing where there are none."""
    if data.source:
        yield "sources:"
    whole = sum(source.weight or 0 for source in data.source)
    for source in data.source:
        shards = source.shards if isinstance(source.shards, str) else ", ".join(source.shards)
        share = f"{source.weight / whole:.1%} of an epoch" if source.weight else "by its size"
        some = "" if source.subset == 1.0 else f", a subset of {source.subset}"
        yield f"  {source.name or '(no name)':<15} {share}{some}: {shards}"
    if data.held_out:
        yield f"  {'held out':<15} {data.held_out} {'of all' if isinstance(data.held_out, float) else 'samples'}"


def answers(assembly: Any) -> Iterator[str]:
    """Each hook that a part of this recipe answers or wraps, and who that is."""
    from twinview.hooks import HOOKS

    yield "who answers:"
    for hook in HOOKS:
        who = ["the core" if name == "twinview" else name for name in assembly.answers(hook)]
        around = [f"{name} around it" for name in assembly.wrappers(hook)]
        if who + around:
            yield f"  {hook:<15} {', '.join(who + around)}"
    for method, distribution in assembly.distributions().items():
        yield f"  method {method}: {distribution}"


def parts(args: argparse.Namespace) -> None:
    """List the installed methods and their parts; of one method, options, defaults and docstrings."""
    from twinview.assembly import installed, methods

    if args.method and args.method not in methods():
        raise RecipeError(f"parts: no method {args.method!r} is installed.{closest(args.method, methods())}")
    if args.json:
        answer(json.dumps({method: _as_json(method, who, found) for method, who, found in installed(args.method)}, indent=1))
        return
    if args.installed:
        installed_table(args.method)
        return
    broken = None
    for method, distribution, found in installed(args.method):
        if isinstance(found, TwinviewError):
            answer(f"{method} ({distribution}): {found}")
            broken = found
        else:
            answer(f"{method} ({distribution})")
            for name, cls in found.items():
                answer("\n".join(_part(f"{method}.{name}", cls, bool(args.method))))
    if args.method and broken is not None:
        raise broken


def installed_table(only: str | None) -> None:
    """Every installed method, with the package that it comes from; each is imported in another process, which it may end."""
    from twinview.assembly.survey import survey

    answer(f"{'method':<14} {'distribution':<22} {'version':<10} parts and the hooks that they answer")
    for row in survey([only] if only else None):
        parts = [f"{row.method}.{name}: {', '.join(hooks)}" for name, hooks in row.parts.items()] or [row.fault or "offers no part"]
        for number, said in enumerate(parts):
            first = (row.method, row.distribution, row.version) if not number else ("", "", "")
            answer(f"{first[0]:<14} {first[1]:<22} {first[2]:<10} {said}")


def _part(label: str, cls: type, full: bool) -> Iterator[str]:
    import attrs

    from twinview.assembly.comments import option_comments

    doc = inspect.cleandoc(cls.__doc__ or "").splitlines() or [""]
    hooks = ", ".join(name for name, value in vars(cls).items() if hasattr(value, "twinview_impl"))
    if not full:
        yield f"  {label:<24} {doc[0]}"
        return
    yield f"\n  {label}   answers {hooks}"
    yield from (f"      {line}".rstrip() for line in doc)
    comments = option_comments(cls)
    for f in attrs.fields(cls):
        if f.init:
            yield f"      {f.name} = {_default(f)}   {comments.get(f.name, '')}".rstrip()


def _as_json(method: str, who: str, found: Mapping[str, type] | TwinviewError) -> dict[str, Any]:
    import attrs

    from twinview.assembly.comments import option_comments

    if isinstance(found, TwinviewError):
        return {"distribution": who, "fault": str(found)}
    parts = {}
    for name, cls in found.items():
        comments = option_comments(cls)
        options = {f.name: {"default": _default(f), "about": comments.get(f.name, "")} for f in attrs.fields(cls) if f.init}
        parts[f"{method}.{name}"] = {"about": inspect.cleandoc(cls.__doc__ or ""), "options": options}
    return {"distribution": who, "parts": parts}


def _default(f: Any) -> str:
    """An option's default as TOML would have it."""
    import attrs

    from twinview.ops.checks import default_of

    value = default_of(f)
    if value is attrs.NOTHING:
        return "(to be given)"
    if value is None:
        return "(none)"
    return json.dumps(value)  # of these values, what JSON says TOML says too
