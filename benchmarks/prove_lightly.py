"""BYOL, SimCLR, DenseCL and MAE of lightly, its code unchanged, with the images, encoder, budget, optimizer, seeds and probes of prove.py.

    pip install lightly                                                          # 1.6.0 was measured; in an environment of its own, beside twinview
    python benchmarks/prove_lightly.py --methods byol --seeds 20 21 22 --shards shards
    python benchmarks/prove_lightly.py --methods mae --seeds 20 21 22 --shards shards    # of the task cifar-vit
    python benchmarks/prove_lightly.py --methods densecl_crops --seeds 20 21 22 --shards shards    # of the task streets; the others of cifar-resnet

Views, heads, decoder, masks, losses, target update and its schedule are lightly's classes with the recipe's numbers; the loop is the one of its
documentation.  Images lie decoded in memory, which is a favor.  Rows go to benchmarks/results/proof.jsonl as `byol (lightly)`.
"""
from __future__ import annotations

import argparse
import copy
import io
import json
import resource
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import timm
import torch
from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from lightly.models import utils
from lightly.models.modules import (
    BYOLPredictionHead,
    BYOLProjectionHead,
    DenseCLProjectionHead,
    MAEDecoderTIMM,
    MaskedVisionTransformerTIMM,
    SimCLRProjectionHead,
)
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import BYOLTransform, DenseCLTransform, SimCLRTransform
from lightly.transforms.byol_transform import BYOLView1Transform
from lightly.utils.scheduler import cosine_schedule
from PIL import Image
from torch import Tensor, nn

import twinview
from lightlys_mae import lightlys_mae
from machine import processor
from proof.data import require_shards
from proof.methods import TASKS, Table, Task
from proof.rows import Rows, code_hash, methods_of, table_hash
from proof.run import PROBES
from proof.score import Encoder, score
from twinview.data.dataset.open import open_shards


def main() -> None:
    """Train each method with each seed; one row each."""
    ask = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ask.add_argument("--methods", nargs="+", choices=list(TASK_OF), default=["byol"])
    ask.add_argument("--seeds", type=int, nargs="+", default=[20, 21, 22])
    ask.add_argument("--shards", type=Path, default=Path("shards"))
    ask.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "proof.jsonl")
    ask.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="for every recipe, values in JSON: optimizer.lr=0.003")
    args = ask.parse_args()
    for task in {TASK_OF[method] for method in args.methods}:
        require_shards(args.shards, *task.train, task.val)
    torch.set_num_threads(1)
    rows = Rows(args.results, ("task", "method", "seed"))
    overrides = {key: json.loads(value) for key, value in (text.split("=", 1) for text in args.set)}
    for seed in args.seeds:
        for method in args.methods:
            task = TASK_OF[method]
            recipe = task.recipe(method, seed, args.shards.resolve(), overrides)
            code = code_hash(methods=methods_of(recipe), also=[*PROBES, Path(__file__), Path(__file__).with_name("lightlys_mae.py")])
            hashed = table_hash({**recipe, "data": {}, "lightly": version("lightly")})
            key: Table = {"code": code, "task": task.name, "method": f"{method} (lightly)", "seed": seed, "recipe_hash": hashed}
            row = rows.find(**key) or rows.add({**key, "overrides": overrides, **one(task, method, recipe), "processor": processor()})
            print({k: row.get(k) for k in ("method", "seed", "linear", "knn", "cpu_seconds")}, flush=True)


class Byol(nn.Module):
    """As in lightly's example, with a target of both."""

    def __init__(self, encoder: Any, heads: Table) -> None:
        super().__init__()
        width = encoder.spec.pooled
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

    def __init__(self, encoder: Any, heads: Table) -> None:
        super().__init__()
        width = encoder.spec.pooled
        self.encoder = encoder
        self.projector = SimCLRProjectionHead(width, heads.get("hidden", width), heads.get("channels", 128))
        self.criterion = NTXentLoss(temperature=heads.get("temperature", 0.1))

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        """NT-Xent within the batch."""
        loss: Tensor = self.criterion(*(self.projector(self.encoder(x).pooled).float() for x in (x0, x1)))
        return loss

    def follow(self, momentum: float) -> None:
        """There is no target."""


