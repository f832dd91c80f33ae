"""All that only a GPU can tell, in one go of less than eight minutes: speed, memory, stages, precision, sameness.  Goes on where it was stopped.

    python benchmarks/gpu.py                         # on a machine with one CUDA device; call it again for the cases that found no time
    python benchmarks/gpu.py --case zero --seconds 120
    python benchmarks/gpu.py --tiny --out tiny.jsonl # the same cases with tiny networks on the CPU: a rehearsal, not a measurement

A JSON line for each case in benchmarks/results/gpu.jsonl: the card, the commit, and what was measured.  A case that is there of this commit and card
is not run again; one that fails leaves a line with its error, and is tried again by the next call.  The cases run in one process, since each would
import for ten seconds; where that process dies, another goes on behind the case at which it died.

MFU: the floating point operations of a step, forward and backward, as torch's FlopCounterMode counts them, in a second, over what the card can do in
dense bf16 by its data sheet (null where the card is not in the table).  Beside it, over a large product of matrices, which is measured.
"""
from __future__ import annotations

import argparse
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from machine import processor
from twinview.data.loading.loader import training_batches
from twinview.data.prepare.pack import pack_images
from twinview.engine.distributed.process import quiet_deepspeed
from twinview.engine.setup import build, wrap
from twinview.engine.step import StepResult, take_step
from twinview.planning.plan import plan
from twinview.recipe import Recipe, from_table, read
from twinview.values import Progress

RESULTS = Path(__file__).parent / "results" / "gpu.jsonl"
SECONDS, WARM_UP, MANY = 460, 3, 10**6
DONE, LEFT = 10, 11  # exit codes of the process that runs the cases
PEAK = {  # dense bf16, TFLOP/s, by the data sheets; the first whose words the card's name has
    "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "B200": 2250, "A100": 312, "L40S": 362, "L4": 121, "4090": 165,
}
MODELS = {"resnet50": "multisiam/imagenet_r50", "siameseim": "siameseim/imagenet_vitb16", "mae": "mae/imagenet_vitb16"}
TINY = {"resnet50": "multisiam/camvid", "siameseim": "siameseim/cifar10_vit_tiny", "mae": "mae/cifar10_vit_tiny"}
Row = dict[str, Any]


class Work:
    """Steps of a recipe on the device."""

    def __init__(self, bench: Bench, made: Recipe, workers: bool = False) -> None:
        """`workers`: batches come from data worker processes as in training; else a few are made before, and used again and again."""
        self.bench = bench
        self.built = build(made)
        loading = training_batches(self.built.recipe, self.built.dims, self.built.shards, rank=0, world=1, steps=None if workers else 2)
        self.loading = loading if workers else None
        self.batches = loading if workers else cycle(list(loading))
        self.engine = wrap(self.built, Path())
        self.step = 0

    def __call__(self) -> StepResult:
        found = take_step(self.built, self.engine, self.batches, Progress(self.step, MANY, 0, 0.0), watch=False)
        self.step += 1
        return found

    def timed(self, steps: int) -> tuple[float, float]:
        """Seconds of a step, and the share of them that was waited for data, after a warm-up."""
        for _ in range(WARM_UP):
            self()
        self.bench.wait()
        began, waited = time.perf_counter(), 0.0
        for _ in range(steps):
            waited += self().waited
        self.bench.wait()
        seconds = time.perf_counter() - began
        return seconds / steps, waited / seconds

    def losses(self, steps: int) -> list[float]:
        """Of the next steps."""
        return [self().numbers()["loss"] for _ in range(steps)]

    def close(self) -> None:
        """End the workers."""
        if self.loading is not None:
            self.loading.close()


