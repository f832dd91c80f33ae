"""Random starts and draws that depend on names, not on what was drawn before."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from twinview.seeds import seed_of, splitmix

__all__ = ["generator", "seed_of", "seeded", "splitmix", "uniform"]


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
