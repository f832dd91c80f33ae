"""One row of a table: a run of a method, or a floor or ceiling that needs no method."""
from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import tomli_w
import torch
from torch import nn
from torch.nn import functional as F

import twinview
from machine import processor
from proof.alone import alone, train
from proof.methods import Table, Task
from proof.probe import confusions
from proof.rows import Row, Rows, code_hash, commit, methods_of, table_hash
from proof.score import MEAN, Encoder, raw_pixels, score, sets
from proof.table import PIXELS

FLOORS = (*PIXELS, "random", "supervised")  # beside the methods; pixels know no seed
PROBES = [Path(__file__).with_name(f"{name}.py") for name in ("data", "probe", "score")]  # of which a score depends too
SIGNALS = ("loss", "spread/online", "erank/online", "images_per_second")  # of the last logged step: what is known without labels


def row_of(
    task: Task, method: str, seed: int, shards: Path, runs: Path, rows: Rows, overrides: Mapping[str, Any] | None = None, curve: bool = False,
    on: Task | None = None,
) -> Row:
    """The row of this code for this run: found, or made now; with `curve`, the scores of its earlier checkpoints too.

    `on`: its frozen encoder is probed as those of another task are, on images, and by features, that it was not trained on.
    """
    seed = 0 if method in PIXELS else seed
    recipe = _floor_recipe(task, seed, shards, overrides) if method in FLOORS else task.recipe(method, seed, shards, overrides)
    matters: Table = {"pixels": {}, "centered": {}, "random": {key: recipe[key] for key in ("encoder",)}}.get(method, _portable(recipe))
    version = table_hash({**matters, "method": method})
    needs = methods_of(recipe)
    code = code_hash(methods=needs, also=PROBES)
    key: dict[str, Any] = {"code": code, "task": name_on(task, on), "method": method, "seed": seed, "recipe_hash": version}
    found = rows.find(**key)
    if found is not None:
        return found
    run = runs / f"{task.name}-{method}-{seed}-{version}-{code}"
    if method in FLOORS:
        made = floor(on or task, method, recipe, shards)
    elif on is None:
        made = trained(task, recipe, shards, run, curve)
    else:  # what the run itself gave is said by its own row
        trained_alone(recipe, run)
        made = score(Encoder(twinview.load(run), on.on), on, shards)
    here = {"torch": torch.__version__, "processor": processor(), "commit": commit(methods=needs)}
    return rows.add({**key, "overrides": dict(overrides or {}), **made, **here})


def name_on(task: Task, on: Task | None) -> str:
    """What the rows of a task are called whose encoders are probed as those of `on`."""
    return f"{task.name} on {on.name}" if on else task.name


def trained_alone(recipe: Table, run: Path) -> dict[str, Any]:
    """Train a recipe in a process of its own, one that was stopped from where it was; what it cost."""
    run.parent.mkdir(parents=True, exist_ok=True)
    file = run.with_suffix(".toml")
    file.write_text(tomli_w.dumps(recipe))
    return alone(train, file, run)


def trained(task: Task, recipe: Table, shards: Path, run: Path, curve: bool = False) -> dict[str, Any]:
    """Train a recipe in a process of its own (one that was stopped goes on), then score its encoder."""
    cost = trained_alone(recipe, run)
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    said = {key: value for key, value in logged[-1].items() if key in SIGNALS or key.startswith("score/")}
    kept = {"curve": earlier(task, run, shards, logged)} if curve else {}
    return {**score(Encoder(twinview.load(run), task.on), task, shards), **said, **kept, **cost, "steps": logged[-1]["step"]}


