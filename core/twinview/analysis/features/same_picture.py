"""Whether one picture is a copy of another, cut or mirrored: normalized cross-correlation of small grey pictures over sizes and places."""
from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import uniform_filter
from torch import Tensor

from twinview.data.formats.decode import resize

SIDE = 48  # pixels of the longer side of the small pictures
FLOOR = 4.0  # grey levels: a deviation below this is flat, and flat places match everything
STEPS, SMALLEST = 11, 0.5  # sizes that a cut is looked for at, from the whole to half of a side

Grey = NDArray[np.float32]  # [h, w], of which one side is SIDE


class Match(NamedTuple):
    """How well two pictures agree."""

    correlation: float  # -1 to 1, of the best size and place
    mirrored: bool
    share: float  # of the larger one's area that the other shows
    detail: float = -1.0  # the same of what a blur takes away: of two skies it is near 0


NONE = Match(-1.0, False, 1.0)


def small(pixels: Tensor) -> Grey:
    """Pixels [C, H, W] -> [h, w] grey of 0..255, the longer side SIDE pixels."""
    grey = pixels.float().mean(0, keepdim=True)
    scale = SIDE / max(grey.shape[1:])
    found: Grey = resize(grey, (max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[2] * scale))))[0].numpy()
    return found


def match(one: Grey, other: Grey) -> Match:
    """The best agreement of one picture with a cut of the other, either way round, mirrored or not."""
    return max(_find(one, other), _find(other, one), key=lambda found: found.correlation)


def _find(whole: Grey, piece: Grey) -> Match:
    """Look for `piece` in `whole`, from the largest size at which it fits down to SMALLEST of that."""
    fits = min(whole.shape[0] / piece.shape[0], whole.shape[1] / piece.shape[1])
    scales = [fits * SMALLEST ** (step / (STEPS - 1)) for step in range(STEPS)]
    sizes = dict.fromkeys((min(round(piece.shape[0] * s), whole.shape[0]), min(round(piece.shape[1] * s), whole.shape[1])) for s in scales)
    cuts = [cut for size in sizes if min(size) >= 8 and (cut := _unit(resize(torch.from_numpy(piece)[None], size)[0].numpy())) is not None]
    if not cuts:
        return NONE
    pad = np.zeros((2 * len(cuts), SIDE, SIDE), np.float32)
    for n, cut in enumerate(cuts):
        pad[2 * n, : cut.shape[0], : cut.shape[1]] = cut
        pad[2 * n + 1, : cut.shape[0], : cut.shape[1]] = cut[:, ::-1]
    spectrum = fft.rfft2(whole - whole.mean(), (SIDE, SIDE))
    products = fft.irfft2(spectrum * np.conj(fft.rfft2(pad)), (SIDE, SIDE))  # circular: what wraps around lies outside of the places that are kept
    best, sums = NONE, _integrals(whole)
    window = shown = whole
    for n, cut in enumerate(cuts):
        h, w = cut.shape
        first, second = (_windows(table, h, w) for table in sums)
        deviation = np.sqrt(np.maximum(second - first**2 / (h * w), 0))
        deviation[deviation < FLOOR * np.sqrt(h * w)] = np.inf
        for mirrored in (False, True):
            places = products[2 * n + mirrored, : whole.shape[0] - h + 1, : whole.shape[1] - w + 1]
            scores = places / deviation
            y, x = divmod(int(scores.argmax()), scores.shape[1])
            if scores[y, x] > best.correlation and scores[y, x]:
                best = Match(float(scores[y, x]), mirrored, h * w / (whole.shape[0] * whole.shape[1]))
                window = whole[y : y + h, x : x + w]
                shown = cut[:, ::-1] if mirrored else cut
    return best._replace(detail=_detail(window, shown)) if best.correlation > 0 else best


def _detail(one: Grey, other: Grey) -> float:
    """Correlation of what a blur over 3 x 3 takes away from two pictures of one size; the best of shifts by up to a pixel."""
    fine = [picture - uniform_filter(picture, 3, mode="nearest") for picture in (one, np.ascontiguousarray(other))]
    a = fine[0][1:-1, 1:-1]
    found = [_correlation(a, fine[1][y : y + a.shape[0], x : x + a.shape[1]]) for y in range(3) for x in range(3)]
    return max(found)


def _correlation(a: Grey, b: Grey) -> float:
    norm = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / norm if norm else -1.0


def _unit(cut: Grey) -> Grey | None:
    """Of mean 0 and norm 1; None of what is flat."""
    centered = cut - cut.mean()
    norm = float(np.sqrt((centered**2).sum()))
    return centered / norm if norm >= FLOOR * np.sqrt(cut.size) else None


def _integrals(picture: Grey) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums of the values and of their squares over every rectangle from the top left corner, [h + 1, w + 1]."""
    centered = picture.astype(np.float64) - picture.mean()
    a, b = (np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0))) for values in (centered, centered**2))
    return a, b


def _windows(table: NDArray[np.float64], h: int, w: int) -> NDArray[np.float64]:
    """Sums over every window of h x w, from an integral table."""
    found: NDArray[np.float64] = table[h:, w:] - table[:-h, w:] - table[h:, :-w] + table[:-h, :-w]
    return found
