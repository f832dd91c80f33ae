"""What the source of a part says behind its options."""
from __future__ import annotations

import inspect


def option_comments(cls: type) -> dict[str, str]:
    """What the source says behind each option: `size: int = 224  # pixels` -> {size: pixels}."""
    found = {}
    for base in reversed(cls.__mro__[:-1]):
        try:
            lines = inspect.getsource(base).splitlines()
        except (OSError, TypeError):
            continue
        for line in lines:
            name, colon, rest = line.strip().partition(":")
            if colon and name.isidentifier() and "#" in rest:
                found[name] = rest.rpartition("#")[2].strip()
    return found