class DenseCl(nn.Module):
    """As in lightly's example: of a query's cells each meets the key's that is most like it; its negatives are single cells of earlier images."""

    def __init__(self, encoder: Any, heads: Table) -> None:
        super().__init__()
        self.encoder, widths = encoder, {"whole": encoder.spec.pooled, "local": encoder.spec.cells.channels}
        self.heads = nn.ModuleDict({name: DenseCLProjectionHead(width, width, 128) for name, width in widths.items()})
        self.encoder_momentum, self.heads_momentum = copy.deepcopy(encoder), copy.deepcopy(self.heads)
        deactivate_requires_grad(self.encoder_momentum)
        deactivate_requires_grad(self.heads_momentum)
        self.criteria = nn.ModuleDict({name: NTXentLoss(heads.get("temperature", 0.2), memory_bank_size=(heads["queue"], 128)) for name in widths})

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """Half of the image's loss and half of the cells'."""
        own, whole, local = self._seen(query, self.encoder, self.heads)
        with torch.no_grad():
            other, whole_key, local_key = self._seen(key, self.encoder_momentum, self.heads_momentum)
            local_key = utils.select_most_similar(own, other, local_key)
        losses = self.criteria["whole"](whole, whole_key), self.criteria["local"](local.flatten(end_dim=1), local_key.flatten(end_dim=1))
        loss: Tensor = 0.5 * losses[0] + 0.5 * losses[1]
        return loss

    @staticmethod
    def _seen(images: Tensor, encoder: Any, heads: Any) -> tuple[Tensor, Tensor, Tensor]:
        features = encoder(images)
        cells = features.cells.flatten(2).transpose(1, 2)
        return cells.float(), heads["whole"](features.pooled).float(), heads["local"](cells).float()

    def follow(self, momentum: float) -> None:
        """Before each step."""
        update_momentum(self.encoder, self.encoder_momentum, m=momentum)
        update_momentum(self.heads, self.heads_momentum, m=momentum)


class Mae(nn.Module):
    """As in lightly's example, on timm's vision transformer, which starts where ours starts."""

    def __init__(self, encoder: Any, heads: Table) -> None:
        super().__init__()
        size = TASKS["cifar-vit"].size
        made = encoder.published(size)
        width, depth, count = encoder.spec.pooled, len(encoder.blocks), encoder.blocks[0].attn.num_heads
        self.patch = encoder.spec.patch
        options = {"patch_size": self.patch, "embed_dim": width, "depth": depth, "num_heads": count}
        vit: Any = timm.create_model(encoder.name, img_size=size, num_classes=0, **options)
        self.backbone = MaskedVisionTransformerTIMM(vit)
        vit.load_state_dict(made.tensors, strict=False)
        sizes = {"decoder_embed_dim": heads["width"], "decoder_depth": heads["depth"], "decoder_num_heads": heads["attention_heads"]}
        self.decoder = MAEDecoderTIMM(vit.patch_embed.num_patches, self.patch, embed_dim=width, **sizes)
        self.encoder = MeanOfTokens(self.backbone)

    def forward(self, images: Tensor) -> Tensor:
        """Mean squared error of hidden patches, normalized each."""
        return lightlys_mae(self.backbone, self.decoder, images, self.patch)

    def follow(self, momentum: float) -> None:
        """There is no target."""


