"""Near duplicates: precision and recall of `twinview embed --duplicates` on planted copies.

    python benchmarks/duplicates.py DIR [DIR ...] --target torchvision:resnet18,weights= --out benchmarks/results/duplicates.json

Every fifth image of a folder gets a copy, each of its own kind in turn: cut to 60 to 90 % of its sides at a random place, recompressed (JPEG,
quality 30), mirrored, cut and mirrored, halved in size.  What is found besides the planted pairs counts as wrong.
"""
from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

from machine import commit, processor
from twinview.analysis.features.duplicates import NEIGHBORS, curate
from twinview.analysis.features.embed import Options, embed, open_images
from twinview.analysis.targets import find_target
from twinview.data.formats.decode import RGB

KINDS = ("cut", "jpeg", "mirrored", "cut_mirrored", "halved")
THRESHOLDS = (0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.98)


def plant(source: Path, folder: Path, seed: int) -> dict[tuple[str, str], str]:
    """Copies of the images of `source` in `folder`, and planted ones beside them; {(key, key of the copy): kind}."""
    draws, planted = random.Random(seed), dict[tuple[str, str], str]()
    paths = sorted(p for p in source.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    for n, path in enumerate(paths):
        image = Image.open(path).convert("RGB")
        key = f"i{n:05d}"
        image.save(folder / f"{key}.jpg", quality=92)
        if n % 5:
            continue
        kind = KINDS[n // 5 % len(KINDS)]
        if kind.startswith("cut"):
            share = draws.uniform(0.6, 0.9)
            width, height = round(image.width * share), round(image.height * share)
            x, y = draws.randint(0, image.width - width), draws.randint(0, image.height - height)
            image = image.crop((x, y, x + width, y + height))
        if kind.endswith("mirrored"):
            image = ImageOps.mirror(image)
        if kind == "halved":
            image = image.resize((image.width // 2, image.height // 2))
        image.save(folder / f"{key}_{kind}.jpg", quality=30 if kind == "jpeg" else 85)
        planted[key, f"{key}_{kind}"] = kind
    return planted


def measure(source: Path, target: str, size: int, seed: int) -> dict[str, Any]:
    """Precision and recall at every threshold, recall by kind at the default one, and seconds."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        planted = plant(source, folder, seed)
        images = open_images(folder)
        began = time.perf_counter()
        found = embed(find_target(target), images, Options(size=(size, size), workers=0, mirrored=True))
        embedded = time.perf_counter()
        curation = curate(found.features["pooled"], images, found.ids, RGB, threshold=min(THRESHOLDS))
        ended = time.perf_counter()
    names = [sorted((found.keys[p.one], found.keys[p.other])) for p in curation.pairs]
    pairs = [((a, b), p.match.correlation) for (a, b), p in zip(names, curation.pairs)]
    details = [((a, b) in planted, round(p.match.detail, 3)) for (a, b), p in zip(names, curation.pairs)]
    rows = []
    for threshold in THRESHOLDS:
        said = {pair for pair, correlation in pairs if correlation >= threshold}
        right = said & planted.keys()
        by_kind = {kind: round(sum(planted[p] == kind for p in right) / sum(k == kind for k in planted.values()), 4) for kind in KINDS}
        row = {"threshold": threshold, "precision": round(len(right) / len(said), 4) if said else None, "recall": round(len(right) / len(planted), 4)}
        rows.append({**row, "found": len(said), "recall_by_kind": by_kind})
    wrong = [(list(pair), round(c, 3)) for pair, c in pairs if pair not in planted][:5]
    seconds = {"embed": round(embedded - began, 1), "search": round(ended - embedded, 1)}
    return {"set": "/".join(source.parts[-3:]), "images": len(found.keys), "planted": len(planted), "rows": rows,
            "nearest_wrong": wrong, "seconds": seconds,
            "least_detail_of_right": min((d for right, d in details if right), default=None)}  # fmt: skip


def main() -> None:
    """Measure every folder and write what came of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--target", default="torchvision:resnet18,weights=")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    sets = [measure(folder, args.target, args.size, args.seed) for folder in args.folders]
    told: dict[str, Any] = {"commit": commit(), "processor": processor(), "threads": torch.get_num_threads()}
    told |= {"target": args.target, "size": args.size, "seed": args.seed, "neighbors": NEIGHBORS, "sets": sets}
    args.out.write_text(json.dumps(told, indent=1) + "\n")
    for one in sets:
        print(one["set"], one["images"], "images", one["planted"], "planted", one["seconds"])
        for row in one["rows"]:
            print(f"  {row['threshold']:.2f}  precision {row['precision']}  recall {row['recall']}  {row['recall_by_kind']}")


if __name__ == "__main__":
    main()