def earlier(task: Task, run: Path, shards: Path, logged: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Scores of every checkpoint that the run keeps, the last one left out, with what is known without labels at the row logged before it."""
    steps = sorted(int(path.name.rpartition("-")[2]) for path in (run / "checkpoints").glob("step-*"))
    found = []
    for step in steps[:-1]:
        scores = score(Encoder(twinview.load(run, step), task.on), task, shards)
        row = max((row for row in logged if row["step"] <= step), key=lambda row: int(row["step"]))
        found.append({"step": step, **{k: v for k, v in scores.items() if isinstance(v, float)}, **{k: row[k] for k in SIGNALS if k in row}})
    return found


def floor(task: Task, method: str, recipe: Table, shards: Path) -> dict[str, Any]:
    """Raw pixels, twice; the encoder at its random start; the same encoder trained with the labels of the same images for as many steps."""
    if method in PIXELS:
        raw = raw_pixels(task)
        return score(raw if method == "pixels" else lambda images: raw(images) - raw(_mean_color(images)), task, shards)
    encoder = twinview.check(recipe).encoder(random=True)
    spent, scores = 0.0, {}
    if method == "supervised":
        started = time.process_time()
        head = supervise(encoder, task, recipe, shards)
        spent = time.process_time() - started
        scores = classes_as_clusters(encoder, head, task, shards) if task.segments_on else {}
    return {**score(Encoder(encoder, task.on), task, shards), **scores, "cpu_seconds": round(spent, 1)}


def _mean_color(images: torch.Tensor) -> torch.Tensor:
    """One image of the mean color that encoders see as zero, as large as `images`."""
    return (torch.tensor(MEAN).view(1, 3, 1, 1) * 255).expand(1, -1, *images.shape[2:])


def supervise(encoder: nn.Module, task: Task, recipe: Table, shards: Path) -> nn.Conv2d:
    """Cross-entropy on the training images' labels: as many steps, as large batches, the same optimizer and rates; shifted and mirrored crops.

    Maps: on the cells of a crop of half of the sides, of the concatenated levels, or of the one that the task segments on.  Gives the
    classifier [classes, features, 1, 1].
    """
    run, optimizer_options, steps = recipe["run"], recipe["optimizer"], recipe["run"]["steps"]
    on = (task.segments_on,) if task.segments_on else task.on
    rng = torch.Generator().manual_seed(run["seed"])
    torch.manual_seed(run["seed"])
    see = Encoder(encoder, on)
    data = _supervised_images(task, shards)
    encoder.train()
    spec: Any = encoder.spec
    width = spec.pooled if task.kind == "classes" else sum(spec.levels[level].channels for level in on)
    head = nn.Conv2d(width, int(data[1][data[1] < 255].max()) + 1, 1)
    optimizer = _optimizer(optimizer_options, [*encoder.parameters(), *head.parameters()])
    share = recipe["schedule"]["warmup_share"]
    for step in range(steps):
        done = (step + 1) / steps
        factor = min(1.0, done / share) * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * max(0.0, done - share) / (1 - share))).item())
        for group in optimizer.param_groups:
            group["lr"] = optimizer_options["lr"] * factor
        x, y = _batch(*data, run["batch_size"], rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=run["precision"] == "bf16"):
            features: Any = encoder(((x.float() - see.mean) / see.std).contiguous(memory_format=torch.channels_last))
            if task.kind == "classes":
                logits = head(features.pooled[..., None, None])[..., 0, 0]
            else:
                size = y.shape[1:] if task.segments_on else features.at(on[0]).shape[2:]
                maps = [F.interpolate(features.at(level), size=size, mode="bilinear", align_corners=False) for level in on]
                logits = head(torch.cat(maps, 1))
        loss = F.cross_entropy(logits.float(), y, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    encoder.eval()
    return head


def _optimizer(options: Table, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if options["use"] == "sgd":
        return torch.optim.SGD(parameters, lr=1.0, momentum=options["momentum"], weight_decay=options["weight_decay"])
    return torch.optim.AdamW(parameters, lr=1.0, weight_decay=options["weight_decay"])


@torch.no_grad()
def classes_as_clusters(encoder: nn.Module, head: nn.Conv2d, task: Task, shards: Path) -> dict[str, float]:
    """The network's own answers on `val`, scored as the clusters of a run are: each pixel's largest logit, matched to the classes one to one."""
    from twinview_probes.matching import match_clusters, matched_scores

    val, see = sets(task, shards).val, Encoder(encoder, task.on)
    classes = head.out_channels
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    for images, truth in zip(torch.split(val.images, 16), torch.split(val.labels, 16)):
        logits = head(cast(Any, encoder((images.float() - see.mean) / see.std)).at(task.segments_on).float())
        given = F.interpolate(logits, size=truth.shape[1:], mode="bilinear", align_corners=False).argmax(1)
        counts += confusions(truth, given, classes).sum(0)
    return {f"score/cluster/{name}": value for name, value in matched_scores(counts, match_clusters(counts)).items()}


def _supervised_images(task: Task, shards: Path) -> tuple[torch.Tensor, torch.Tensor]:
    from proof.data import read

    if task.kind == "classes":
        found = read(shards / task.bank, task.size)
        return found.images, found.labels
    bank = sets(task, shards).bank
    labels = bank.labels.clone()
    labels[labels >= 8] = 255
    return bank.images, labels


def _batch(images: torch.Tensor, labels: torch.Tensor, size: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    chosen = torch.randint(len(images), (size,), generator=rng)
    x, y = images[chosen], labels[chosen]
    mirrored = bool(torch.rand(1, generator=rng) < 0.5)
    if y.ndim == 1:
        dy, dx = torch.randint(9, (2,), generator=rng).tolist()
        x = F.pad(x, (4, 4, 4, 4))[:, :, dy : dy + images.shape[2], dx : dx + images.shape[3]]
        return (x.flip(3) if mirrored else x), y
    h, w = 96, 128
    dy, dx = (int(torch.randint((whole - part) // 8 + 1, (1,), generator=rng)) * 8 for whole, part in ((y.shape[1], h), (y.shape[2], w)))
    x, y = x[:, :, dy : dy + h, dx : dx + w], y[:, dy : dy + h, dx : dx + w]
    if mirrored:
        x, y = x.flip(3), y.flip(2)
    return x, y[:, 4::8, 4::8]


def _floor_recipe(task: Task, seed: int, shards: Path, overrides: Mapping[str, Any] | None) -> Table:
    """A whole recipe, of any method: floors need its encoder, seed and budget."""
    return task.recipe(next(iter(task.methods)), seed, shards, overrides)


def _portable(recipe: Table) -> Table:
    """The recipe without the folder that the shards lie in, which is not the same on every machine."""
    evaluate = {"evaluate": [{**table, "val": Path(table["val"]).name} for table in recipe["evaluate"]]} if "evaluate" in recipe else {}
    return {**recipe, **evaluate, "data": {**recipe["data"], "shards": [Path(name).name for name in recipe["data"]["shards"]]}}
