"""Forty and some mistakes that authors of parts make, each a plugin of its own, and the right parts that they are made in."""
from __future__ import annotations

from typing import NamedTuple

RIGHT = '''
import attrs
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from twinview import hookimpl, part
from twinview.ops import Queue, crops_geometry, random_resized_box
from twinview.values import Alignment, EncoderSpec, Features, Geometry, Head, Level, ParamRule, Traits, cell_centers


@part
class Loss:
    """Contrast of pooled projections against a queue of keys."""

    channels: int = 8  # width of the projections
    queue: int = 16  # keys that are kept

    @hookimpl
    def traits(self):
        return Traits(needs=frozenset({"pooled"}))

    @hookimpl
    def heads(self, dims):
        return {"projector": Head(nn.Linear(dims.width("pooled"), self.channels)), "queue": Head(Queue(self.queue, self.channels), "state")}

    def project(self, step, view, role):
        return F.normalize(step.apply(step.head(self, "projector"), view, role, on="pooled").float(), dim=1)

    def contrast(self, q, k, negatives):
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ negatives.mT], 1) / 0.2
        return {"contrast": F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64))}

    @hookimpl
    def loss(self, step):
        negatives = step.branches.online.of(self, "queue").negatives()
        return self.contrast(self.project(step, 0, "online"), self.project(step, 1, "target"), negatives)

    @hookimpl
    def after_micro_batch(self, branches, step, progress):
        branches.online.of(self, "queue").hold(self.project(step, 1, "target"), progress.micro)

    @hookimpl
    def after_step(self, branches):
        branches.online.of(self, "queue").commit()


@part
class Views:
    """Two random resized crops."""

    size: int = 32  # pixels of each view's side

    @hookimpl
    def sample_views(self, size, rng):
        return crops_geometry(size, [random_resized_box(size, rng) for _ in range(2)], self.size, 0.5, rng)


@part
class Augment:
    """Brightness: pixels times a factor."""

    most: float = 0.4  # the factor is uniform in 1 - x .. 1 + x

    @hookimpl
    def traits(self):
        return Traits(gives=frozenset({"any_channels"}))

    @hookimpl
    def draw_augment(self, view, size, rng):
        return {"factor": torch.tensor(rng.uniform(1 - self.most, 1 + self.most), dtype=torch.float32)}

    @hookimpl
    def apply_augment(self, pixels, params):
        return (pixels.float() * params["factor"].view(-1, 1, 1, 1)).round().clamp(0, 255).to(pixels.dtype)


@part
class Masks:
    """Hides half of the first view's cells."""

    share: float = 0.5  # of the cells

    @hookimpl
    def make_masks(self, geometry, grids, rng):
        cells = grids[0][0] * grids[0][1]
        return (torch.from_numpy(rng.permutation(cells) < round(self.share * cells)), None)


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embed, self.mix = nn.Conv2d(3, width, 8, 8), nn.Conv2d(width, width, 3, padding=1)
        self.spec = EncoderSpec(pooled=width, cells=Level(width, 8))

    def forward(self, images, hidden=None):
        cells = self.embed(images)
        if hidden is not None:
            cells = cells * ~hidden.view(-1, 1, *cells.shape[-2:])
        cells = cells + F.gelu(self.mix(cells))
        return Features(cells=cells, pooled=cells.mean((2, 3)))


@part
class Encoder:
    """Patches, and a convolution over them."""

    width: int = 8  # channels

    @hookimpl
    def traits(self):
        return Traits(gives=frozenset({"cells", "pooled", "hides", "hides_any"}))

    @hookimpl
    def make_encoder(self):
        return Net(self.width)


@part
class Align:
    """Both maps at the same places of what the two views share."""

    grid: int = 4  # places along each side

    @hookimpl
    def align(self, step, online, target):
        g, box = step.geometry, step.geometry.overlap(online, target)
        size = (box[:, 2:] - box[:, :2]).clamp(min=0)
        places = box[:, None, :2] + cell_centers((self.grid, self.grid)) * size[:, None]
        weight = (size.prod(1) > 0).float()[:, None, None].expand(-1, self.grid, self.grid)
        return Alignment(*(self.sampler(g, places, view) for view in (online, target)), weight)

    def sampler(self, g, places, view):
        at = g.to_view(places, view).unflatten(1, (self.grid, self.grid)) * 2 - 1
        return lambda maps: F.grid_sample(maps, at.to(maps.dtype), padding_mode="border", align_corners=False)


@part
class Evaluate:
    """The mean length of the features."""

    size: int = 32  # pixels of a side

    @hookimpl
    def traits(self):
        return Traits(scores=frozenset({"length"}))

    @hookimpl
    def evaluate(self, branches, data):
        rows = [data.features(branches.online, batch).pooled for batch in data.plain(size=(self.size, self.size))]
        return {"length": float(torch.cat(rows).norm(dim=1).mean())}


PARTS = {"loss": Loss, "views": Views, "augment": Augment, "masks": Masks, "encoder": Encoder, "align": Align, "evaluate": Evaluate}


@hookimpl
def parts():
    return PARTS
'''


