"""The compiled numbers are numpy's."""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from twinview.ops.compiled import philox


def test_numbers_of_every_kind_in_any_order() -> None:
    bits = np.random.default_rng(0).integers(0, 2**63, (60, 2)).astype(np.uint64)
    state = np.zeros(philox.SIZE, np.uint64)
    three: NDArray[np.float64] = np.empty(3)
    four: NDArray[np.int64] = np.empty(4, np.int64)
    many: NDArray[np.int64] = np.empty(37, np.int64)
    for key in bits:
        rng = np.random.Generator(np.random.Philox(key=key))
        philox.begin(state, key)
        philox.permutation(state, four)
        philox.random(state, three)
        assert np.array_equal(rng.permutation(4), four) and np.array_equal(rng.random(3), three)
        for n in (1, 2, 3, 1000, 2**31 + 5, 2**32 - 1):
            assert int(rng.integers(n)) == philox.integer(state, n), n
        philox.permutation(state, many)
        philox.random(state, three)
        assert np.array_equal(rng.permutation(37), many) and np.array_equal(rng.random(3), three)
