"""torch.compile on the encoders of both branches.  Losses, heads and alignments stay as they are: a step offers its values lazily."""
from __future__ import annotations

import contextlib
import os
import shutil
from typing import Any, cast

import torch

from twinview.errors import RecipeError
from twinview.model import Siamese
from twinview.paths import cache
from twinview.recipe import Recipe

BACKEND = "inductor"


def compile_encoders(recipe: Recipe, model: Siamese) -> None:
    """Compile in place, so that no name changes, once for each size of view.  Raises RecipeError where there is no C++ compiler."""
    if not recipe.run.compile:
        return
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++", "cl"]
    if not any(map(shutil.which, compilers)):
        names = " or ".join(compilers)
        raise RecipeError(f"[run] compile: torch.compile wants a C++ compiler, and there is no {names}. Install one, or leave compile out.")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache() / "compiled"))  # torch's own lies among the temporary files
    for branch in (model.online, model.target):
        if branch is not None:
            branch.encoder.compile(dynamic=False, backend=BACKEND)


def graphs() -> str:
    """What the compiler has made of the encoders, one graph for each size of view, with gradient and without; and why it broke some."""
    from torch._dynamo.utils import counters

    breaks: dict[str, int] = cast(Any, counters["graph_break"])
    why = [f"{' '.join(reason.split())[:200]} ({times} times)" for reason, times in breaks.items()]
    return f"run.compile: {counters['stats'].get('unique_graphs', 0)} graphs, " + ("no breaks" if not why else f"broken by {'; '.join(why)}")


def uncompiled(recipe: Recipe) -> contextlib.AbstractContextManager[Any]:
    """For evaluations and what runs before an epoch: their images may have any size, and each would be compiled anew."""
    return torch.compiler.set_stance("force_eager") if recipe.run.compile else contextlib.nullcontext()
