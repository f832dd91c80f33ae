"""timm's mixup, CutMix and random erasing under draws of our own: by step and batch, or by sample, whatever else was drawn."""
from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from twinview.errors import RecipeError
from twinview.ops.seeding import seed_of, seeded


class Mixing(NamedTuple):
    """How images of a batch are mixed, as timm's Mixup has it: one draw a batch, each image with the one at the mirrored place."""

    mixup: float  # alpha of the Beta distribution; 0: none
    cutmix: float
    probability: float
    switch: float  # chance of CutMix where both are on
    smoothing: float


@contextmanager
def drawn_from(*names: int | str) -> Iterator[None]:
    """Python's, numpy's and torch's global generators seeded by `names` inside, and as they were afterwards."""
    python, state = random.getstate(), np.random.get_state()
    seed = seed_of(*names)
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        with seeded(seed):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(state)


def mixed(images: Tensor, labels: Tensor, classes: int, how: Mixing, seed: int) -> tuple[Tensor, Tensor]:
    """Images [B, C, H, W] and classes [B] -> mixed images and targets [B, classes] that sum to 1.  Raises RecipeError for an odd batch."""
    from timm.data.mixup import Mixup

    if how.mixup == how.cutmix == 0:
        return images, smoothed(labels, classes, how.smoothing)
    if len(images) % 2:
        raise RecipeError(f"[[loss]] finetune.classes mixup: pairs the images of a batch, and a rank has {len(images)}. Write an even batch_size.")
    make: Any = Mixup
    mixer = make(
        mixup_alpha=how.mixup, cutmix_alpha=how.cutmix, prob=how.probability, switch_prob=how.switch, mode="batch",
        label_smoothing=how.smoothing, num_classes=classes,
    )
    with drawn_from(seed):
        return cast(tuple[Tensor, Tensor], mixer(images.clone(), labels))


def targets(shape: torch.Size, labels: Tensor, classes: int, how: Mixing, seed: int) -> Tensor:
    """The targets [B, classes] that `mixed` gives for images of this shape, without the images."""
    return mixed(labels.new_zeros(shape[0], 1, *shape[2:], dtype=torch.float32), labels, classes, how, seed)[1]


def smoothed(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """[B, classes]: 1 - smoothing more at the class than elsewhere, summing to 1."""
    off = smoothing / classes
    return torch.full((len(labels), classes), off, device=labels.device).scatter_(1, labels[:, None], 1 - smoothing + off)


def erased(images: Tensor, seeds: Tensor, probability: float, names: tuple[int | str, ...]) -> Tensor:
    """A box of each image, with this chance, filled with N(0, 1) noise (Zhong et al. 2020): by sample, whatever else is in the batch."""
    from timm.data.random_erasing import RandomErasing

    make: Any = RandomErasing
    eraser = make(probability, mode="pixel", device="cpu")
    found = images.clone()
    for image, seed in zip(found, seeds.tolist()):
        with drawn_from(seed, *names):
            image.copy_(eraser(image.cpu()))
    return found
