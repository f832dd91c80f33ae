"""The recipes that come with twinview, and reading one by name or file."""
from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from twinview.errors import RecipeError, closest
from twinview.paths import expand
from twinview.recipe.overrides import override, parsed
from twinview.recipe.parse import from_table
from twinview.recipe.schema import Recipe


def folder() -> Path:
    """Where the recipes lie: in the wheel inside the package, in a checkout beside the source roots."""
    package = Path(__file__).parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parents[1] / "recipes"


def names() -> list[str]:
    """The recipes that come with twinview, as `method/name`."""
    return sorted(str(p.relative_to(folder()).with_suffix("")) for p in folder().rglob("*.toml"))


def find(source: str | Path) -> Path:
    """The file of a recipe: a path that ends in .toml, or a name from `names()`.  Raises RecipeError with the nearest name."""
    path = expand(source, "", RecipeError)
    if path.suffix == ".toml":
        if not path.is_file():
            raise RecipeError(f"{source}: there is no such file. `twinview recipes` lists the recipes by name.")
        return path
    if str(source) not in names():
        raise RecipeError(f"{source}: no recipe has this name.{closest(str(source), names())} A file of your own ends in .toml.")
    return folder() / f"{source}.toml"


def read(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Recipe:
    """A recipe by name, file or plain tables, with `table.key=value` overrides.  Raises RecipeError."""
    if isinstance(source, Mapping):
        import copy

        return from_table(override(copy.deepcopy(dict(source)), overrides))
    path = find(source)
    try:
        table = parsed(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise RecipeError(f"{path}: is no TOML: {str(e).rstrip('.')}.") from None
    except ValueError as e:
        raise RecipeError(f"{path}: {e}.") from None
    except OSError as e:
        raise RecipeError(f"{path}: cannot be read: {e.strerror}.") from None
    name = str(source) if path.suffix != Path(source).suffix else path.stem
    return from_table(override(table, overrides), name)
