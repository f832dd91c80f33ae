"""Machine code of a function, made at its first call and kept on disk."""
from __future__ import annotations

import functools
import hashlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import llvmlite.binding as llvm
import numba

from twinview.paths import cache

config: Any = numba.config
F = TypeVar("F", bound=Callable[..., Any])


def _prefer_512_bits() -> None:
    """Have vectors of 512 bits where a processor has them well; LLVM leaves them out for older ones, whose clock they slow.  No number changes."""
    try:
        features = llvm.get_host_cpu_features()
    except RuntimeError:  # of a processor that LLVM does not know
        return
    if features.get("avx512vbmi") and config.CPU_NAME is None and config.CPU_FEATURES is None:  # unless the user has said
        config.CPU_NAME, config.CPU_FEATURES = llvm.get_host_cpu_name(), features.flatten() + ",-prefer-256-bit"


_prefer_512_bits()


def compiled(function: F) -> F:
    """`numba.njit`, kept in a folder whose name is a hash of every file that the code may come from.

    numba's own cache looks at the function's file alone, and would go on with what it once took from another.  Here these are the files of this
    folder, and those beside the function's own.  Where nothing can be written, every process compiles for itself.  `fastmath` stays off: nothing is
    reordered or contracted, so that the width of a processor's vectors changes no number.  No loop has a way out of a division by zero: none divides
    by zero.
    """
    return _made(function)


def inner(function: F) -> F:
    """The same for what other compiled functions alone call, without what Python would call it by: that takes longer to make than small loops."""
    return _made(function, no_cpython_wrapper=True)


def _made(function: F, **more: Any) -> F:
    options: dict[str, Any] = {"error_model": "numpy", "no_cfunc_wrapper": True, **more}
    before = config.CACHE_DIR
    config.CACHE_DIR = str(_folder(os.environ.get("NUMBA_CACHE_DIR", ""), Path(inspect.getfile(function)).parent))
    try:
        return cast(F, numba.njit(cache=True, **options)(function))
    except RuntimeError:  # of numba: the folder cannot be written
        return cast(F, numba.njit(**options)(function))
    finally:
        config.CACHE_DIR = before


@functools.lru_cache
def _folder(named: str, package: Path) -> Path:
    digest = hashlib.blake2b(digest_size=8)
    for folder in sorted({Path(__file__).parent, package}):
        for path in sorted(folder.glob("*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return (Path(named) if named else cache() / "compiled") / digest.hexdigest()
