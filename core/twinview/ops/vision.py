"""torchvision and timm, and tensors without memory, without torch's compiler, which takes as long to import as torch itself.

`torchvision.ops.roi_align` imports one function of torch._dynamo, which it calls on a GPU alone, under deterministic algorithms.  timm marks some
functions by `torch.compiler.disable`, torch those that work out shapes on the meta device by a mark that imports it when they are
first called.  Meanwhile stand-ins lie in the place of torch._dynamo; afterwards the real one is there for whoever asks.
"""
from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch._compile import _disable_dynamo

DYNAMO = "torch._dynamo"
MARK = "__dynamo_disable"  # where torch remembers a function that the compiler leaves alone


def import_torchvision() -> ModuleType:
    """`import torchvision`, quickly.  Call it before anything that imports torchvision.  Raises ImportError."""
    if "torchvision" in sys.modules:
        return importlib.import_module("torchvision")
    try:
        with without_compiler():
            return importlib.import_module("torchvision")
    except (ImportError, AttributeError):  # another version, which asks for more
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    return importlib.import_module("torchvision")


def import_timm() -> ModuleType:
    """`import timm`, which imports torchvision, quickly.  Raises ImportError."""
    import_torchvision()
    eager = torch.compiler.disable
    if "timm" not in sys.modules and DYNAMO not in sys.modules:
        torch.compiler.disable = _disable
    try:
        return importlib.import_module("timm")
    finally:
        torch.compiler.disable = eager


def _disable(fn: Any = None, recursive: bool = True, *, reason: str | None = None) -> Any:
    """`torch.compiler.disable`, which imports the compiler when the function is called."""
    return _disable_dynamo(fn, recursive)


@contextmanager
def without_compiler() -> Iterator[None]:
    """Nothing in here imports torch's compiler, or compiles; nothing changes where it is imported already."""
    if DYNAMO in sys.modules:
        yield
        return
    package, utils, marked = ModuleType(DYNAMO), ModuleType(f"{DYNAMO}.utils"), list[Any]()

    def disable(fn: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
        marked.append(fn)
        return fn

    package.__path__ = []
    package.utils, package.disable, utils.is_compile_supported = utils, disable, _is_compile_supported  # type: ignore[attr-defined]
    sys.modules |= {DYNAMO: package, f"{DYNAMO}.utils": utils}
    before = vars(torch).get("_dynamo")
    vars(torch)["_dynamo"] = package
    try:
        yield
    finally:
        for name in (DYNAMO, f"{DYNAMO}.utils"):
            if sys.modules.get(name) in (package, utils):
                del sys.modules[name]
        del vars(torch)["_dynamo"]
        if before is not None:
            vars(torch)["_dynamo"] = before
        for fn in marked:  # asked anew, they are told by the real one
            vars(fn).pop(MARK, None)


def _is_compile_supported(device_type: str) -> bool:
    found: bool = importlib.import_module(f"{DYNAMO}.utils").is_compile_supported(device_type)
    return found
