"""`twinview embed` in images per second, beside a bare loop over the same encoder: PIL, the transform, one batch after another.

    python benchmarks/embed.py DIR --target torchvision:resnet18,weights= --size 128 --out benchmarks/results/embed.json
"""
from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from machine import commit, processor
from twinview.analysis.features.embed import Options, embed_to, open_images
from twinview.analysis.targets import Target, find_target

BATCH = 32


@torch.inference_mode()
def bare(target: Target, paths: list[Path], size: int) -> NDArray[np.float32]:
    """Features by the loop that people write themselves."""
    found = []
    for at in range(0, len(paths), BATCH):
        batch = torch.stack([target.transform(path, size=size) for path in paths[at : at + BATCH]])
        found.append(target.encoder(batch).pooled.numpy())
    return np.concatenate(found)


def main() -> None:
    """Time both, turn by turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", default="torchvision:resnet18,weights=")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    target, images = find_target(args.target), open_images(args.folder)
    paths = sorted(p for p in args.folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    speeds: dict[str, list[float]] = {"embed": [], "bare": []}
    apart = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.rounds):
            began = time.perf_counter()
            embed_to(target, images, Path(folder) / "f.npy", Options(size=(args.size, args.size), workers=args.workers, batch_size=BATCH))
            middle = time.perf_counter()
            own = bare(target, paths, args.size)
            speeds["embed"].append(len(paths) / (middle - began))
            speeds["bare"].append(len(paths) / (time.perf_counter() - middle))
            apart = max(apart, float(np.abs(own - np.load(Path(folder) / "f.npy")).max()))
    share = statistics.median(speeds["embed"]) / statistics.median(speeds["bare"])
    told = {
        "commit": commit(), "processor": processor(), "threads": torch.get_num_threads(), "target": args.target, "size": args.size,
        "images": len(paths),
        "workers": args.workers, "batch": BATCH, "images_per_second": {name: [round(x, 2) for x in values] for name, values in speeds.items()},
        "median_share_of_bare": round(share, 3), "largest_difference": apart,
    }  # fmt: skip
    args.out.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