class Bench:
    """The device, the shards, and recipes for them."""

    def __init__(self, folder: Path, tiny: bool) -> None:
        self.tiny, self.device = tiny, "cpu" if tiny else "cuda"
        self.card = processor() if tiny else torch.cuda.get_device_name(0)
        self.steps = 2 if tiny else 10
        self.shards = noise(folder, 16 if tiny else 512, (48, 64) if tiny else (375, 500))

    def wait(self) -> None:
        """Until the device has done all."""
        if not self.tiny:
            torch.cuda.synchronize()

    def recipe(self, model: str, batch: int, deepspeed: Row | None = None, data: Row | None = None, **run: Any) -> Recipe:
        """A published recipe with a batch as large as here fits."""
        table = read((TINY if self.tiny else MODELS)[model]).table()
        kept = {key: table["run"][key] for key in ("channels_last", "clip_gradients", "seed")}
        own = {"steps": MANY, "batch_size": min(batch, 8) if self.tiny else batch, "device": self.device, "sync_batchnorm": False}
        table |= {
            "run": {**kept, "precision": "bf16", **own, **run}, "schedule": {"use": "constant"},
            "data": {"shards": str(self.shards), "workers": 0, "augment_on": "device", **(data or {})},
        }
        table.pop("evaluate", None)
        return from_table({**table, **({"deepspeed": deepspeed} if deepspeed else {})})

    def work(self, *args: Any, workers: bool = False, **options: Any) -> Work:
        """Steps of such a recipe, with what is left of the one before cleared away."""
        self.clear()
        return Work(self, self.recipe(*args, **options), workers)

    def clear(self) -> None:
        """Free the device's memory, and count its peak anew."""
        gc.collect()
        if not self.tiny:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float:
        """GiB of tensors since `clear`; 0 on a CPU."""
        return 0.0 if self.tiny else torch.cuda.max_memory_allocated() / 2**30

    def fitting(self, model: str, batch: int, **options: Any) -> tuple[Work, int, float, float]:
        """Steps with the largest batch that fits, `batch`, its half, its quarter, ...: the work, the batch, seconds of a step, share of waiting."""
        while True:
            try:
                work = self.work(model, batch, **options)
                return (work, work.built.recipe.run.batch_size, *work.timed(self.steps))
            except Exception as e:
                if batch < 16 or not ("fit the GPU" in str(e) or isinstance(e, torch.OutOfMemoryError)):
                    raise
            batch //= 2


# ---- the cases
def throughput(bench: Bench, model: str, batch: int) -> Row:
    """Images a second, MFU, memory beside the plan."""
    work, batch, seconds, _ = bench.fitting(model, batch)
    peak = bench.peak()
    with FlopCounterMode(display=False) as counted:
        work()
    flops = counted.get_total_flops()
    del work
    matrices = product(bench)
    sheet = next((tera for name, tera in PEAK.items() if re.search(rf"\b{name}\b", bench.card)), 0)
    rate = flops / seconds / 1e12
    said = plan(bench.recipe(model, batch), memory=80).choices[0]
    return {
        "model": model, "batch": batch, "seconds": seconds, "images_per_second": batch / seconds, "tflop_a_step": flops / 1e12, "tflops": rate,
        "mfu": rate / sheet if sheet else None, "of_a_matrix_product": rate / matrices, "matrix_product_tflops": matrices,
        "peak_gib": peak, "planned_gib": said.total / 2**30,
    }


def product(bench: Bench) -> float:
    """TFLOP/s of a large product of matrices in bf16."""
    n = 256 if bench.tiny else 8192
    a = torch.randn(n, n, device=bench.device, dtype=torch.bfloat16)
    for _ in range(3):
        a @ a
    bench.wait()
    began = time.perf_counter()
    for _ in range(10):
        a @ a
    bench.wait()
    return 10 * 2 * n**3 / (time.perf_counter() - began) / 1e12


def data_wait(bench: Bench, on: str) -> Row:
    """SiameseIM fed by worker processes."""
    workers = 1 if bench.tiny else min(14, max(1, (os.cpu_count() or 2) - 2))
    work, batch, seconds, waited = bench.fitting("siameseim", 256, data={"workers": workers, "augment_on": on}, workers=True)
    work.close()
    return {"augment_on": on, "workers": workers, "batch": batch, "images_per_second": batch / seconds, "data_wait": waited}


def zero(bench: Bench) -> Row:
    """Stages 0 to 3: time, memory, and the losses of stage 0."""
    found: Row = {}
    for stage in range(4):
        work = bench.work("siameseim", 64, deepspeed={"zero_optimization": {"stage": stage}})
        losses = work.losses(5)
        found[f"stage_{stage}"] = {"losses": losses, "seconds": work.timed(bench.steps)[0], "peak_gib": bench.peak()}
        del work
    first = found["stage_0"]["losses"]
    return found | {"largest_gap": max(apart(first, found[f"stage_{stage}"]["losses"]) for stage in (1, 2, 3))}


def options(bench: Bench, model: str, batch: int, **run: Any) -> Row:
    """Options of [run] off and on: losses, time, memory."""
    found: Row = {"model": model, **run}
    for name, keys in (("off", {}), ("on", run)):
        work = bench.work(model, batch, **keys)
        began = time.perf_counter()
        losses = work.losses(4)
        first = time.perf_counter() - began
        found[name] = {"losses": losses, "first_steps_seconds": first, "seconds": work.timed(bench.steps)[0], "peak_gib": bench.peak()}
        del work
    gap = apart(found["off"]["losses"], found["on"]["losses"])
    return found | {"time_ratio": found["on"]["seconds"] / found["off"]["seconds"], "largest_gap": gap}


