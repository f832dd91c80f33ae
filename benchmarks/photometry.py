"""byol.photometry against plain torchvision operations on equal draws: speed on one core, and equality.

    python benchmarks/photometry.py --images FOLDER_OF_JPEGS --draws 10000

Speed is images a second of process CPU time, one thread, one image at a time as a data worker does it, both views of an image counted as one;
the contestants take turns within one run.  torchvision's blur is timed with the published 23 px kernel and with 15 px, which reaches as far as ours.
Equality is measured at 224 px over `--draws` views (half of either kind): channel means and deviations, quantiles (5 % to 95 %) of saturation and of
the hue shift, energy of fine detail, and values that differ at all.  The result goes to benchmarks/results/photometry.json.
Without --images the pictures are twinview's own street scenes.
"""
from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as reference

from machine import processor
from twinview.data.scenes.street import draw_scene
from twinview_byol.photometry import Photometry

PHOTOMETRY = Photometry()
OUT = Path(__file__).parent / "results" / "photometry.json"
OPERATIONS = (reference.adjust_brightness, reference.adjust_contrast, reference.adjust_saturation, reference.adjust_hue)
BINS = 2000
Draws = dict[str, Tensor]
Apply = Callable[[Tensor, Draws], Tensor]


def pictures(folder: Path | None, side: int, most: int = 256) -> list[Tensor]:
    """[1, 3, side, side] uint8 each: the middle of an image, resized."""
    if folder is None:
        raw = [torch.from_numpy(draw_scene(seed, (side, side))[0]).permute(2, 0, 1) for seed in range(64)]
    else:
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))[:most]
        raw = [decode_image(str(p), ImageReadMode.RGB) for p in files]
    return [reference.center_crop(reference.resize(x, [side], antialias=True), [side, side])[None].contiguous() for x in raw]


def torchvision_with(kernel: int) -> Apply:
    def apply(x: Tensor, d: Draws) -> Tensor:
        for k in d["order"][0].tolist():
            factor = float(d["factors"][0, k])
            if factor != (0 if k == 3 else 1):
                x = OPERATIONS[k](x, factor)
        if d["grey"]:
            x = reference.rgb_to_grayscale(x, 3)
        if d["sigma"] > 0:
            x = reference.gaussian_blur(x, [kernel, kernel], [float(d["sigma"])] * 2)
        return reference.solarize(x, 128) if d["solarize"] else x

    return apply


def draws(side: int, n: int, seed: int) -> list[Draws]:
    """View 0, view 1, view 0, ... of n images, as a batch of one each."""
    rng = np.random.default_rng([seed, side])
    return [{k: v[None] for k, v in PHOTOMETRY.draw_augment(i % 2, (side, side), rng).items()} for i in range(2 * n)]


