"""BYOL and SimCLR of lightly, its code unchanged, with the images, encoder, budget, optimizer, seeds and probes of prove.py.

    pip install lightly                                                          # 1.6.0 was measured; in an environment of its own, beside twinview
    python benchmarks/prove_lightly.py --methods byol --seeds 20 21 22 --shards shards

Views, heads, losses, target update and its schedule are lightly's classes with the recipe's numbers; the loop is the one of its documentation.
Images lie decoded in memory, which is a favor.  Rows go to benchmarks/results/proof.jsonl as `byol (lightly)`.
"""
from __future__ import annotations

import argparse
import copy
import json
import resource
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead, SimCLRProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import BYOLTransform, SimCLRTransform
from lightly.transforms.byol_transform import BYOLView1Transform
from lightly.utils.scheduler import cosine_schedule
from PIL import Image
from torch import Tensor, nn

import twinview
from machine import processor
from proof.data import read, require_shards
from proof.methods import TASKS, Table, Task
from proof.rows import Rows, code_hash, methods_of, table_hash
from proof.run import PROBES
from proof.score import Encoder, score


def main() -> None:
    """Train each method with each seed; one row each."""
    ask = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ask.add_argument("--methods", nargs="+", choices=["byol", "simclr"], default=["byol"])
    ask.add_argument("--seeds", type=int, nargs="+", default=[20, 21, 22])
    ask.add_argument("--shards", type=Path, default=Path("shards"))
    ask.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "proof.jsonl")
    ask.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="for every recipe, values in JSON: optimizer.lr=0.003")
    args = ask.parse_args()
    task = TASKS["cifar-resnet"]
    require_shards(args.shards, *task.train, task.val)
    torch.set_num_threads(1)
    rows = Rows(args.results, ("task", "method", "seed"))
    overrides = {key: json.loads(value) for key, value in (text.split("=", 1) for text in args.set)}
    for seed in args.seeds:
        for method in args.methods:
            recipe = task.recipe(method, seed, args.shards.resolve(), overrides)
            code = code_hash(methods=methods_of(recipe), also=[*PROBES, Path(__file__)])
            hashed = table_hash({**recipe, "data": {}, "lightly": version("lightly")})
            key: Table = {"code": code, "task": task.name, "method": f"{method} (lightly)", "seed": seed, "recipe_hash": hashed}
            row = rows.find(**key) or rows.add({**key, "overrides": overrides, **one(task, method, recipe), "processor": processor()})
            print({k: row.get(k) for k in ("method", "seed", "linear", "knn", "cpu_seconds")}, flush=True)


class Byol(nn.Module):
    """As in lightly's example, with a target of both."""

    def __init__(self, encoder: nn.Module, width: int, heads: Table) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, BYOLProjectionHead(width, heads["hidden"], heads["channels"])
        self.predictor = BYOLPredictionHead(heads["channels"], heads["hidden"], heads["channels"])
        self.encoder_momentum, self.projector_momentum = copy.deepcopy(encoder), copy.deepcopy(self.projector)
        deactivate_requires_grad(self.encoder_momentum)
        deactivate_requires_grad(self.projector_momentum)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        """Mean of both directions."""
        p0, p1 = (self.predictor(self.projector(self.encoder(x).pooled)) for x in (x0, x1))
        with torch.no_grad():
            z0, z1 = (self.projector_momentum(self.encoder_momentum(x).pooled) for x in (x0, x1))
        loss: Tensor = 0.5 * (self.criterion(p0.float(), z1.float()) + self.criterion(p1.float(), z0.float()))
        return loss

    def follow(self, momentum: float) -> None:
        """Before each step, as lightly's example has it."""
        update_momentum(self.encoder, self.encoder_momentum, m=momentum)
        update_momentum(self.projector, self.projector_momentum, m=momentum)


class SimClr(nn.Module):
    """As in lightly's example."""

    def __init__(self, encoder: nn.Module, width: int, heads: Table) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = SimCLRProjectionHead(width, heads.get("hidden", width), heads["channels"])
        self.criterion = NTXentLoss(temperature=heads.get("temperature", 0.1))

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        """NT-Xent within the batch."""
        loss: Tensor = self.criterion(*(self.projector(self.encoder(x).pooled).float() for x in (x0, x1)))
        return loss

    def follow(self, momentum: float) -> None:
        """There is no target."""


def views_of(method: str, recipe: Table) -> Any:
    """lightly's transform of the method with the recipe's numbers."""
    photo, crops = recipe["augment"], recipe["views"]
    options = {
        **{"input_size": crops["size"], "min_scale": crops["scale"][0], "cj_prob": 0.8, "cj_strength": 1.0, "cj_bright": 0.4, "cj_contrast": 0.4},
        **{"cj_sat": 0.2, "cj_hue": photo.get("hue", 0.1), "random_gray_scale": photo.get("grey", 0.2), "gaussian_blur": 0.0},
    }
    if method == "simclr":
        return SimCLRTransform(**options)
    return BYOLTransform(BYOLView1Transform(**options), BYOLView1Transform(**options))  # both views alike, as in the recipe


def one(task: Task, method: str, recipe: Table) -> dict[str, Any]:
    """Train and score; CPU seconds are of the training with its loading of images, start of the program left out."""
    run, heads, seed = recipe["run"], recipe["loss"][0], recipe["run"]["seed"]
    shards = Path(recipe["data"]["shards"][0]).parent
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in read(shards / task.train[0], task.size).images]
    encoder: Any = twinview.check(recipe).encoder(random=True)
    torch.manual_seed(seed)
    model = (Byol if method == "byol" else SimClr)(encoder, encoder.spec.pooled, heads).to(memory_format=torch.channels_last).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, others = ([p for p in trained if (p.ndim > 1) == wide] for wide in (True, False))
    weights: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(weights, lr=recipe["optimizer"]["lr"], weight_decay=recipe["optimizer"]["weight_decay"])
    transform, steps, warmup = views_of(method, recipe), run["steps"], recipe["schedule"]["warmup_share"] * run["steps"]
    before, started = time.process_time(), time.monotonic()
    order: list[int] = []
    for step in range(steps):
        if len(order) < run["batch_size"]:
            order = torch.randperm(len(pictures)).tolist()
        chosen, order = order[: run["batch_size"]], order[run["batch_size"] :]
        views = [transform(pictures[i]) for i in chosen]
        x0, x1 = (torch.stack([view[k] for view in views]).contiguous(memory_format=torch.channels_last) for k in (0, 1))
        factor = step / warmup if step < warmup else cosine_schedule(round(step - warmup), round(steps - warmup) + 1, 1, 0)
        for group in optimizer.param_groups:
            group["lr"] = recipe["optimizer"]["lr"] * factor
        momentum = recipe.get("target", {}).get("momentum", 0)
        model.follow(cosine_schedule(step, steps, momentum, 1) if momentum else 0)
        with torch.autocast("cpu", torch.bfloat16, enabled=run["precision"] == "bf16"):
            loss = model(x0, x1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    spent = {"cpu_seconds": round(time.process_time() - before, 1), "seconds": round(time.monotonic() - started, 1)}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {**score(Encoder(model.encoder, task.on), task, shards), **spent, "memory_mib": memory, "loss": float(loss.detach()), "steps": steps}


if __name__ == "__main__":
    main()