class MeanOfTokens(nn.Module):
    """lightly's transformer as the probes see ours: the mean of the patches' tokens."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Any:
        """[B, 3, H, W] -> something with `pooled` [B, C]."""
        return SimpleNamespace(pooled=self.backbone.encode(images)[:, 1:].mean(1))  # type: ignore[operator]


MODELS: dict[str, Callable[[Any, Table], Any]] = {"byol": Byol, "simclr": SimClr, "mae": Mae, "densecl_crops": DenseCl}
TASK_OF = {"byol": TASKS["cifar-resnet"], "simclr": TASKS["cifar-resnet"], "mae": TASKS["cifar-vit"], "densecl_crops": TASKS["streets"]}


def views_of(method: str, recipe: Table) -> Any:
    """lightly's transform of the method with the recipe's numbers."""
    photo, crops = recipe["augment"], recipe["views"]
    options = {
        **{"input_size": crops["size"], "min_scale": crops["scale"][0], "cj_prob": 0.8, "cj_strength": 1.0, "cj_bright": 0.4, "cj_contrast": 0.4},
        **{"cj_sat": 0.2, "cj_hue": photo.get("hue", 0.1), "random_gray_scale": photo.get("grey", 0.2), "gaussian_blur": 0.0},
    }
    if method == "simclr":
        return SimCLRTransform(**options)
    if method == "densecl_crops":
        return DenseCLTransform(**options)
    if method == "mae":
        one = BYOLView1Transform(**options)
        return lambda image: [one(image)]
    return BYOLTransform(BYOLView1Transform(**options), BYOLView1Transform(**options))  # both views alike, as in the recipe


def pictures_of(task: Task, shards: Path) -> list[Image.Image]:
    """The images that are trained on, as large as they are."""
    opened = [open_shards(str(shards / name)) for name in task.train]
    return [Image.open(io.BytesIO(data)).convert("RGB") for one in opened for i in range(len(one)) for data in one.read(i, ("jpg",)).fields.values()]


def one(task: Task, method: str, recipe: Table) -> dict[str, Any]:
    """Train and score; CPU seconds are of the training with its loading of images, start of the program left out."""
    run, heads, seed = recipe["run"], recipe["loss"][0], recipe["run"]["seed"]
    shards = Path(recipe["data"]["shards"][0]).parent
    pictures = pictures_of(task, shards)
    encoder: Any = twinview.check(recipe).encoder(random=True)
    torch.manual_seed(seed)
    model = MODELS[method](encoder, heads).to(memory_format=torch.channels_last).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, others = ([p for p in trained if (p.ndim > 1) == wide] for wide in (True, False))
    weights: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    rate, betas = recipe["optimizer"]["lr"], tuple(recipe["optimizer"].get("betas", (0.9, 0.999)))
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=betas, weight_decay=recipe["optimizer"]["weight_decay"])
    transform, steps, warmup = views_of(method, recipe), run["steps"], recipe["schedule"]["warmup_share"] * run["steps"]
    before, started = time.process_time(), time.monotonic()
    order: list[int] = []
    for step in range(steps):
        if len(order) < run["batch_size"]:
            order = torch.randperm(len(pictures)).tolist()
        chosen, order = order[: run["batch_size"]], order[run["batch_size"] :]
        views = [transform(pictures[i]) for i in chosen]
        batch = [torch.stack(several).contiguous(memory_format=torch.channels_last) for several in zip(*views)]
        factor = step / warmup if step < warmup else cosine_schedule(round(step - warmup), round(steps - warmup) + 1, 1, 0)
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        momentum = recipe.get("target", {}).get("momentum", 0)
        model.follow(cosine_schedule(step, steps, momentum, 1) if momentum else 0)
        with torch.autocast("cpu", torch.bfloat16, enabled=run["precision"] == "bf16"):
            loss = model(*batch)
        optimizer.zero_grad()
        loss.backward()
        if run.get("clip_gradients"):
            nn.utils.clip_grad_norm_(trained, run["clip_gradients"])
        optimizer.step()
    spent = {"cpu_seconds": round(time.process_time() - before, 1), "seconds": round(time.monotonic() - started, 1)}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {**score(Encoder(model.encoder, task.on), task, shards), **spent, "memory_mib": memory, "loss": float(loss.detach()), "steps": steps}


if __name__ == "__main__":
    main()