def fp16(bench: Bench) -> Row:
    """fp16 with scaling beside bf16."""
    if bench.tiny:
        return {"left_out": "fp16 wants a GPU"}
    found: Row = {}
    for precision in ("bf16", "fp16"):
        work = bench.work("siameseim", 64, precision=precision)
        rows = [work() for _ in range(8)]
        found[precision] = [row.numbers()["loss"] for row in rows]
        found["overflow_steps"] = sum(row.left_out is not None for row in rows)
        found["loss_scale"] = rows[-1].numbers().get("loss_scale")
        del work
    return found | {"largest_gap": apart(found["bf16"], found["fp16"])}


def photometry(bench: Bench) -> Row:
    """Photometry in batches on the device, beside that of the CPU: how many of all values differ, and by how much."""
    made = bench.recipe("siameseim", 64)
    work = build(made)
    batch = next(training_batches(work.recipe, work.dims, work.shards, rank=0, world=1, steps=1))
    assert batch.augment is not None
    differ, largest, values = 0, 0.0, 0
    for images, params in zip(batch.images, batch.augment):
        cpu = work.assembly.calls.apply_augment(pixels=images.cpu(), params={name: value.cpu() for name, value in params.items()})
        moved = {name: value.to(bench.device) for name, value in params.items()}
        gap = (work.assembly.calls.apply_augment(pixels=images.to(bench.device), params=moved).cpu().float() - cpu.float()).abs()
        differ, largest, values = differ + int((gap > 0).sum()), max(largest, float(gap.max())), values + gap.numel()
    return {"values": values, "differ": differ, "largest_of_255": largest}


def same_as_cpu(bench: Bench) -> Row:
    """A small recipe in fp32 on the CPU and on the device, 20 steps."""
    batch, found = 32, {}
    for device in ("cpu", bench.device):
        bench.clear()
        made = bench.recipe("siameseim", batch)
        small = read(TINY["siameseim"]).table()
        small |= {"data": {"shards": str(bench.shards), "workers": 0}, "schedule": {"use": "constant"}}
        small["run"] = {"steps": MANY, "batch_size": made.run.batch_size, "device": device, "precision": "fp32", "sync_batchnorm": False}
        small.pop("evaluate", None)
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        try:
            found[device] = Work(bench, from_table(small)).losses(4 if bench.tiny else 20)
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    return {"losses": found, "largest_gap": apart(found["cpu"], found[bench.device])}


def nccl(bench: Bench) -> Row:
    """The collectives of a step on one device."""
    build(bench.recipe("siameseim", 8))  # joins the ranks
    import torch.distributed as dist

    x = torch.arange(1 << 20, device=bench.device, dtype=torch.float32)
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    summed = x.clone()
    dist.all_reduce(summed)
    dist.all_gather(parts, x)
    bench.wait()
    right = torch.equal(summed, x * dist.get_world_size()) and torch.equal(parts[dist.get_rank()], x)
    return {"backend": dist.get_backend(), "ranks": dist.get_world_size(), "right": right}


def profile(bench: Bench) -> Row:
    """Where the time of a step goes: kernels by kind, and how long the device waits for the host."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    work = bench.work("siameseim", 128)
    seconds, _ = work.timed(bench.steps)
    activities = [ProfilerActivity.CPU] if bench.tiny else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profiled(activities=activities) as seen:
        for _ in range(2):
            work()
        bench.wait()
    times: dict[str, float] = {}
    for event in seen.key_averages():
        own = event.self_cpu_time_total if bench.tiny else event.self_device_time_total
        if own and (bench.tiny or str(event.device_type).endswith("CUDA")):
            times[event.key] = times.get(event.key, 0.0) + own / 2e6
    busy = sum(times.values())
    kinds = {"products": ("gemm", "mm", "cutlass", "xmma"), "attention": ("flash", "attention", "fmha"), "convolution": ("conv", "wgrad", "dgrad")}
    network = {kind: sum(t for name, t in times.items() if any(word in name.lower() for word in words)) for kind, words in kinds.items()}
    top = sorted(times.items(), key=lambda one: -one[1])[:15]
    return {
        "seconds": seconds, "busy": busy / seconds, "shares": {kind: t / busy for kind, t in network.items()},
        "top": [{"name": name[:80], "ms": 1000 * t} for name, t in top],
    }


def apart(one: list[float], other: list[float]) -> float:
    """The largest relative difference."""
    return max(abs(a - b) / max(abs(a), 1e-12) for a, b in zip(one, other, strict=True))


CASES: dict[str, Callable[[Bench], Row]] = {  # the first are those that matter most
    "siameseim": lambda bench: throughput(bench, "siameseim", 512),
    "data wait": lambda bench: data_wait(bench, "device"),
    "resnet50": lambda bench: throughput(bench, "resnet50", 512),
    "same as the CPU": same_as_cpu,
    "photometry": photometry,
    "profile": profile,
    "zero": zero,
    "fp16": fp16,
    "nccl": nccl,
    "checkpointing": lambda bench: options(bench, "siameseim", 128, activation_checkpointing=True),
    "views together": lambda bench: options(bench, "resnet50", 128, views_together=True),
    "mae": lambda bench: throughput(bench, "mae", 512),
    "data wait, photometry in the workers": lambda bench: data_wait(bench, "worker"),
    "compile vit": lambda bench: options(bench, "siameseim", 256, compile=True),
    "compile resnet50": lambda bench: options(bench, "resnet50", 256, compile=True),
}


# ---- running them
BEGUN = "begun, and the process ended"


def noise(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """Shards of images that are smooth enough to be JPEGs of a usual size."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (size[0] // 6, size[1] // 6, 3), dtype=np.uint8))
        small.resize(size[::-1], Image.Resampling.BICUBIC).save(folder / f"images/{i:04d}.jpg", quality=90)
    pack_images(folder / "images", folder / "shards")
    return folder / "shards"


