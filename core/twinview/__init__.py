"""twinview: pre-train vision backbones on unlabeled images with Siamese networks."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twinview.version import __version__ as __version__

if TYPE_CHECKING:
    from twinview.api import check as check
    from twinview.api import embed as embed
    from twinview.api import load as load
    from twinview.api import read_features as read_features
    from twinview.api import runs as runs
    from twinview.api import train as train
    from twinview.branch import Branch as Branch
    from twinview.branch import Branches as Branches
    from twinview.errors import RecipeError as RecipeError
    from twinview.errors import TwinviewError as TwinviewError
    from twinview.hooks import hookimpl as hookimpl
    from twinview.hooks import part as part

_LAZY = {
    **{"train": "api", "load": "api", "check": "api", "embed": "api", "read_features": "api", "runs": "api"},
    **{"hookimpl": "hooks", "part": "hooks", "Branch": "branch", "Branches": "branch"},
    **{"RecipeError": "errors", "TwinviewError": "errors"},
}


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


def __getattr__(name: str) -> Any:
    """The package's face, imported when first asked for, so that `import twinview` costs nothing (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module 'twinview' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"twinview.{_LAZY[name]}"), name)
