"""The one module that DeepSpeed wraps, and the step that it offers to losses."""
from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from twinview.assembly import Assembly
from twinview.branch import Branch, Branches
from twinview.by_view import ByView
from twinview.errors import ContractError, PluginError, closest
from twinview.heads import NONE_TOGETHER, check_asked, heads_of, views_together, wants_target
from twinview.modes import attention, in_mode
from twinview.ops.means import wide
from twinview.ops.ranks import world
from twinview.ops.seeding import generator, uniform
from twinview.ops.spread import ENOUGH, direction_sums, effective_rank
from twinview.sample_store import SampleStores
from twinview.values import ROLES, Alignment, Batch, DataFactory, Dims, Features, Geometry, PlainBatch, Progress, Role, Size, Step, box_area


class Outcome(NamedTuple):
    """What a forward pass gives the engine."""

    loss: Tensor  # scalar with gradient: the weighted sum of the terms
    terms: dict[str, Tensor]  # each term as its part gave it, detached; LABEL.TERM of a loss with a `name`, and where an earlier loss has the term
    notes: dict[str, Tensor]  # scalars to log beside them; empty unless watched
    step: LazyStep
    sums: dict[str, Tensor]  # `direction_sums` of each branch's pooled features, to be added up over the step; empty unless watched


class Siamese(nn.Module):
    """Online branch, target branch and state, and the losses between them: `model(batch, progress) -> Outcome`."""

    mean: Tensor
    std: Tensor
    fused_attention = False  # on a CPU in low precision too: to measure what a GPU keeps

    def __init__(self, assembly: Assembly, dims: Dims, encoder: nn.Module | None = None) -> None:
        """`encoder`: the one that `dims` was worked out from, to save making it again."""
        super().__init__()
        self.assembly, self.dims = assembly, dims
        heads = {key: head for label in assembly.answers("heads") for key, head in heads_of(assembly, dims, label)}
        labels = {id(part): assembly.key(label) for label, part in assembly.parts.items()}
        state = {key: head.module.requires_grad_(False) for key, head in heads.items() if head.kind == "state"}
        self.state = nn.ModuleDict(state)
        trained = {key: head.module for key, head in heads.items() if head.kind != "state"}
        rules = {key: head.rule for key, head in heads.items() if head.rule is not None}
        self.online = Branch(encoder or assembly.encoder(), trained, labels, state, rules)
        self.target: Branch | None = None
        if assembly.recipe.target.momentum > 0 and wants_target(assembly, dims):
            copies = {key: _copy(head.module) for key, head in heads.items() if head.kind == "averaged"}
            self.target = Branch(_copy(self.online.encoder), copies, labels, state)
        self.followed = False  # true: the target already includes the current online weights, because the optimizer step was skipped
        self.any_masks = "hides_any" in assembly.traits[assembly.recipe.encoder.label].gives  # as many cells of each image need not be hidden
        self.heads_asked = False  # that every head is asked for has been seen
        self.encoded = set[tuple[tuple[int, ...], Role]]()  # the views that have been through an encoder
        self.own_encode = assembly.has("encode") or bool(assembly.wrappers("encode"))
        self.together = views_together(assembly, dims) if assembly.recipe.run.views_together else NONE_TOGETHER
        self.stores = stores = SampleStores(dims.dataset_size)
        key = self.online.key
        self.branches = Branches(
            self.online, self.target or self.online, lambda: assembly.encoder(random=True),
            new_samples=lambda part, name, epoch, shape: stores.new(key(part, name), epoch, shape),
            samples=lambda part, name, epoch: stores.get(key(part, name), epoch),
        )
        colors = np.asarray(assembly.recipe.data.colors(), np.float32) * np.float32(255)
        mean, std = (torch.from_numpy(numbers).view(1, -1, 1, 1) for numbers in colors)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return self.mean.device

    def forward(self, batch: Batch, progress: Progress, watch: bool = False) -> Outcome:
        """All losses of a micro-batch.  `watch`: also work out what is only logged.  Autocast, where the recipe asks for it, is in here."""
        with self.precision():
            step = LazyStep(self, batch, progress, watch)
            total, terms = torch.zeros((), device=self.device), dict[str, Tensor]()
            for label in self.assembly.answers("loss"):
                step.label, name, taken = label, self.assembly.uses[label][2].name, set(terms)
                for answer in self.assembly.only("loss", label)(step=step):
                    for term, value in answer.items():
                        term = f"{label}.{term}" if name or term in taken else term
                        if term in terms:
                            raise PluginError(f"{self.assembly.uses[label][1]}: gives a term {term!r} twice. Give one of the two another name.")
                        terms[term] = value.detach()
                        total = total + self.assembly.weight(label, progress.share) * value.float()
            step.label = ""
            if watch:
                step.watch_features()
        return Outcome(total, terms, step.notes if watch else {}, step, step.sums)

    def check_heads(self) -> None:
        """Called after the first step.  Raises PluginError where no hook has asked for a head that a part declares."""
        if not self.heads_asked:
            self.heads_asked = True
            check_asked(self.assembly, (*self.online.heads, *self.state), self.online.asked | self.branches.target.asked)

    def features(
        self, branch: Branch, batch: Batch | PlainBatch, view: int = 0, *, train: bool = False, move_statistics: bool = False
    ) -> Features:
        """See `values.DataFactory.features`."""
        if move_statistics and not train:
            raise PluginError("data.features: move_statistics is of train = True: running statistics move in train mode alone.")
        if isinstance(batch, PlainBatch):
            if train and self.assembly.recipe.run.sync_batchnorm and world() > 1:
                said = "ranks have other numbers of plain batches, and synchronized BatchNorm would wait for ever"
                instead = "In train mode give it batches of data.views(epoch), or write [run] sync_batchnorm = false."
                raise PluginError(f"data.features: {said}. {instead}")
            pixels = self._laid_out(batch.images.to(self.device, non_blocking=True))
        else:
            step = LazyStep(self, batch, Progress(0, 0, batch.epoch, 0.0), False)  # its views know it weakly: a name keeps it
            pixels = step.pixels[view]
        with torch.no_grad(), self.precision(), in_mode(branch.encoder, train, keep=not move_statistics):
            return cast(Features, branch.encoder(pixels, None)).each(lambda x: wide(x) if x.is_floating_point() else x)

    def alignment(self, batch: Batch, online: int, target: int, name: str = "") -> Alignment:
        """See `values.DataFactory.alignment`."""
        step = LazyStep(self, batch._replace(hidden=(None,) * len(batch.images)), Progress(0, 0, batch.epoch, 0.0), False)
        with torch.no_grad(), self.precision(), contextlib.ExitStack() as stack:
            for branch in (self.online, self.target):
                if branch is not None:
                    stack.enter_context(in_mode(branch.encoder, False, keep=True))
            return step.alignment(online, target, name)

    def new_head(self, label: str, name: str, *names: int | str) -> nn.Module:
        """The module `name` of a part, drawn anew; the draw depends on `names` besides.  Raises PluginError."""
        there = {key.rpartition("/")[2]: head.module for key, head in heads_of(self.assembly, self.dims, label, *names)}
        if name not in there:
            raise PluginError(f"{self.assembly.uses[label][1]}: has no head {name!r} to reset.{closest(name, there)}")
        return there[name]

    def precision(self, *, cache: bool = True) -> contextlib.AbstractContextManager[None]:
        """Autocast, where the recipe asks for it.  `cache`: a weight is cast once, and must not be written to within."""
        stack, low = contextlib.ExitStack(), self._low
        stack.enter_context(torch.autocast(self.device.type, low, enabled=low is not None, cache_enabled=cache))
        stack.enter_context(self.attention())
        return cast(contextlib.AbstractContextManager[None], stack)

    def attention(self) -> contextlib.AbstractContextManager[None]:
        """The kernels for what follows, with gradient or without."""
        if self._low is None or self.device.type != "cpu" or self.fused_attention:
            return contextlib.nullcontext()
        return attention(backward=torch.is_grad_enabled())

    @property
    def _low(self) -> torch.dtype | None:
        """The low precision that the recipe asks for."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.assembly.recipe.run.precision)

    def _laid_out(self, pixels: Tensor) -> Tensor:
        return pixels.contiguous(memory_format=torch.channels_last) if self.assembly.recipe.run.channels_last else pixels

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """target <- momentum * target + (1 - momentum) * online, parameters only; buffers are each branch's own (BYOL).

        Under ZeRO-3 each rank averages its own shards: both branches are cut alike, and nothing is gathered.
        """
        if self.target is not None:
            online = dict(self.online.named_parameters())
            pairs = [pair for name, t in self.target.named_parameters() for pair in zip(*_held(t, online[name]), strict=True)]
            torch._foreach_lerp_([t for t, _ in pairs], [o for _, o in pairs], 1 - momentum)


def make_model(assembly: Assembly, images: int, classes: int = 0, *, weights: bool = True, data: DataFactory | None = None) -> Siamese:
    """The model that a recipe trains on a data set of so many images and label classes, on the CPU.

    `weights`: load what [encoder] weights names; without, it has its random start (a checkpoint is about to be loaded, or only sizes matter).
    `data`: what the parts' `check` is given; None: they are not asked.  Raises RecipeError, PluginError, CheckpointError, DataError.
    """
    encoder = assembly.encoder(random=not weights)
    dims = assembly.dims(encoder, images, classes)
    if data is not None:
        assembly.check(dims, data)
    return Siamese(assembly, dims, encoder)


class LazyStep(Step):
    """A step that computes what it is asked for, once."""

    def __init__(self, model: Siamese, batch: Batch, progress: Progress, watch: bool) -> None:
        """`batch` may lie on the CPU; what is asked for is moved."""
        self.batch, self.progress, self.branches, self.watch = batch, progress, model.branches, watch
        self.notes, self.sums = dict[str, Tensor](), dict[str, Tensor]()
        self.label = ""
        self._model = model
        self._geometry: Geometry | None = None
        self._memo: dict[tuple[Any, ...], Any] = {}
        views, me = len(batch.images), weakref.proxy(self)  # no cycle: a step's activations go when the step goes
        self._pixels = ByView(views, lambda v: me._make_pixels(v))
        self._online = ByView(views, lambda v: me._encode(v, "online"))
        self._target = ByView(views, lambda v: me._make_target(v))

    @property
    def online(self) -> Sequence[Features]:
        return self._online

    @property
    def target(self) -> Sequence[Features]:
        return self._target

    def made(self, view: int, role: Role) -> bool:
        return view in (self._online if role == "online" or self._model.target is None else self._target)

    @property
    def pixels(self) -> Sequence[Tensor]:
        return self._pixels

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        return self.batch.geometry.pairs

    @property
    def grids(self) -> tuple[Size, ...]:
        return self._model.dims.grids

    @property
    def geometry(self) -> Geometry:
        if self._geometry is None:
            g, device = self.batch.geometry, self._model.device
            notes = {name: value.to(device) for name, value in g.notes.items()}
            self._geometry = g._replace(boxes=g.boxes.to(device), flips=g.flips.to(device), source=g.source.to(device), notes=notes)
        return self._geometry

    @property
    def hidden(self) -> tuple[Tensor | None, ...]:
        device, found = self._model.device, self.batch.hidden
        return cast(tuple[Tensor | None, ...], self._once(("hidden",), lambda: tuple(None if h is None else h.to(device) for h in found)))

    def alignment(self, online: int, target: int, name: str = "") -> Alignment:
        """As the recipe's part gives it, with the visibility of cells in its weight: the online view's, and without an average the target's."""
        return cast(Alignment, self._once(("align", online, target, name), lambda: self._align(online, target, name)))

    def head(self, part: object, name: str) -> str:
        return self.branches.online.key(part, name)

    def apply(self, heads: str | Sequence[str], view: int, role: Role, on: str | Sequence[str] = "cells") -> Tensor:
        if role not in ROLES:
            raise ContractError(f"asks for the branch {role!r}.{closest(str(role), ROLES)}")
        chain, maps = (heads,) if isinstance(heads, str) else tuple(heads), on if isinstance(on, str) else tuple(on)
        if role == "target" and self._model.target is None:
            return cast(Tensor, _detached(self.apply(chain, view, "online", maps)))
        return cast(Tensor, self._once(("apply", chain, view, role, maps), lambda: self._apply(chain, view, role, maps)))

    def uniform(self, purpose: str, n: int) -> Tensor:
        seed = self._model.assembly.recipe.run.seed
        return uniform(self.batch.seeds, n, seed, self.batch.epoch, purpose).to(self._model.device)

    def note(self, name: str, value: Tensor) -> None:
        if self.watch:
            own = self._model.assembly.uses[self.label][2].name if self.label else ""
            self.notes[f"{own}.{name}" if own else name] = value.detach().float().mean()

    # ---- for the engine
    def watch_features(self) -> None:
        """Note where views lay, and feature spread and effective rank of what the branches gave (collapse shows here)."""
        g = self.geometry
        overlap = {"iou": g.iou(*self.pairs[0])} if self.pairs else {}
        for name, value in {"crop_area": box_area(g.boxes).mean(-1), **overlap, **g.notes}.items():
            self.note(f"views/{name}", value)
        for role, views in (("online", self._online), ("target", self._target)):
            if (made := next(views.made(), None)) is not None:
                pooled = (made.pooled if made.pooled is not None else made.at("cells").mean((2, 3))).detach().float()
                self.sums[role] = direction_sums(pooled)  # of a few images at once the spread is small by itself: it is that of the whole step
                if len(pooled) >= ENOUGH:
                    self.note(f"erank/{role}", effective_rank(pooled))

    def settle(self) -> LazyStep:
        """Drop every gradient: what `after_step` is given."""
        for views in (self._online, self._target):
            views.replace(lambda features: features.detach())
        self._memo = {key: _detached(value) for key, value in self._memo.items() if key[0] != "align"}
        return self

    def take_notes(self) -> dict[str, Tensor]:
        """What was noted since this was last asked; nothing unless watched."""
        found, self.notes = self.notes, {}
        return found

    # ---- making
    def _once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]

    def _make_pixels(self, view: int) -> Tensor:
        model, raw = self._model, self.batch.images[view].to(self._model.device, non_blocking=True)
        if self.batch.augment is not None:
            raw = model.assembly.calls.apply_augment(pixels=raw, params=self.batch.augment[view])
        return model._laid_out((raw.float() - model.mean) / model.std)

    def _encode(self, view: int, role: Role) -> Features:
        """A view; under [run] views_together in one pass with those that the pairs ask of this branch besides, which are then made too."""
        branch, hidden, made = self.branches.online, self.hidden, self._online
        if role == "target":
            branch, hidden, made = self.branches.target, (None,) * len(hidden), self._target
        group = self._model.together[role].get(view, ())
        views = tuple(v for v in group if self._model.any_masks or self._hides(v, role) == self._hides(view, role))
        if len(views) < 2:
            return self._features(branch, self.pixels[view], hidden[view], (view,), role)
        masks = [hidden[v] for v in views]
        some = next((mask for mask in masks if mask is not None), None)
        whole = None if some is None else torch.cat([torch.zeros_like(some) if mask is None else mask for mask in masks])
        found = self._features(branch, torch.cat([self.pixels[v] for v in views]), whole, views, role)
        for v, features in zip(views, found.split(len(views)), strict=True):
            made.put(v, features)
        return cast(Features, made[view])

    def _features(self, branch: Branch, images: Tensor, hidden: Tensor | None, views: tuple[int, ...], role: Role) -> Features:
        model = self._model
        if not model.own_encode and (views, role) in model.encoded:  # the first time by the hook, where what it gives is checked
            return cast(Features, branch.encoder(images, hidden))
        model.encoded.add((views, role))
        rng = generator(model.assembly.recipe.run.seed, "encode", self.progress.step, self.progress.micro, views[0], role)
        return model.assembly.calls.encode(
            branch=branch, images=images, hidden=hidden, view=views[0], role=role, views=views, step=self, rng=rng
        )

    def _hides(self, view: int, role: Role) -> int:
        """Cells of an image that this branch does not see of a view: an encoder that drops them takes as many of each."""
        mask = self.batch.hidden[view] if role == "online" else None
        return 0 if mask is None else int(mask[0].sum())

    def _make_target(self, view: int) -> Features:
        if self._model.target is None:
            return self.online[view].detach()
        with torch.no_grad(), self._model.attention():
            return self._encode(view, "target")

    def _apply(self, chain: tuple[str, ...], view: int, role: Role, on: str | tuple[str, ...]) -> Tensor:
        branch = self.branches.online if role == "online" else self.branches.target
        with torch.set_grad_enabled(torch.is_grad_enabled() and role == "online"):
            before: Tensor | list[Tensor]
            if len(chain) > 1:
                before = self.apply(chain[:-1], view, role, on)
            else:
                features = (self.online if role == "online" else self.target)[view]
                before = features.at(on) if isinstance(on, str) else [features.at(name) for name in on]
            return cast(Tensor, branch.find(chain[-1])(before))

    def _align(self, online: int, target: int, name: str) -> Alignment:
        found = cast(Alignment, self._model.assembly.align(name)(step=self, online=online, target=target))
        masked = [] if found.fills_hidden else [(online, found.online)]
        if self._model.target is None:  # the target's map is the online one, masked as it is
            masked.append((target, found.target))
        for view, operator in masked:
            hidden = self.hidden[view]
            if hidden is not None:
                seen = operator((~hidden).float().view(-1, 1, *self._model.dims.grids[view]))[:, 0]
                found = found._replace(weight=found.weight * seen.clamp(0, 1))
        return found


def _detached(value: Any) -> Any:
    """What a head gives, without gradient: a tensor, or lists, tuples and dicts of them."""
    return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, value)


def _copy(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).requires_grad_(False)


def _held(target: Any, online: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors in which this rank holds two parameters of one shape: themselves, or under ZeRO-3 their shards."""
    if not hasattr(target, "ds_tensor"):
        return [target], [online]
    shards = [target.ds_tensor.data], [online.ds_tensor.data]
    if target.ds_status.name != "AVAILABLE" or target.data_ptr() == target.ds_tensor.data_ptr():  # cut; or whole in one shard, on one rank
        return shards
    if online.ds_status.name != "AVAILABLE":
        target.partition()  # lets go of a copy that would be stale
        return shards
    return [*shards[0], target.data], [*shards[1], online.data]  # DeepSpeed keeps small parameters whole beside their shards
