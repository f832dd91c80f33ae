"""Random starts and draws that depend on names, not on what was drawn before."""
from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def seed_of(*names: int | str) -> int:
    """63 bits from any names, the same on every machine."""
    text = "\0".join(f"{type(n).__name__}:{n}" for n in names)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


@contextlib.contextmanager
def seeded(*names: int | str) -> Iterator[None]:
    """Torch's CPU generator seeded by `names` inside, and as it was afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(*names))  # torch.manual_seed would move the GPUs' generators too
        yield


def generator(*names: int | str) -> np.random.Generator:
    """A generator of its own for any names, the same on every rank and after a resume."""
    return np.random.Generator(np.random.Philox(key=seed_of(*names)))


def uniform(seeds: Tensor, n: int, *names: int | str) -> Tensor:
    """[B, n] float32 in [0, 1): row b depends on seeds[b] (int64) and `names` alone, whatever else is in the batch.

    SplitMix64 (Steele, Lea, Flood 2014) as a counter-based generator, on the CPU.
    """
    with np.errstate(over="ignore"):
        state = splitmix(seeds.cpu().numpy().astype(np.uint64) ^ np.uint64(seed_of(*names)))
        steps = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        bits = splitmix(state[:, None] + steps[None])
    return torch.from_numpy(((bits >> np.uint64(40)).astype(np.float32)) / np.float32(1 << 24))


def splitmix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer: a bijection of 64 bits in which every bit of the input moves half of the output's."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
