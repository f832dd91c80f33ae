from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import ctypes, resource, sys
from twinview.machine import keep_freed_memory

c = ctypes.CDLL(None)
c.malloc.restype, c.free.argtypes, c.memset.argtypes = ctypes.c_void_p, [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def take():  # 64 MB, and give them back
    place = c.malloc(1 << 26)
    c.memset(place, 1, 1 << 26)
    c.free(place)

assert sys.argv[1] == "plain" or keep_freed_memory()
take()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
take()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_freed_memory_is_taken_again_without_page_faults() -> None:
    """In processes of their own: it is of a whole process."""
    plain, kept = (int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, check=True).stdout) for how in ("plain", "kept"))
    assert plain > 1000 and kept < 100