class Mistake(NamedTuple):
    """What is wrong, where, and by which check it is found."""

    kind: str  # the right part that it is made in
    check: str
    code: str  # of the class's body, or of the module where it begins in the first column
    hook: str = ""


LOSS = "    @hookimpl\n    def loss(self, step):\n        q, k = self.project(step, 0, 'online'), self.project(step, 1, 'target')\n        n = step.branches.online.of(self, 'queue').negatives()\n"
NET = "    @hookimpl\n    def make_encoder(self):\n        class Wrong(right.Net):\n            def forward(self, images, hidden=None):\n"
CENTER = """class Center(nn.Module):
    def __init__(self):
        super().__init__()
        {made}

# the part
"""
STATE = "    @hookimpl\n    def heads(self, dims):\n        return {**right.Loss.heads(self, dims), 'center': Head(Center(), 'state')}\n\n"

MISTAKES = {
    # ---- losses: state, draws, gradients
    "keys kept in a list of the module": Mistake("loss", "repeats", "KEYS = []\n\n" + LOSS + "        n = torch.cat([n, *KEYS])\n        KEYS.append(k.detach())\n        return self.contrast(q, k, n)\n", "loss"),
    "keys kept on the part": Mistake("loss", "repeats", LOSS + "        kept = self.__dict__.setdefault('kept', [])\n        n = torch.cat([n, *kept])\n        kept.append(k.detach())\n        return self.contrast(q, k, n)\n", "loss"),
    "an attribute set on the part": Mistake("loss", "shapes", LOSS + "        self.kept = k.detach()\n        return self.contrast(q, k, n)\n"),
    "the queue pushed in loss()": Mistake("loss", "micro-batches", LOSS + "        found = self.contrast(q, k, n)\n        step.branches.online.of(self, 'queue').push(k)\n        return found\n\n    @hookimpl\n    def after_micro_batch(self): ...\n\n    @hookimpl\n    def after_step(self): ...\n", "loss"),
    "the queue pushed in after_micro_batch()": Mistake("loss", "micro-batches", "    @hookimpl\n    def after_micro_batch(self, branches, step):\n        branches.online.of(self, 'queue').push(self.project(step, 1, 'target'))\n\n    @hookimpl\n    def after_step(self): ...\n", "loss"),
    "noise of torch's global generator": Mistake("loss", "repeats", LOSS + "        return self.contrast(q + 0.1 * torch.randn_like(q), k, n)\n", "loss"),
    "noise of numpy's global generator": Mistake("loss", "repeats", LOSS + "        return self.contrast(q, k, n[np.random.permutation(len(n))[:8]])\n", "loss"),
    "a generator that goes on in the module": Mistake("loss", "repeats", "RNG = np.random.default_rng(0)\n\n" + LOSS + "        return self.contrast(q, k, n[RNG.permutation(len(n))[:8]])\n", "loss"),
    "steps counted in the module": Mistake("loss", "resumes", "COUNT = [0]\n\n" + LOSS + "        return {name: value * (1 + COUNT[0]) for name, value in self.contrast(q, k, n).items()}\n\n    @hookimpl\n    def after_step(self, branches):\n        COUNT[0] += 1\n        branches.online.of(self, 'queue').commit()\n", "loss"),
    "a state that is no buffer": Mistake("loss", "resumes", CENTER.format(made="self.value = torch.zeros(())") + STATE + LOSS + "        return {name: value + step.branches.online.of(self, 'center').value for name, value in self.contrast(q, k, n).items()}\n\n    @hookimpl\n    def after_step(self, branches):\n        branches.online.of(self, 'center').value += 1\n        branches.online.of(self, 'queue').commit()\n", "loss"),
    "a state that is in no checkpoint": Mistake("loss", "resumes", CENTER.format(made="self.register_buffer('value', torch.zeros(()), persistent=False)") + STATE + LOSS + "        return {name: value + step.branches.online.of(self, 'center').value for name, value in self.contrast(q, k, n).items()}\n\n    @hookimpl\n    def after_step(self, branches):\n        branches.online.of(self, 'center').value += 1\n        branches.online.of(self, 'queue').commit()\n", "loss"),
    "a state with parameters": Mistake("loss", "shapes", CENTER.format(made="self.value = nn.Parameter(torch.zeros(()))") + STATE, "heads"),
    "a head that is never used": Mistake("loss", "shapes", "    @hookimpl\n    def heads(self, dims):\n        return {**right.Loss.heads(self, dims), 'extra': Head(nn.Linear(2, 2))}\n", "heads"),
    "a projector without gradient": Mistake("loss", "gradients", LOSS + "        q = q.detach() + step.online[0].pooled[:, :8] * 0.1\n        return self.contrast(q, k, n)\n", "heads"),
    "an encoder without gradient": Mistake("loss", "gradients", LOSS + "        head = step.branches.online.of(self, 'projector')\n        return self.contrast(F.normalize(head(step.online[0].pooled.detach()), dim=1), k, n)\n", "loss"),
    "a target that is trained": Mistake("loss", "gradients", LOSS + "        for p in step.branches.target.parameters():\n            p.requires_grad_(True)\n        return self.contrast(q, k, n)\n", "loss"),
    "each image beside the next one's": Mistake("loss", "order", LOSS + "        return self.contrast(q, k.roll(1, 0), n)\n", "loss"),
    "the first image as the anchor": Mistake("loss", "order", LOSS + "        return self.contrast(q, k, torch.cat([n, k[:1]]))\n", "loss"),
    "a small difference in low precision": Mistake("loss", "bf16", LOSS + "        z = step.apply(step.head(self, 'projector'), 0, 'online', on='pooled')\n        rest = 1 - (1 - 1e-4 * z.sigmoid())\n        return {**self.contrast(q, k, n), 'rest': -rest.log().mean() * 0.01}\n", "loss"),
    "a loss that is not finite": Mistake("loss", "shapes", LOSS + "        return {'contrast': self.contrast(q, k, n)['contrast'] / 0}\n"),
    "a loss without gradient": Mistake("loss", "shapes", LOSS + "        return self.contrast(q.detach(), k, n)\n", "loss"),
    "a loss for each image": Mistake("loss", "shapes", LOSS + "        return {'contrast': (q - k).square().sum(1)}\n", "loss"),
    "a variance over the rank's own images": Mistake("loss", "several ranks", LOSS + "        z = step.apply(step.head(self, 'projector'), 0, 'online', on='pooled').float()\n        return {**self.contrast(q, k, n), 'variance': F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()}\n", "loss"),
    "a center of the rank's own images": Mistake("loss", "several ranks", CENTER.format(made="self.register_buffer('value', torch.zeros(8))\n        self.held = None") + STATE + LOSS + "        return self.contrast(q, F.normalize(k - step.branches.online.of(self, 'center').value, dim=1), n)\n\n    @hookimpl\n    def after_micro_batch(self, branches, step, progress):\n        k = self.project(step, 1, 'target')\n        branches.online.of(self, 'queue').hold(k, progress.micro)\n        branches.online.of(self, 'center').held = k.mean(0)\n\n    @hookimpl\n    def after_step(self, branches):\n        center = branches.online.of(self, 'center')\n        center.value.mul_(0.9).add_(center.held, alpha=0.1)\n        branches.online.of(self, 'queue').commit()\n", "state"),
    "the online branch as its own target": Mistake("loss", "target", "    @hookimpl\n    def traits(self):\n        return Traits(needs=frozenset({'pooled', 'averaged_target'}))\n\n    @hookimpl\n    def loss(self, step):\n        n = step.branches.online.of(self, 'queue').negatives()\n        return self.contrast(self.project(step, 0, 'online'), self.project(step, 1, 'online'), n)\n", "loss"),
    "a misspelt head": Mistake("loss", "shapes", "    def project(self, step, view, role):\n        return F.normalize(step.apply(step.head(self, 'projektor'), view, role, on='pooled'), dim=1)\n", "loss"),
    "a misspelt hook": Mistake("loss", "small", "    @hookimpl\n    def after_steps(self, branches): ...\n"),
    "an option that nobody explains": Mistake("loss", "documented", "    tau: float = 0.2\n", "option tau"),
    "a tensor on the part": Mistake("loss", "small", "    table: object = attrs.field(init=False, factory=lambda: torch.zeros(8))  # of numbers\n"),
    # ---- views
    "boxes in pixels": Mistake("views", "geometry", "    @hookimpl\n    def sample_views(self, size, rng):\n        g = right.Views.sample_views(self, size, rng)\n        return g._replace(boxes=g.boxes * torch.tensor([size[1], size[0]] * 2))\n", "sample_views"),
    "crops of a fixed size in pixels": Mistake("views", "geometry", "    @hookimpl\n    def sample_views(self, size, rng):\n        return crops_geometry(size, [(0, 0, 16, 16)] * 2, self.size, 0.5, rng)\n", "sample_views"),
    "a crop without width": Mistake("views", "geometry", "    @hookimpl\n    def sample_views(self, size, rng):\n        width = size[1] // 20\n        return crops_geometry(size, [(0, 0, width, size[0])] * 2, self.size, 0.5, rng)\n", "sample_views"),
    "one view of tall images": Mistake("views", "geometry", "    @hookimpl\n    def sample_views(self, size, rng):\n        return crops_geometry(size, [random_resized_box(size, rng) for _ in range(1 if size[0] > 20 * size[1] else 2)], self.size, 0.5, rng)\n", "sample_views"),
    "crops of another generator": Mistake("views", "geometry", "    @hookimpl\n    def sample_views(self, size, rng):\n        return right.Views.sample_views(self, size, np.random.default_rng())\n", "sample_views"),
    # ---- photometry
    "photometry that changes its input": Mistake("augment", "photometry", "    @hookimpl\n    def apply_augment(self, pixels, params):\n        return pixels.mul_(2)\n", "apply_augment"),
    "contrast about the mean of the batch": Mistake("augment", "alone", "    @hookimpl\n    def apply_augment(self, pixels, params):\n        mean = pixels.float().mean()\n        return ((pixels.float() - mean) * 0.5 + mean).round().to(pixels.dtype)\n", "apply_augment"),
    "photometry that draws where it is applied": Mistake("augment", "photometry", "    @hookimpl\n    def apply_augment(self, pixels, params):\n        return pixels // int(torch.randint(1, 9999, ()))\n", "apply_augment"),
    "photometry of three channels that promises any": Mistake("augment", "photometry", "    @hookimpl\n    def apply_augment(self, pixels, params):\n        return pixels[:, [2, 1, 0]]\n", "apply_augment"),
    "pixels of another type": Mistake("augment", "shapes", "    @hookimpl\n    def apply_augment(self, pixels, params):\n        return pixels.float()\n", "apply_augment"),
    # ---- masks
    "another number of hidden cells in each image": Mistake("masks", "shapes", "    @hookimpl\n    def make_masks(self, geometry, grids, rng):\n        return (torch.from_numpy(rng.random(grids[0][0] * grids[0][1]) < self.share), None)\n"),
    "everything hidden": Mistake("masks", "masks", "    @hookimpl\n    def make_masks(self, geometry, grids, rng):\n        return (torch.ones(grids[0][0] * grids[0][1], dtype=torch.bool), None)\n", "make_masks"),
    "masks of another generator": Mistake("masks", "shapes", "    @hookimpl\n    def make_masks(self, geometry, grids, rng):\n        return right.Masks.make_masks(self, geometry, grids, np.random.default_rng())\n", "make_masks"),
    # ---- encoders
    "a map turned on its side": Mistake("encoder", "spec", NET + "                f = right.Net.forward(self, images, hidden)\n                return f._replace(cells=f.cells.mT)\n        return Wrong(self.width)\n", "make_encoder"),
    "features standardized over the batch": Mistake("encoder", "by image", NET + "                f = right.Net.forward(self, images, hidden)\n                return f._replace(pooled=f.pooled - f.pooled.mean(0))\n        return Wrong(self.width)\n", "make_encoder"),
    "dropout that never ends": Mistake("encoder", "by image", NET + "                f = right.Net.forward(self, images, hidden)\n                return f._replace(pooled=F.dropout(f.pooled))\n        return Wrong(self.width)\n", "make_encoder"),
    "a start of another generator": Mistake("encoder", "same start", "    @hookimpl\n    def make_encoder(self):\n        net = right.Net(self.width)\n        with torch.no_grad():\n            net.embed.weight.add_(torch.from_numpy(np.random.randn(*net.embed.weight.shape)).float())\n        return net\n", "make_encoder"),
    "a layer that is never used": Mistake("encoder", "reaches all", "    @hookimpl\n    def make_encoder(self):\n        net = right.Net(self.width)\n        net.classifier = nn.Linear(self.width, 10)\n        return net\n", "make_encoder"),
    "hidden cells that are hidden too late": Mistake("encoder", "hides", NET + "                f = right.Net.forward(self, images)\n                if hidden is None:\n                    return f\n                return f._replace(cells=f.cells * ~hidden.view(-1, 1, *f.cells.shape[-2:]))\n        return Wrong(self.width)\n", "make_encoder"),
    "hidden pixels that reach a level": Mistake("encoder", "hides", "    @hookimpl\n    def traits(self):\n        return Traits(gives=frozenset({'cells', 'pooled', 'levels', 'hides', 'hides_any'}))\n\n" + NET.replace("            def forward", "            def __init__(self, width):\n                super().__init__(width)\n                self.spec = right.EncoderSpec(pooled=width, cells=right.Level(width, 8), levels={'b1': right.Level(width, 8)})\n\n            def forward") + "                return right.Net.forward(self, images, hidden)._replace(levels={'b1': self.mix(self.embed(images))})\n        return Wrong(self.width)\n", "make_encoder"),
    "a mask token that is not learned": Mistake("encoder", "hides", NET.replace("make_encoder(self)", "make_encoder(self, masked)") + "                f = right.Net.forward(self, images, hidden)\n                return f if hidden is None else f._replace(cells=f.cells + self.token.detach() * hidden.view(-1, 1, *f.cells.shape[-2:]))\n        net = Wrong(self.width)\n        net.token = nn.Parameter(torch.ones(1, self.width, 1, 1), requires_grad=masked)\n        return net\n", "make_encoder"),
    "tokens that are promised and not given": Mistake("encoder", "shapes", "    @hookimpl\n    def traits(self):\n        return Traits(gives=frozenset({'cells', 'pooled', 'tokens'}))\n"),
    # ---- alignments and evaluations
    "an alignment that forgets mirrored views": Mistake("align", "places", "    def sampler(self, g, places, view):\n        return right.Align.sampler(self, g._replace(flips=torch.zeros_like(g.flips)), places, view)\n", "align"),
    "an alignment that aligns nothing": Mistake("align", "places", "    @hookimpl\n    def align(self, step, online, target):\n        return Alignment(lambda m: m, lambda m: m, torch.ones(len(step.batch.keys), *step.grids[online]))\n", "align"),
    "an alignment about the mean of the batch": Mistake("align", "alignment by image", "    def sampler(self, g, places, view):\n        sample = right.Align.sampler(self, g, places, view)\n        return lambda maps: sample(maps) if maps.shape[1] == 2 else sample(maps - maps.mean(0))\n", "align"),
    "an evaluation that goes on drawing": Mistake("evaluate", "scores", "RNG = np.random.default_rng(0)\n\n    @hookimpl\n    def evaluate(self, branches, data):\n        return {'length': float(RNG.random())}\n", "evaluate"),
    "an evaluation that changes the network": Mistake("evaluate", "scores", "    @hookimpl\n    def evaluate(self, branches, data):\n        for p in branches.online.encoder.parameters():\n            p.mul_(0.5)\n        return {'length': 1.0}\n", "evaluate"),
    "a score that traits() does not name": Mistake("evaluate", "scores", "    @hookimpl\n    def evaluate(self, branches, data):\n        return {'size': 1.0}\n", "traits"),
    "a score that is a tensor": Mistake("evaluate", "scores", "    @hookimpl\n    def evaluate(self, branches, data):\n        return {'length': torch.ones(())}\n", "evaluate"),
}


def source(mistake: Mistake) -> str:
    """A module that offers the right part with a mistake in it, as `part`."""
    before, mark, body = mistake.code.partition("# the part\n")
    if not mark:
        before, body = "", mistake.code
    first, _, rest = body.partition("\n\n")
    if not body.startswith(" "):  # a name of the module
        before, body = before + first, rest
    head = RIGHT.partition("@part")[0].strip()
    name = mistake.kind.capitalize()
    return (
        f"{head}\nimport twinview_right as right\n\n{before}\n\n\n@part\nclass Part(right.{name}):\n    \"\"\"The right part, with a mistake in it.\"\"\"\n\n{body}\n\n\n"
        f"@hookimpl\ndef parts():\n    return {{'part': Part}}\n"
    )
