"""The recipes that come with twinview and with installed methods, and reading one by name or file."""
from __future__ import annotations

import contextlib
import importlib.util
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

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


class Shipped(NamedTuple):
    """A recipe that is installed."""

    path: Path
    distribution: str  # that it comes with, and its version; "": twinview itself


def shipped() -> dict[str, list[Shipped]]:
    """Every installed recipe by name, `method/name`: twinview's own, and those of packages that offer methods.  No package is imported.

    A package's lie in its folder `recipes`; those of one that offers several methods in a folder for each, `recipes/METHOD`.
    """
    found: dict[str, list[Shipped]] = {}
    for path in sorted(folder().rglob("*.toml")):
        found.setdefault(path.relative_to(folder()).with_suffix("").as_posix(), []).append(Shipped(path, ""))
    for name, recipe in _of_packages():
        found.setdefault(name, []).append(recipe)
    return dict(sorted(found.items()))


def _of_packages() -> Iterator[tuple[str, Shipped]]:
    offered = [e for e in entry_points(group="twinview") if e.dist is not None and e.dist.name != "twinview"]
    for entry in offered:
        package = entry.module.partition(".")[0]
        spec = None
        with contextlib.suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(package)  # where it lies, and nothing of it run
        for root in (spec.submodule_search_locations or []) if spec else []:
            alone = sum(other.module.partition(".")[0] == package for other in offered) == 1
            places = [Path(root, "recipes", entry.name), *([Path(root, "recipes")] if alone else [])]
            for path in sorted(path for place in places if place.is_dir() for path in place.glob("*.toml")):
                assert entry.dist is not None
                yield f"{entry.name}/{path.stem}", Shipped(path, f"{entry.dist.name} {entry.dist.version}")


def names() -> list[str]:
    """The installed recipes, as `method/name`."""
    return list(shipped())


def find(source: str | Path) -> Path:
    """The file of a recipe: a path that ends in .toml, or a name from `names()`.  Raises RecipeError with the nearest name."""
    path = expand(source, "", RecipeError)
    if path.suffix == ".toml":
        if not path.is_file():
            raise RecipeError(f"{source}: there is no such file. `twinview recipes` lists the recipes by name.")
        return path
    there = shipped()
    if str(source) not in there:
        raise RecipeError(f"{source}: no recipe has this name.{closest(str(source), there)} A file of your own ends in .toml.")
    if len(there[str(source)]) > 1:
        who = " and by ".join(one.distribution or "twinview" for one in there[str(source)])
        raise RecipeError(f"{source}: is offered by {who}. Uninstall all but one, or name the file itself: {there[str(source)][0].path}.")
    return there[str(source)][0].path


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
