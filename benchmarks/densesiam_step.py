"""Step time and peak memory of DenseSiam's segmentation losses, batched as they are here and image by image, side by side in one run.

    python benchmarks/densesiam_step.py

The loops do the same sums one image at a time: maps are sampled, cross-entropies taken and regions contrasted for each image by itself. Losses and
gradients must agree; time is the median of interleaved steps of the losses alone (forward and backward from the encoder's cells), memory the most
that a fresh process with one of the two has held over what it held before.
Writes benchmarks/results/densesiam_step.json.
"""
from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from twinview.assembly import assemble
from twinview.model import Siamese
from twinview.recipe import find, read
from twinview.values import Batch, Features, Geometry, Progress

RESULTS = Path(__file__).parent / "results" / "densesiam_step.json"
SHARE = 0.9  # of the run: the region loss counts


def main() -> None:
    """Measure every size, each form's memory in a process of its own."""
    ask = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ask.add_argument("--repeats", type=int, default=7)
    ask.add_argument("--threads", type=int, default=2)
    ask.add_argument("--memory", metavar="FORM", help="measure one form's peak memory and print it (used by the script itself)")
    ask.add_argument("--size", type=int, nargs=2, default=(32, 160), help="with --memory: images, pixels of a view's side")
    args = ask.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory:
        print(peak_memory(args.memory, *args.size))
        return
    found = []
    for images, side in ((16, 160), (32, 160), (8, 320)):
        row: dict[str, Any] = {"images": images, "side": side, "threads": args.threads, **times(images, side, args.repeats)}
        for form in FORMS:
            command = [sys.executable, __file__, "--memory", form, "--size", str(images), str(side), "--threads", str(args.threads)]
            row[f"{form}_mib"] = round(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        found.append(row)
        print(row)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def setting(images: int, side: int) -> tuple[Siamese, Batch, list[Tensor]]:
    """The published heads, a batch's geometry, and cells [images, 128, side / 4, side / 4] of both views."""
    recipe = read(find("densesiam/coco_stuff_r18"), ["encoder.weights=", f"views.size=[{side},{side}]", "evaluate=[]", "run.precision=fp32"])
    assembly = assemble(recipe)
    encoder = assembly.encoder()
    model = Siamese(assembly, assembly.dims(encoder, 1000), encoder).train()
    generator = torch.Generator().manual_seed(0)
    r = 0.5 + 0.5 * torch.rand(images, 1, generator=generator)
    corner = torch.rand(images, 2, generator=generator) * (1 - r)
    boxes = torch.stack([torch.cat([corner, corner + r], 1), torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(images, 4)], 1)
    flips = torch.stack([torch.rand(images, generator=generator) < 0.5, torch.zeros(images, dtype=torch.bool)], 1)
    geometry = Geometry(boxes, flips, torch.full((images, 2), 640.0), ((side, side),) * 2, ((0, 1), (1, 0)))
    pixels = torch.zeros(images, 3, 8, 8, dtype=torch.uint8)
    batch = Batch(tuple(str(i) for i in range(images)), torch.arange(images), torch.arange(images), 0, (pixels, pixels), geometry, (None, None))
    return model, batch, [torch.randn(images, 128, side // 4, side // 4, generator=generator) for _ in range(2)]


def batched(model: Siamese, batch: Batch, cells: list[Tensor]) -> Tensor:
    """The losses as they are."""
    from twinview.model import LazyStep

    step = LazyStep(model, batch, Progress(0, 10, 0, SHARE), False)
    for view in (0, 1):
        step._online._made[view] = Features(cells=cells[view])
    total = torch.zeros(())
    for label in model.assembly.answers("loss"):
        for answer in model.assembly.only("loss", label)(step=step):
            total = total + model.assembly.weight(label, 0.0) * torch.stack(list(answer.values())).sum()
    return total


def looped(model: Siamese, batch: Batch, cells: list[Tensor]) -> Tensor:
    """The same, image by image."""
    import math

    heads: dict[str, Any] = dict(model.online.heads.items())
    n, g = len(cells[0]), cells[0].shape[2]
    z, z_aux = [heads["clusters/projector"](c) for c in cells], [heads["densesiam/pixel/auxiliary_projector"](c) for c in cells]
    p, p_aux = [heads["densesiam/pixel/predictor"](x) for x in z], [heads["densesiam/pixel/auxiliary_predictor"](x) for x in z_aux]
    middles = (torch.arange(g) + 0.5) / g

    def sampled(maps: Tensor, view: int, image: int) -> Tensor:
        x0, y0, x1, y1 = batch.geometry.boxes[image, 0]
        x, y = (middles, middles) if view == 0 else (x0 + middles * (x1 - x0), y0 + middles * (y1 - y0))
        x = 1 - x if batch.geometry.flips[image, view] else x
        points = torch.stack([x.expand(g, g), y[:, None].expand(g, g)], -1)
        return F.grid_sample(maps[image : image + 1], 2 * points[None] - 1, padding_mode="border", align_corners=False)[0]

    def pixel(p: list[Tensor], z: list[Tensor]) -> Tensor:
        losses = []
        for a, b in ((0, 1), (1, 0)):
            for i in range(n):
                losses.append(-(sampled(z[b], b, i).detach().softmax(0) * sampled(p[a], a, i).log_softmax(0)).sum(0).mean())
        return torch.stack(losses).mean()

    w = math.log(128) / (math.log(27) + math.log(128))
    total = w * pixel(p, z) + (1 - w) * pixel(p_aux, z_aux)
    for view in (0, 1):
        labels = [z[view][i].detach().argmax(0) for i in range(n)]
        counts = torch.stack([torch.bincount(y.flatten(), minlength=27) for y in labels]).sum(0)
        weight = counts / counts.sum()
        own = [(weight[y] * F.cross_entropy(z[view][i][None], y[None], reduction="none")[0]).mean() for i, y in enumerate(labels)]
        total = total + torch.stack(own).mean() / 2
    sums = [torch.stack([torch.einsum("khw,chw->kc", sampled(z[v], v, i).softmax(0), sampled(cells[v], v, i)) for i in range(n)]) for v in (0, 1)]
    q = [heads["densesiam/region/projector"](x.flatten(0, 1)) for x in sums]
    s = [F.normalize(heads["densesiam/region/predictor"](x), dim=1).view(n, 27, -1) for x in q]
    q = [F.normalize(x, dim=1).view(n, 27, -1) for x in q]
    labels27 = torch.arange(27)
    terms = [F.cross_entropy(s[a][i] @ q[b][i].T / 0.1, labels27) for a, b in ((0, 1), (1, 0)) for i in range(n)]
    return total + 0.1 * torch.stack(terms).mean()


FORMS: dict[str, Callable[[Siamese, Batch, list[Tensor]], Tensor]] = {"batched": batched, "looped": looped}


def step(form: str, model: Siamese, batch: Batch, cells: list[Tensor]) -> tuple[float, Tensor]:
    """Loss, and its gradient to the first view's cells."""
    model.zero_grad()
    leaves = [c.clone().requires_grad_() for c in cells]
    loss = FORMS[form](model, batch, leaves)
    loss.backward()  # type: ignore[no-untyped-call]
    assert leaves[0].grad is not None
    return float(loss.detach()), leaves[0].grad


def times(images: int, side: int, repeats: int) -> dict[str, float]:
    """Median seconds of each form, interleaved, and by how much they disagree."""
    model, batch, cells = setting(images, side)
    spent: dict[str, list[float]] = {form: [] for form in FORMS}
    results: dict[str, tuple[float, Tensor]] = {}
    for repeat in range(repeats + 1):
        for form in FORMS:
            began = time.perf_counter()
            results[form] = step(form, model, batch, cells)
            if repeat:  # the first warms up
                spent[form].append(time.perf_counter() - began)
    (loss, grad), (other, theirs) = results["batched"], results["looped"]
    medians = {form: statistics.median(found) for form, found in spent.items()}
    return {
        **{f"{form}_seconds": round(s, 4) for form, s in medians.items()},
        "ratio": round(medians["looped"] / medians["batched"], 2),
        "loss_difference": abs(loss - other),
        "gradient_difference": float((grad - theirs).abs().max() / theirs.abs().max()),
    }


def peak_memory(form: str, images: int, side: int) -> float:
    """MiB that a step holds over what the process held before."""
    model, batch, cells = setting(images, side)
    step(form, *setting(2, 32))  # what a first call loads
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten (Linux)
    before = resident("VmRSS")
    step(form, model, batch, cells)
    return (resident("VmHWM") - before) / 1024


def resident(what: str) -> float:
    """KiB that the process holds (VmRSS), or the most it has held (VmHWM)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return float(line.split()[1])


if __name__ == "__main__":
    main()
