"""The bytes of a recipe's model, and of the activations of one step: measured on the CPU with a few images of noise."""
from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, cast

import attrs
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from twinview.assembly import Assembly
from twinview.engine.optimizer import make_optimizer
from twinview.model import Siamese, make_model
from twinview.ops.recompute import recompute
from twinview.planning.noise import noise, with_samples
from twinview.planning.sizes import ASSUMED_CLASSES, ASSUMED_IMAGES
from twinview.recipe import Recipe
from twinview.values import Batch, Progress

IMAGES = (2, 4)  # of the two batches from which others are worked out: so much, and so much more for each image


@attrs.frozen
class Linear:
    """Bytes as a function of the images of a micro-batch."""

    fixed: float
    per_image: float

    def at(self, images: int) -> int:
        """Bytes for so many images."""
        return max(0, round(self.fixed + self.per_image * images))


@attrs.frozen
class Phase:
    """A stretch of a step: the forward pass, then up to each gradient as it arrives."""

    peak: Linear  # bytes of activations and whatever else lives in it, whole gradients left out
    gradients: int  # bytes of them that have arrived before


@attrs.frozen
class Working:
    """What a step needs beside weights, gradients and the optimizer's memory."""

    phases: tuple[Phase, ...]
    saved: Linear  # between forward and backward pass
    held: Linear  # while the optimizer works


@attrs.frozen(kw_only=True)
class Footprint:
    """A model in bytes; parameters by the number of their elements."""

    online: tuple[int, ...]  # parameters of the online branch, frozen ones too
    trained: tuple[int, ...]  # of them, those that the optimizer moves
    target: tuple[int, ...]
    buffers: int
    state: int  # bytes that the optimizer keeps
    norms: int  # channels whose statistics a step takes, each view counted
    plain: Working
    recomputed: Working | None  # with activation checkpointing, where the encoder names blocks

    @property
    def weights(self) -> int:
        """Bytes of the online branch's parameters, which are fp32 whatever the precision."""
        return 4 * sum(self.online)

    @property
    def gradients(self) -> int:
        """Bytes of all gradients."""
        return 4 * sum(self.trained)


def measure(recipe: Recipe, assembly: Assembly, *, gpu: bool) -> Footprint:
    """Build the model on this machine's CPU and take a step's forward and backward pass on noise; no data is opened, no weights are loaded.

    `gpu`: with the attention that a GPU has; a CPU in low precision keeps all of its probabilities.
    """
    needs_labels = any("labels" in traits.needs for traits in assembly.traits.values())
    model = make_model(assembly, ASSUMED_IMAGES, ASSUMED_CLASSES if needs_labels else 0, weights=False).train()
    model.fused_attention = gpu
    optimizer, trainable = make_optimizer(assembly, model.online)
    norms = [0]
    hooks = [m.register_forward_hook(lambda m, *_: norms.__setitem__(0, norms[0] + m.num_features)) for m in _norms(model)]
    batches = [noise(assembly, model.dims, images) for images in IMAGES]
    model.branches = with_samples(model, batches[-1])
    _live(model, trainable, batches[0])  # the first pass makes what is made once
    for hook in hooks:
        hook.remove()
    plain, recomputed = _working(model, trainable, batches), None
    if hasattr(model.online.encoder, "recomputable") and model.online.recomputable():
        for block in model.online.recomputable():
            recompute(block)
        recomputed = _working(model, trainable, batches)
    return Footprint(
        online=tuple(p.numel() for p in model.online.parameters()),
        trained=tuple(p.numel() for p in trainable.values()),
        target=tuple(p.numel() for p in model.target.parameters()) if model.target is not None else (),
        buffers=sum(b.nbytes for b in model.buffers()),
        state=optimizer_bytes(optimizer),
        norms=norms[0],
        plain=plain,
        recomputed=recomputed,
    )


def optimizer_bytes(optimizer: Optimizer) -> int:
    """What the optimizer will keep of its parameters once it has stepped, found with one number for each of its groups."""
    total, takes = 0, inspect.signature(type(optimizer)).parameters
    options: dict[str, Any] = {name: value for name, value in optimizer.defaults.items() if name in takes}
    for group in optimizer.param_groups:
        number = nn.Parameter(torch.zeros(1))
        number.grad = torch.ones(1)
        probe = type(optimizer)([{**group, "params": [number]}], **options)
        probe.step()
        kept = sum(v.nbytes for v in probe.state[number].values() if isinstance(v, Tensor) and v.ndim)
        total += kept * sum(p.numel() for p in group["params"])
    return total


def _norms(model: Siamese) -> Iterator[Any]:
    return (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))


# ---- live bytes
class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that come to life inside it, while they live; memory that kernels take for themselves is not seen."""

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak = 0
        self.known = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
        self.marks: dict[str, tuple[int, int]] = {}  # name -> peak of the stretch that ends there, bytes there
        for tensor in tree_leaves((batch.images, batch.augment, batch.hidden)):
            self._add(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            self._add(tensor)
        return out

    def mark(self, name: str) -> None:
        """End a stretch."""
        self.marks[name] = (self.peak, self.bytes)
        self.peak = self.bytes

    def _add(self, tensor: object) -> None:
        if isinstance(tensor, Tensor):
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self.known:
                self.known.add(key)
                self.bytes += size
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.bytes -= size


def _live(model: Siamese, trainable: Mapping[str, nn.Parameter], batch: Batch) -> _Live:
    """A forward and a backward pass; each gradient is dropped as it arrives."""
    live = _Live(model, batch)

    def arrived(name: str) -> Any:
        def drop(parameter: Tensor) -> None:
            parameter.grad = None
            live.mark(name)

        return drop

    hooks = [cast(Any, p).register_post_accumulate_grad_hook(arrived(name)) for name, p in trainable.items()]
    with live:
        outcome = model(batch, Progress(0, 1, 0, 1.0))  # as at the end of a run: what starts late has started
        live.mark(FORWARD)
        outcome.loss.backward()
        live.mark(BACKWARD)
    for hook in hooks:
        hook.remove()
    return live


FORWARD, BACKWARD = "forward pass", "backward pass"  # names of parameters have no blanks


def _working(model: Siamese, trainable: Mapping[str, nn.Parameter], batches: list[Batch]) -> Working:
    small, large = (_live(model, trainable, batch).marks for batch in batches)

    def line(name: str, place: int) -> Linear:
        one, two = small[name][place], large[name][place]
        per_image = (two - one) / (IMAGES[1] - IMAGES[0])
        return Linear(one - per_image * IMAGES[0], per_image)

    phases, arrived = [], 0
    for name in small:
        if name in large:
            phases.append(Phase(line(name, 0), arrived))
        arrived += trainable[name].nbytes if name in trainable else 0
    return Working(tuple(phases), saved=line(FORWARD, 1), held=line(BACKWARD, 1))