def commit() -> str:
    """Of this checkout; `+` where files have changed since."""
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False).stdout.strip()

    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + "+" * bool(git("status", "--porcelain", "--untracked-files=no"))


def known(out: Path, about: Row) -> dict[str, Row]:
    """The newest row of each case that was run on this card at this commit."""
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    return {row["case"]: row for row in rows if all(row.get(key) == about[key] for key in ("commit", "card"))}


def run(cases: list[str], out: Path, tiny: bool, until: float) -> int:
    """Run the cases that are not known yet, as long as there is time; how many were not tried."""
    quiet_deepspeed("cpu" if tiny else "cuda")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), tiny)
        about = {"commit": commit(), "card": bench.card, "tiny": tiny, "torch": torch.__version__, "deepspeed": version("deepspeed"), "call": until}
        done = known(out, about)
        todo = [name for name in cases if name not in done or ("error" in done[name] and done[name]["call"] != until)]
        longest = 0.0
        for tried, name in enumerate(todo):
            began = time.time()
            if began + longest > until:
                return len(todo) - tried
            write(out, {"case": name, **about, "error": BEGUN})  # what is left of it where it takes the process with it
            try:
                row = CASES[name](bench)
            except Exception as e:
                row = {"error": f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"}
            bench.clear()
            longest = max(longest, time.time() - began)
            row = {"case": name, **about, "took": round(time.time() - began, 1), **row}
            write(out, row)
            print(json.dumps(row), flush=True)
        return 0


def write(out: Path, row: Row) -> None:
    """Put a row in the place of the case's row of this commit and card, or behind all."""
    lines = [line for line in (out.read_text().splitlines() if out.is_file() else []) if not _replaced(json.loads(line), row)]
    out.write_text("\n".join([*lines, json.dumps(row)]) + "\n")


def _replaced(old: Row, new: Row) -> bool:
    return all(old.get(key) == new[key] for key in ("case", "commit", "card"))


def main() -> None:
    """Run, and after a death run again, until all is known or the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=CASES, help="again for several (default: all)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"no case begins that may last beyond (default: {SECONDS})")
    parser.add_argument("--tiny", action="store_true", help="tiny networks on the CPU")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        sys.exit("this machine shows no CUDA device; --tiny rehearses the cases on the CPU, with an --out of its own")
    if args.tiny and args.out == RESULTS:
        parser.error("--tiny wants an --out of its own: what it writes is no measurement")
    cases = args.case or list(CASES)
    if args.until:
        sys.exit(DONE if not run(cases, args.out, args.tiny, args.until) else LEFT)
    until, code = time.time() + args.seconds, 0
    while code not in (DONE, LEFT):  # a process that dies leaves a row, and is followed by another
        before = args.out.read_text() if args.out.is_file() else ""
        code = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--until", str(until)], check=False).returncode
        if code not in (DONE, LEFT) and before == (args.out.read_text() if args.out.is_file() else ""):
            sys.exit("the process ended before its first case")
    rows = [json.loads(line) for line in args.out.read_text().splitlines()]
    failed = [row["case"] for row in rows if row["call"] == until and "error" in row]
    if code == LEFT or failed:
        sys.exit(f"{'failed: ' + ', '.join(failed) + '. ' if failed else ''}{'Cases are left. ' if code == LEFT else ''}Call it again to go on.")
    print(f"all {len(cases)} cases are in {args.out}")


if __name__ == "__main__":
    main()
