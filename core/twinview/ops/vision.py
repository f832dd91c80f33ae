"""torchvision and timm, imported without torch's compiler, which takes as long to import as torch itself.

`torchvision.ops.roi_align` imports one function of torch._dynamo, which it calls on a GPU alone, under deterministic algorithms. While torchvision is
imported, stand-ins lie in the place of those two modules; the function, when it is called, asks the real ones.  timm marks some functions by
`torch.compiler.disable`, which imports the compiler at once; torch has another way to say the same, which waits until such a function is called.
"""
from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import torch
from torch._compile import _disable_dynamo

DYNAMO = "torch._dynamo"


def import_torchvision() -> ModuleType:
    """`import torchvision`, quickly.  Call it before anything that imports torchvision.  Raises ImportError."""
    if "torchvision" in sys.modules or DYNAMO in sys.modules:
        return importlib.import_module("torchvision")
    package, utils = ModuleType(DYNAMO), ModuleType(f"{DYNAMO}.utils")
    package.__path__ = []
    utils.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    sys.modules |= {DYNAMO: package, f"{DYNAMO}.utils": utils}
    try:
        return importlib.import_module("torchvision")
    except (ImportError, AttributeError):  # another version, which asks for more
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    finally:
        for name in (DYNAMO, f"{DYNAMO}.utils"):
            if sys.modules.get(name) in (package, utils):
                del sys.modules[name]
        if vars(torch).get("_dynamo") is package:
            del vars(torch)["_dynamo"]
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


def _is_compile_supported(device_type: str) -> bool:
    found: bool = importlib.import_module(f"{DYNAMO}.utils").is_compile_supported(device_type)
    return found
