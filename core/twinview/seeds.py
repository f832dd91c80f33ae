"""Numbers from names: seeds that are the same on every machine, and the bits that are made of them.  Imports no torch."""
from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def seed_of(*names: int | str) -> int:
    """63 bits from any names, the same on every machine."""
    text = "\0".join(f"{type(n).__name__}:{n}" for n in names)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def splitmix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer: a bijection of 64 bits in which every bit of the input moves half of the output's."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
