"""Whoever stops a start, by Ctrl-C or a fault of another shard, waits for no fetch under way."""
from __future__ import annotations

import multiprocessing
import os
import signal
import time
from typing import Any

import pytest

from twinview.data.dataset.open import open_shards
from twinview.errors import DataError

SLOW = 5.0  # seconds that each shard takes


def test_a_fault_waits_for_no_other_fetch(server: Any, shards: list[str]) -> None:
    server.slow, server.answers["a.tar"] = SLOW, [403]
    started = time.monotonic()
    with pytest.raises(DataError, match="403 Forbidden"):
        open_shards(server.url + "/{a,b,c}.tar")
    assert time.monotonic() - started < SLOW - 1


def test_ctrl_c_waits_for_no_fetch(server: Any, shards: list[str]) -> None:
    server.slow = SLOW

    def read() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
        open_shards(server.url + "/{b,c}.tar")

    reader = multiprocessing.get_context("fork").Process(target=read)
    reader.start()
    while not (server.got("b.tar") and server.got("c.tar")):
        time.sleep(0.01)
    assert reader.pid is not None
    os.kill(reader.pid, signal.SIGINT)
    reader.join(SLOW - 1)
    assert reader.exitcode
