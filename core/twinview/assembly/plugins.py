"""Installed methods and the parts that they offer: found by entry point, imported only when named."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any

import attrs
import pluggy

from twinview.errors import PluginError, RecipeError, TwinviewError, closest
from twinview.hooks import VERSION, Hooks
from twinview.version import __version__

GROUP = "twinview"  # of entry points


def answered(cls: type) -> list[str]:
    """The hooks that a part's class answers."""
    found = {name: getattr(cls, name) for name in dir(cls)}
    return [impl.get("specname") or name for name, value in found.items() if (impl := getattr(value, f"{GROUP}_impl", None))]


def option(part: Any, name: str) -> Any:
    """A part's option by name, None where it has no such option."""
    return getattr(part, name) if name in {f.name for f in attrs.fields(type(part))} else None


def options(part: Any) -> dict[str, Any]:
    """A part's options as plain values, those that are None left out."""
    found = attrs.asdict(part, filter=lambda a, v: a.init and v is not None)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}


def distribution(entry: EntryPoint) -> str:
    """The distribution that an entry point comes from, with its version."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def _offered_by(found: list[EntryPoint]) -> str:
    """The distributions of entry points, for a message: they are read from disk, which takes a millisecond each."""
    return " and by ".join(sorted({distribution(e) for e in found}))


def methods() -> list[str]:
    """Installed methods by name; none is imported."""
    return sorted({e.name for e in entry_points(group=GROUP)})


def packages() -> set[str]:
    """The import packages of the installed methods."""
    return {e.module.partition(".")[0] for e in entry_points(group=GROUP)}


def load(manager: pluggy.PluginManager, method: str, place: str, offered: EntryPoints | None = None) -> Mapping[str, type]:
    """Import and register the method that an entry point names (of those `offered`, or installed), and no other; its parts by name.

    Raises RecipeError, PluginError.
    """
    offered = entry_points(group=GROUP) if offered is None else offered
    found = [e for e in offered if e.name == method]
    if not found:
        raise RecipeError(f"{place}: no method {method!r} is installed.{closest(method, {e.name for e in offered})}")
    if len(found) > 1 and (len({e.value for e in found}) > 1 or len({e.dist.name for e in found if e.dist}) > 1):
        raise RecipeError(f"{place}: method {method!r} is offered by {_offered_by(found)}. Uninstall all but one.")
    name = f"method:{method}"
    if not manager.has_plugin(name):
        _check_requirement(found[0], method, place)
        try:
            module = found[0].load()
        except (TwinviewError, KeyboardInterrupt):
            raise
        except BaseException as e:  # a package may end the process where it is imported: SystemExit is no Exception
            why = f"{type(e).__name__}: {e}".rstrip(": ")
            raise PluginError(f"{place}: method {method!r} ({found[0].value}, {_offered_by(found)}) cannot be loaded: {why}") from e
        _check_version(module, found[0], method, place)
        manager.register(module, name=name)
        hooks = [h.name for h in manager.get_hookcallers(module) or []]
        if hooks != ["parts"]:
            said = f"method {method!r} ({found[0].value}, {_offered_by(found)}) answers {', '.join(hooks) or 'nothing'}"
            raise PluginError(f"{place}: {said}. A method answers parts() alone; other hooks belong in a part.")
    plugin = manager.get_plugin(name)
    others = [p for n, p in manager.list_name_plugin() if p is not None and p is not plugin]
    answers: list[Any] = manager.subset_hook_caller("parts", others)()
    if not answers or not isinstance(answers[0], Mapping) or not all(isinstance(key, str) for key in answers[0]):
        said = f"gives a {type(answers[0]).__name__}" if answers else "gives None"
        whose = f"{method!r} ({found[0].value}, {_offered_by(found)})"
        raise PluginError(f"{place}: parts() of {whose} {said}. Give {{name: class made with @twinview.part}}.")
    found_parts: Mapping[str, type] = answers[0]
    return found_parts


def _check_requirement(entry: EntryPoint, method: str, place: str) -> None:
    """Raises PluginError for a package that asks for another twinview than this one; pip warns of that, and installs it all the same."""
    wanted = [word for word in (entry.dist.requires or [] if entry.dist else []) if word.replace("_", "-").startswith("twinview")]
    if not wanted:
        return
    from packaging.requirements import InvalidRequirement, Requirement

    for word in wanted:
        try:
            requirement = Requirement(word)
        except InvalidRequirement:
            continue
        if requirement.name == GROUP and not requirement.marker and not requirement.specifier.contains(__version__, prereleases=True):
            said = f"method {method!r} ({distribution(entry)}) is for twinview{requirement.specifier}, and this is {__version__}"
            raise PluginError(f"{place}: {said}. Install a version of {entry.dist.name if entry.dist else 'it'} that fits.")


def _check_version(module: Any, entry: EntryPoint, method: str, place: str) -> None:
    """Raises PluginError for a module that says that it was built for other hooks."""
    built = getattr(module, "TWINVIEW_HOOKS", VERSION)
    if built != VERSION:
        said = f"method {method!r} ({distribution(entry)}) was built for version {built} of the hooks, and this is version {VERSION}"
        raise PluginError(f"{place}: {said} (twinview {__version__}). Install a version of it that fits; docs/hooks.md says what changed.")


def find_part(manager: pluggy.PluginManager, method: str, name: str, place: str, offered: EntryPoints | None = None) -> type:
    """The class of a part.  Raises RecipeError with the nearest right name, PluginError where it is no attrs class."""
    found = load(manager, method, place, offered)
    if name not in found:
        raise RecipeError(f"{place}: {method} has no part {name!r}.{closest(name, found)}")
    if not isinstance(found[name], type) or not attrs.has(found[name]):
        raise PluginError(f"{place}: {method} offers something for {name!r} that is no part. Make it a class with @twinview.part.")
    return found[name]


def offers() -> Iterator[tuple[str, str]]:
    """Every installed method, and the distributions that offer it; none is imported."""
    found = entry_points(group=GROUP)
    for method in sorted(found.names):
        yield method, " and ".join(sorted({distribution(e) for e in found if e.name == method}))


def installed(only: str | None = None, offered: EntryPoints | None = None) -> Iterator[tuple[str, str, Mapping[str, type] | TwinviewError]]:
    """Every installed method (or one; of those `offered`, where they are known): name, distribution with version, and its parts (or why not)."""
    offered = entry_points(group=GROUP) if offered is None else offered
    for method in [only] if only else sorted(offered.names):
        who = next(distribution(e) for e in offered if e.name == method)
        try:
            yield method, who, load(pluggy_manager(), method, method, offered)
        except TwinviewError as e:
            yield method, who, e


def pluggy_manager() -> pluggy.PluginManager:
    """A manager with the hooks and no parts."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(Hooks)
    return manager
