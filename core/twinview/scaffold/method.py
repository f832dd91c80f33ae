"""A new method's package: what `twinview new method NAME` writes.  It installs, trains and passes its tests as it stands."""
from __future__ import annotations

import datetime
import keyword
import re
import shutil
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from string import Template

import attrs

from twinview.errors import RecipeError, closest
from twinview.version import __version__

TEMPLATES = Path(__file__).parent / "templates"
KINDS = {  # kind of part -> what the README says of it
    "loss": "a loss", "views": "a sampler of views", "augment": "a photometry", "masks": "masks", "encoder": "an encoder", "align": "an alignment",
    "evaluate": "an evaluation", "extra": "a wrapper",
}
SMALL = {  # options with which the tests try a part
    "loss": '{"hidden": 16, "channels": 8}', "views": '{"size": 32}', "encoder": '{"width": 16, "depth": 1, "patch": 8}', "align": '{"grid": 4}',
    "evaluate": '{"size": 32}',
}
HOOKS = 1  # the version of the hooks that the templates are written for


@attrs.frozen(kw_only=True)
class NewMethod:
    """What is asked of whoever begins a method."""

    name: str  # of the method, as recipes write it before the point
    kinds: tuple[str, ...] = ("loss",)
    author: str = "the authors"
    description: str = ""

    def __attrs_post_init__(self) -> None:
        """Raises RecipeError for a name that no package can have, or that is taken, and for kinds that there are not."""
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name) or keyword.iskeyword(self.name):
            raise RecipeError(f"new method: {self.name!r} is no name. Write small letters, digits and _, beginning with a letter: dense_views.")
        if self.name in {entry.name for entry in entry_points(group="twinview")}:
            raise RecipeError(f"new method: a method {self.name!r} is installed already. Choose another name.")
        for kind in self.kinds:
            if kind not in KINDS:
                raise RecipeError(f"new method: there is no kind of part {kind!r}.{closest(kind, KINDS)}")
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise RecipeError("new method: wants one or more kinds of part, each once.")
        if any(mark in self.description + self.author for mark in '"\\\n'):
            raise RecipeError("new method: a description and an author are one line without quotation marks.")


def write_method(new: NewMethod, out: Path) -> list[Path]:
    """Write the package to the folder OUT, which is not there yet; its files.  Raises RecipeError."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RecipeError(f"{out}: is there already. Name another folder with --out.")
    files = {out / path: content for path, content in contents(new).items()}
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
    except OSError as e:
        shutil.rmtree(out, ignore_errors=True)
        raise RecipeError(f"{out}: cannot be written: {e.strerror}. Name another folder with --out.") from None
    return list(files)


def contents(new: NewMethod) -> dict[str, str]:
    """Path within the package -> text."""
    package, kinds = f"twinview_{new.name}", new.kinds
    words = {
        "method": new.name,
        "package": package,
        "slug": new.name.replace("_", "-"),
        "title": new.name.replace("_", " ").capitalize(),
        "description": new.description or f"{new.name.replace('_', ' ').capitalize()}: a method for twinview.",
        "author": new.author,
        "year": str(datetime.date.today().year),
        "version": __version__,
        "hooks": str(HOOKS),
        "imports": "\n".join(f"from {package}.{kind} import {kind.capitalize()}" for kind in sorted(kinds)),
        "parts": _table([f'"{kind}": {kind.capitalize()}' for kind in kinds], 4),
        "options": _table([f'"{kind}": {SMALL[kind]}' for kind in kinds if kind in SMALL], 0),
        "offers": _listed([f"{KINDS[kind]} (`{new.name}.{kind}`)" for kind in kinds]),
        "example": f'[[{kinds[0]}]]\nuse = "{new.name}.{kinds[0]}"' if kinds[0] in ("loss", "evaluate", "extra") else
        f'[{kinds[0]}]\nuse = "{new.name}.{kinds[0]}"',
        **_recipe(new.name, kinds),
    }
    found = {
        "pyproject.toml": "pyproject.toml", "LICENSE": "LICENSE", "README.md": "README.md", ".gitignore": "gitignore",
        ".github/workflows/tests.yml": "ci.yml", f"src/{package}/__init__.py": "init.py", f"src/{package}/recipes/quickstart.toml": "recipe.toml",
        f"tests/test_{new.name}.py": "test.py", **{f"src/{package}/{kind}.py": f"{kind}.py" for kind in kinds},
    }
    texts = {path: _filled(template, words) for path, template in found.items()}
    return {**texts, f"src/{package}/py.typed": ""}


def _recipe(name: str, kinds: Sequence[str]) -> dict[str, str]:
    """The slots of the recipe: the method's own part, or one that is installed with twinview."""
    encoder = f'use = "{name}.encoder"' if "encoder" in kinds else 'use = "torchvision.resnet"\nname = "resnet18"\nstem = "small"'
    losses = [f"{name}.loss"] if "loss" in kinds else [] if "align" in kinds else ["simsiam.image"]
    losses += ["densesiam.pixel"] if "align" in kinds else []  # it asks for an alignment
    return {
        "views": f"{name}.views" if "views" in kinds else "byol.crops",
        "augment": f"{name}.augment" if "augment" in kinds else "byol.photometry",
        "masks": f'\n[masks]\nuse = "{name}.masks"\n' if "masks" in kinds else "",
        "encoder": encoder,
        "align": f'\n[align]\nuse = "{name}.align"\n' if "align" in kinds else "",
        "loss": "\n".join(f'[[loss]]\nuse = "{loss}"\n' for loss in losses),
        "extra": f'\n[[extra]]\nuse = "{name}.extra"\n' if "extra" in kinds else "",
        "evaluate": f'\n[[evaluate]]\nuse = "{name}.evaluate"\n' if "evaluate" in kinds else "",
    }


def _filled(template: str, words: dict[str, str]) -> str:
    text = Template((TEMPLATES / f"{template}.txt").read_text(encoding="utf-8")).substitute(words)
    return re.sub(r"\n{3,}(?=\[)", "\n\n", text).rstrip("\n") + "\n"


def _table(entries: Sequence[str], indent: int) -> str:
    """A Python dictionary, in one line where it is short."""
    if sum(map(len, entries)) < 60:
        return "{" + ", ".join(entries) + "}"
    return "{\n" + "".join(f"{' ' * (indent + 4)}{entry},\n" for entry in entries) + " " * indent + "}"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
