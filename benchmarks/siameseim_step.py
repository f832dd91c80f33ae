"""A SiameseIM step, ours beside a plain form of the same step, in turn, in one process: seconds, and the peak memory of each alone.

    python benchmarks/siameseim_step.py                       # 128 pixels, batch 16, width 384, 2 threads, fp32 and bf16
    python benchmarks/siameseim_step.py --steps 2 --size 64 --batch-size 4 --width 48 --depth 2 --heads 3 --no-compile

Fused: ours with [optimizer] fused.  Plain: attention written out, the negative term by cells x cells products, the target's average and AdamW
parameter by parameter.  All start from the same weights and see the same batch; their losses are compared.  Then the whole step through
torch.compile.  Writes benchmarks/results/siameseim_step.json.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from machine import processor
from twinview.assembly import assemble
from twinview.data.loading.item import Item
from twinview.data.loading.stacking import collate
from twinview.engine.optimizer import make_optimizer
from twinview.model import Siamese
from twinview.recipe import read
from twinview.values import Batch, Progress
from twinview_siameseim import dense

RESULT = Path(__file__).parent / "results" / "siameseim_step.json"
MOMENTUM, WARM_UP = 0.995, 3  # WARM_UP: steps that are not timed
FORMS, PRECISIONS = ("ours", "fused", "plain"), ("fp32", "bf16")
PARTS = ("forward", "backward", "optimizer", "average")


def model_of(args: argparse.Namespace, name: str, precision: str) -> Siamese:
    cells = (args.size // 16) ** 2
    recipe = read({
        "views": {"use": "siameseim.crops", "size": args.size},
        "masks": {"use": "siameseim.blocks", "count": math.ceil(0.602 * cells)},  # 39 of 64
        "encoder": {
            "use": "timm.encoder", "name": "vit_small_patch16_224", "width": args.width, "depth": args.depth, "heads": args.heads,
            "positions": "sine_row", "final_norm": False, "init": "mae", "frozen_patch_embed": True,
        },
        "align": {"use": "siameseim.relative"},
        "loss": [{"use": "siameseim.dense", "channels": args.width, "negative_weight": 0.02 * 768 / args.width}],
        "target": {"momentum": MOMENTUM, "update": "before_forward"},
        "data": {"shards": "none"},
        "optimizer": {"use": "adamw", "lr": 1e-4, "betas": [0.9, 0.95], "weight_decay": 0.05, "fused": name == "fused"},
        "run": {"steps": 10**6, "batch_size": args.batch_size, "precision": precision},
    })
    assembly = assemble(recipe)
    encoder = assembly.encoder()
    return Siamese(assembly, assembly.dims(encoder, 10**6), encoder).train()


def batch_of(model: Siamese, args: argparse.Namespace) -> Batch:
    """Noise, with crops and masks as the recipe draws them."""
    rng, calls, items = np.random.default_rng(0), model.assembly.calls, []
    for i in range(args.batch_size):
        geometry = calls.sample_views(size=(375, 500), rng=rng)
        images = tuple(torch.from_numpy(rng.integers(0, 256, (3, args.size, args.size), dtype=np.uint8)) for _ in range(2))
        hidden = calls.make_masks(geometry=geometry, grids=model.dims.grids, rng=rng) or (None, None)
        items.append(Item(str(i), i, i + 1, 0, images, geometry, hidden, None, {}))
    return collate(items)


# ---- the plain form
def plain_attention(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
    shares: Tensor = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1)
    return shares @ v


def plain_loss(q: Tensor, t: Tensor, weight: Tensor, negative_weight: float) -> dense.Terms:
    """All weights are 1."""
    with torch.autocast(q.device.type, enabled=False):
        rows = q.float().movedim(1, -1).flatten(0, 2)
        goals = F.layer_norm(t.float().movedim(1, -1), (q.shape[1],)).flatten(0, 2)
        shared = goals.mT @ goals / len(goals)
        pos = (rows - goals).square().sum(1).mean() / q.shape[1]
        neg = negative_weight * (rows @ shared @ rows.mT).diagonal().mean() / q.shape[1]
    return dense.Terms(pos + neg, pos, neg, pos)


@torch.no_grad()
def plain_average(model: Siamese, momentum: float) -> None:
    assert model.target is not None
    online = dict(model.online.named_parameters())
    for name, p in model.target.named_parameters():
        p.copy_(momentum * p + (1 - momentum) * online[name])


@contextlib.contextmanager
def form(name: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if name == "plain":
            stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", plain_attention))
            stack.enter_context(mock.patch.object(dense, "dense_loss", plain_loss))
            stack.enter_context(mock.patch.object(Siamese, "follow", plain_average))
        yield


# ---- measuring
class Stepper:
    """One form at one precision: a model, its optimizer, and a step."""

    def __init__(self, args: argparse.Namespace, name: str, precision: str) -> None:
        self.name = name
        self.model = model_of(args, name, precision)
        self.call: Callable[..., Any] = self.model
        self.batch = batch_of(self.model, args)
        self.optimizer, moved = make_optimizer(self.model.assembly, self.model.online)
        self.trainable = list(moved.values())

    def step(self) -> tuple[float, list[float]]:
        """The loss, and seconds of PARTS."""
        with form(self.name):
            times = [time.perf_counter()]
            self.model.follow(MOMENTUM)
            times.append(time.perf_counter())
            loss = self.call(self.batch, Progress(0, 10**6, 0, 0.0)).loss
            times.append(time.perf_counter())
            loss.backward()
            times.append(time.perf_counter())
            torch.nn.utils.clip_grad_norm_(self.trainable, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            times.append(time.perf_counter())
        average, forward, backward, optimizer = np.diff(times).tolist()
        return float(loss.detach()), [forward, backward, optimizer, average]


def measure(args: argparse.Namespace, precision: str) -> dict[str, Any]:
    steppers = {name: Stepper(args, name, precision) for name in FORMS}
    found: dict[str, list[tuple[float, list[float]]]] = {name: [] for name in FORMS}
    for i in tqdm(range(WARM_UP + args.steps), unit=f" step of each, {precision}"):
        for name in sorted(FORMS, reverse=bool(i % 2)):  # each goes first as often as the other
            found[name].append(steppers[name].step())
    gap = max(abs(a[0] - b[0]) for name in FORMS[1:] for a, b in zip(found["ours"], found[name]))
    table: dict[str, Any] = {}
    for name, rows in found.items():
        table[name] = {**summary([times for _, times in rows[WARM_UP:]], args), "peak_gb": peak(args, name, precision)}
    return {**table, "speed_up": table["plain"]["step_s"] / table["ours"]["step_s"], "largest_loss_gap": gap}


def summary(times: list[list[float]], args: argparse.Namespace) -> dict[str, Any]:
    totals = [sum(t) for t in times]
    low, _, high = quantiles(totals, n=4)
    parts = {f"{part}_s": median(t[k] for t in times) for k, part in enumerate(PARTS)}
    return {"step_s": median(totals), "quartiles_s": [low, high], "images_per_second": args.batch_size / median(totals), **parts}


def peak(args: argparse.Namespace, name: str, precision: str) -> float:
    """Largest resident memory of a process that takes two steps of one form alone, GB."""
    own = [f"--{k.replace('_', '-')}={getattr(args, k)}" for k in ("size", "batch_size", "width", "depth", "heads", "threads")]
    done = subprocess.run([sys.executable, __file__, *own, "--peak", name, precision], capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def high_water() -> float:
    """Largest resident memory of this process so far, GB; getrusage would count the parent's."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


