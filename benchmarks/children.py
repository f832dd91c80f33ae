"""Work on several ranks in a process of its own, for benchmarks that go on afterwards: who has computed with torch may not fork ranks again."""
from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from typing import TypeVar

from twinview.engine.distributed.launch import launch

T = TypeVar("T")


def in_child(ranks: int, work: Callable[[], T]) -> T:
    """What rank 0 gives.  Ends this process where `work` fails."""
    ear, mouth = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(ear)
            with os.fdopen(mouth, "wb") as out:
                pickle.dump(launch(ranks, work), out)
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(mouth)
    with os.fdopen(ear, "rb") as heard:
        content = heard.read()
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{ranks} ranks: failed; its error stands above")
    found: T = pickle.loads(content)
    return found