def seconds(apply: Apply, images: list[Tensor], several: list[Draws]) -> float:
    start = time.process_time()
    for i, d in enumerate(several):
        apply(images[i // 2 % len(images)], d)
    return time.process_time() - start


def speed(folder: Path | None, side: int, rounds: int, per_round: int) -> dict[str, float]:
    """Images (two views each) a second of one core's time, median of the rounds."""
    images = pictures(folder, side)
    contestants: dict[str, Apply] = {
        "twinview": PHOTOMETRY.apply_augment,
        "torchvision_23px_kernel": torchvision_with(23),
        "torchvision_15px_kernel": torchvision_with(15),
    }
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for r in range(rounds + 1):
        several = draws(side, per_round, r)
        for name, apply in contestants.items():
            taken[name].append(seconds(apply, images, several))
    rates = {name: per_round / statistics.median(t[1:]) for name, t in taken.items()}  # the first round warms up
    return {name: round(rate, 1) for name, rate in rates.items()} | {
        "speedup": round(rates["twinview"] / rates["torchvision_23px_kernel"], 2),
        "speedup_over_15px_kernel": round(rates["twinview"] / rates["torchvision_15px_kernel"], 2),
    }


class Totals:
    """What is known of many pictures: sums and histograms."""

    def __init__(self) -> None:
        self.n, self.sums, self.squares, self.detail = 0, torch.zeros(3), torch.zeros(3), 0.0
        self.saturation, self.shift = torch.zeros(BINS), torch.zeros(BINS)

    def add(self, before: Tensor, after: Tensor) -> None:
        x = after.double()
        self.n += 1
        self.sums = self.sums + x.mean((0, 2, 3))
        self.squares = self.squares + x.square().mean((0, 2, 3))
        inner = x[..., 1:-1, 1:-1]
        around = x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]
        self.detail += float((around - 4 * inner).square().mean())
        (hue_0, saturation_0), (hue_1, saturation_1) = hue_and_saturation(before), hue_and_saturation(after)
        self.saturation += torch.histc(saturation_1, BINS, 0, 1)
        colored = (saturation_0 > 0.2) & (saturation_1 > 0.2)
        self.shift += torch.histc(((hue_1 - hue_0 + 0.5) % 1)[colored], BINS, 0, 1)

    def deviation(self) -> Tensor:
        return (self.squares / self.n - (self.sums / self.n) ** 2).sqrt()


def hue_and_saturation(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of every fourth pixel of every fourth row, by the three-way definition: shares of a turn, 0..1."""
    red, green, blue = x[0, :, ::4, ::4].float()
    top, low = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    c = (top - low).clamp(min=1)
    hue = torch.where(top == red, (green - blue) / c, torch.where(top == green, 2 + (blue - red) / c, 4 + (red - green) / c))
    return hue / 6 % 1, (top - low) / top.clamp(min=1)


def quantiles(histogram: Tensor) -> Tensor:
    share = histogram.double().cumsum(0) / histogram.sum()
    return torch.searchsorted(share, torch.linspace(0.05, 0.95, 19, dtype=torch.double)) / BINS


def equality(folder: Path | None, n: int) -> dict[str, Any]:
    """Largest differences of the statistics, and of the values themselves."""
    images, theirs = pictures(folder, 224), torchvision_with(15)
    a, b = Totals(), Totals()
    unequal, beyond_one, most, values = 0, 0, 0, 0
    for i, d in enumerate(draws(224, n // 2, 1000)):
        x = images[i // 2 % len(images)]
        mine, other = PHOTOMETRY.apply_augment(x, d), theirs(x, d)
        a.add(x, mine)
        b.add(x, other)
        difference = (mine.int() - other.int()).abs()
        unequal, beyond_one = unequal + int((difference > 0).sum()), beyond_one + int((difference > 1).sum())
        most, values = max(most, int(difference.max())), values + difference.numel()
    return {
        "draws": a.n,
        "channel_mean_difference_of_255": float((a.sums / a.n - b.sums / b.n).abs().max()),
        "channel_deviation_ratio": float((a.deviation() / b.deviation() - 1).abs().max()),
        "saturation_quantiles_difference": float((quantiles(a.saturation) - quantiles(b.saturation)).abs().max()),
        "hue_shift_quantiles_difference_of_a_turn": float((quantiles(a.shift) - quantiles(b.shift)).abs().max()),
        "detail_energy_ratio": abs(a.detail / b.detail - 1),
        "share_of_values_unequal": unequal / values,
        "share_of_values_off_by_more_than_one": beyond_one / values,
        "largest_difference": most,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of JPEGs")
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "images": "/".join(args.images.resolve().parts[-3:]) if args.images else "street scenes",
        "machine": {"processor": processor(), "cores": os.cpu_count(), "load_at_start": round(os.getloadavg()[0], 1)},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__},
        "images_per_second_per_core": {"96px": speed(args.images, 96, args.rounds, 100), "224px": speed(args.images, 224, args.rounds, 20)},
        "equality_at_224px": equality(args.images, args.draws),
    }
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