def compiled(args: argparse.Namespace, precision: str) -> dict[str, Any]:
    """The whole step through torch.compile: in one graph, else in as many as it makes; what stops it otherwise."""
    out: dict[str, Any] = {}
    for kind, whole in (("one_graph", True), ("with_breaks", False)):
        stepper = Stepper(args, "ours", precision)
        eager = Stepper(args, "ours", precision)
        stepper.call = torch.compile(stepper.model, fullgraph=whole)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        began = time.perf_counter()
        try:
            first = stepper.step()[0]
        except Exception as e:  # whatever dynamo, inductor or the C++ compiler raises
            out[kind] = {"works": False, "reason": reason(e)}
            continue
        taken = time.perf_counter() - began
        times = [stepper.step()[1] for _ in range(WARM_UP + args.steps)][WARM_UP:]
        counters = torch._dynamo.utils.counters
        out[kind] = {
            "works": True, "first_step_s": taken, **summary(times, args), "loss_gap": abs(first - eager.step()[0]),
            "graphs": counters["stats"]["unique_graphs"], "breaks": [k.strip().splitlines()[0] for k in counters["graph_break"]],
        }
    return out


def reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' | '.join(lines[:4])}"[:600]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    numbers = {"steps": 20, "size": 128, "batch_size": 16, "width": 384, "depth": 12, "heads": 6, "threads": 2}
    for name, default in numbers.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--peak", nargs=2, metavar=("FORM", "PRECISION"), help="print the peak memory of one form, GB, and no more")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        stepper = Stepper(args, *args.peak)
        for _ in range(2):
            stepper.step()
        print(high_water())
        return
    given = {k: getattr(args, k) for k in numbers}
    result: dict[str, Any] = {
        "what": "SiameseIM step with AdamW, clipping and target average; decoder as wide as the encoder, 16 heads, 2 + 4 blocks; one CPU process",
        "command": "python benchmarks/siameseim_step.py " + " ".join(f"--{k.replace('_', '-')} {v}" for k, v in given.items()),
        "official_fp32_s": "0.99 to 1.03, 1.82 GB, at the default sizes on an idle machine of the same kind",
        "machine": {"processor": processor(), "threads": args.threads, "load_at_start": round(os.getloadavg()[0], 1)},
        "versions": {p: version(p) for p in ("torch", "timm", "twinview")},
        **given,
    }
    for precision in PRECISIONS:
        result[precision] = measure(args, precision)
        if args.compile:
            result[precision]["compile"] = compiled(args, precision)
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
