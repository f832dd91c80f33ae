"""Checks that all ranks train the same thing: a stale file on one machine would otherwise change the run silently, or make ranks wait for ever."""
from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from twinview.assembly import Assembly
from twinview.engine.distributed.process import gathered
from twinview.engine.run_folder import versions
from twinview.errors import RecipeError
from twinview.recipe import Recipe
from twinview.recipe.leaves import flat

NAMED = 5  # keys in a message
OWN = ("data.shards", "data.source", "data.cache", "data.cache_gb", "data.allow_pipes", "data.workers")  # may differ: machines mount data elsewhere


def check_recipes(recipe: Recipe, assembly: Assembly) -> None:
    """Every rank calls it before the data is opened.  Raises RecipeError on all of them, with the keys in which one differs from rank 0."""
    told = {key: json.dumps(value) for key, value in flat(assembly.table()) if not _own(key, recipe)}
    _compare(told, "recipe", "Give every rank the same recipe file and the same overrides")
    _compare(code(assembly), "code", "Install the same everywhere")


def check_data(checksum: str) -> None:
    """Every rank calls it once its shards are open.  Raises RecipeError on all of them where one has other samples than rank 0."""
    _compare({"[data] samples": checksum}, "data", "Copy the same shards to every machine, or name them where all machines see them")


def code(assembly: Assembly) -> dict[str, str]:
    """Versions of what a run's numbers depend on, and a digest of the source of twinview and of the methods in use: checkouts share a version."""
    found = {"python": ".".join(map(str, sys.version_info[:2])), **versions(), "torch": torch.__version__}
    for method, distribution in assembly.distributions().items():
        digest = _digest(assembly.manager.get_plugin(f"method:{method}"))
        found[f"method {method}"] = f"{distribution} ({digest})"
    return found | {"twinview": f"{found.get('twinview', '?')} ({_digest(sys.modules['twinview'])})"}


def _own(key: str, recipe: Recipe) -> bool:
    if key == "data.workers" and recipe.data.streaming:
        return False  # a stream is cut by them
    return any(key == own or key.startswith(f"{own}.") for own in OWN) and not key.endswith((".weight", ".subset", ".name"))


def _digest(module: Any) -> str:
    """Of a module's file, or of all Python files of a package."""
    file = Path(getattr(module, "__file__", None) or "")
    sources = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
    digest = hashlib.blake2b(digest_size=4)
    for source in sources:
        if source.is_file():
            digest.update(source.relative_to(file.parent).as_posix().encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()


def _compare(mine: Mapping[str, str], what: str, instead: str) -> None:
    if dist.get_world_size() == 1:
        return
    digests = gathered(hashlib.blake2b(json.dumps(mine, sort_keys=True).encode()).hexdigest())
    other = next((rank for rank, digest in enumerate(digests) if digest != digests[0]), None)
    if other is None:
        return
    everyone = gathered(mine if dist.get_rank() in (0, other) else {})
    first, second = everyone[0], everyone[other]
    differing = [key for key in {**first, **second} if first.get(key) != second.get(key)]
    said = [f"{key} is {second.get(key, '(not there)')}, and {first.get(key, '(not there)')} on rank 0" for key in differing[:NAMED]]
    more = f" and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
    raise RecipeError(f"rank {other} has another {what}: {'; '.join(said)}{more}. {instead}.")
