"""torchvision, imported without torch's compiler, which takes twice as long as torch itself.

`torchvision.ops.roi_align` imports one function of torch._dynamo, which it calls on a GPU alone, under deterministic algorithms. While torchvision is
imported, stand-ins lie in the place of those two modules; the function, when it is called, asks the real ones.
"""
from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

DYNAMO = "torch._dynamo"


def import_torchvision() -> ModuleType:
    """`import torchvision`, quickly.  Call it before anything that imports torchvision (timm does).  Raises ImportError."""
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


def _is_compile_supported(device_type: str) -> bool:
    found: bool = importlib.import_module(f"{DYNAMO}.utils").is_compile_supported(device_type)
    return found
