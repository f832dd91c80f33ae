"""The reference pages: keys of a recipe from the attrs classes, parts from what is installed.  `python website/pages.py` prints them."""
from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any

import attrs

from twinview.assembly.comments import option_comments
from twinview.ops.checks import default_of
from twinview.recipe.schema import SLOTS, PartConfig
from twinview.recipe.tables import OPTIMIZERS, Data, Run, Schedule, Source, Target

TABLES = {"[target]": Target, "[data]": Data, "[[data.source]]": Source, "[schedule]": Schedule, "[run]": Run}


def recipe_page() -> str:
    """Every key of a recipe, with type, default and the comment that stands behind it in the code."""
    lines = [
        "# Recipe reference",
        "",
        "Written from the classes that a recipe is read into, `twinview.recipe.tables`, when this site is built. What the keys are for, with examples: [Recipes](../recipes.md).",
        "",
        "## Slots",
        "",
        f"Each of {', '.join(f'`[{slot}]`' for slot in SLOTS)} holds `use = \"method.part\"` and the options of that part ([parts reference](parts.md)). Beside them a slot takes:",
        "",
        *_table(PartConfig, ("use", "options")),
    ]
    for title, cls in TABLES.items():
        lines += ["", f"## {title}", "", _about(cls), "", *_table(cls)]
    for name, cls in OPTIMIZERS.items():
        lines += ["", f'## [optimizer] use = "{name}"', "", _about(cls), "", *_table(cls)]
    return "\n".join(lines) + "\n"


def parts_page() -> str:
    """Every installed part of twinview's own methods, with its hooks, its docstring and its options."""
    from twinview.assembly import answered, installed

    lines = [
        "# Parts reference",
        "",
        "Written from the installed parts when this site is built; `twinview parts METHOD` prints the same of what you have installed, packages of others too.",
    ]
    for method, distribution, parts in installed():
        if not distribution.startswith("twinview ") or not isinstance(parts, dict):
            continue
        lines += ["", f"## {method}"]
        for name, cls in parts.items():
            hooks = ", ".join(f"[`{hook}`](../hooks.md#{hook})" for hook in dict.fromkeys(answered(cls)))
            lines += ["", f"### {method}.{name}", "", _about(cls), "", f"Answers {hooks}.", "", *_table(cls)]
    return "\n".join(lines) + "\n"


def _about(cls: type) -> str:
    return _escaped(inspect.cleandoc(cls.__doc__ or ""))


def _table(cls: type, left_out: tuple[str, ...] = ()) -> Iterator[str]:
    fields = [field for field in attrs.fields(cls) if field.init and field.name not in left_out]
    if not fields:
        return
    comments = option_comments(cls)
    yield "| key | type | default | |"
    yield "|---|---|---|---|"
    for field in fields:
        kind = field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)
        kind = kind.replace("typing.", "").replace("|", "\\|")
        yield f"| `{field.name}` | {_escaped(kind)} | {_default(field)} | {_escaped(comments.get(field.name, '')).replace('|', chr(92) + '|')} |"


def _default(field: Any) -> str:
    value = default_of(field)
    if value is attrs.NOTHING:
        return "to be given"
    return "" if value is None or value == "" else f"`{json.dumps(value)}`"


def _escaped(text: str) -> str:
    """Text of a docstring as Markdown: what looks like a tag or a link is none."""
    return text.replace("<", "&lt;").replace("[", "\\[").replace("*", "\\*").replace("_", "\\_") if "`" not in text else _between_codes(text)


def _between_codes(text: str) -> str:
    pieces = text.split("`")
    return "`".join(piece if number % 2 else _escaped(piece) for number, piece in enumerate(pieces))


if __name__ == "__main__":
    print(recipe_page(), parts_page(), sep="\n")
