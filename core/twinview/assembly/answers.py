"""What each hook may answer: type, shape, dtype, range, finiteness.  Every check raises ContractError: what was given, and what to give."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from twinview.branch import KINDS, Head, ParamRule
from twinview.errors import ContractError
from twinview.values import Alignment, EncoderSpec, Features, Geometry, Level, Size

SLACK = 1e-4  # of a side: boxes may leave the image by rounding


def named(value: Any) -> str:
    """What a value is, for a message: `a Tensor [2, 3] float32`, `a dict`, `None`."""
    if value is None:
        return "None"
    if isinstance(value, Tensor):
        return f"a Tensor {list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return f"{'an' if type(value).__name__[0] in 'AEIOUaeiou' else 'a'} {type(value).__name__}"


def views(answer: Any, asked: Mapping[str, Any]) -> None:
    """Of `sample_views`: a Geometry of one image, boxes as fractions of it."""
    del asked
    if not isinstance(answer, Geometry):
        raise ContractError(f"gives {named(answer)}. Give a twinview.values.Geometry.")
    count = len(answer.sizes)
    _tensor(answer.boxes, "boxes", (count, 4), floating=True, why=f"one box x0 y0 x1 y1 for each of the {count} views that `sizes` names")
    _tensor(answer.flips, "flips", (count,), dtype=torch.bool, why="one for each view")
    for size in answer.sizes:
        if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
            raise ContractError(f"gives the size {size!r}. Give (height, width) in whole pixels for each view.")
    low, high = float(answer.boxes.min()), float(answer.boxes.max())
    if low < -SLACK or high > 1 + SLACK:
        raise ContractError(f"gives boxes from {low:g} to {high:g}. Give fractions of the image's sides, 0 to 1, not pixels.")
    if not bool((answer.boxes[:, 2:] > answer.boxes[:, :2]).all()):
        raise ContractError("gives a box that ends before it begins. Give x0 y0 x1 y1 with x0 < x1 and y0 < y1.")
    for pair in answer.pairs:
        if len(pair) != 2 or not all(isinstance(view, int) and 0 <= view < count for view in pair):
            raise ContractError(f"gives the pair {pair!r}, and there are views 0 to {count - 1}. Give (online view, target view).")
    for name, value in answer.notes.items():
        if not isinstance(value, Tensor):
            raise ContractError(f"gives {named(value)} for the note {name!r}. Give a tensor of numbers.")


def draws(answer: Any, asked: Mapping[str, Any]) -> None:
    """Of `draw_augment`: tensors by name."""
    del asked
    if not isinstance(answer, Mapping):
        raise ContractError(f"gives {named(answer)}. Give {{name: tensor}}; an empty one where nothing is drawn.")
    for name, value in answer.items():
        if not isinstance(value, Tensor):
            raise ContractError(f"gives {named(value)} for {name!r}. Give a tensor, of the same shape for every image.")
        _finite(value, repr(name))


def views_batch(answer: Any, asked: Mapping[str, Any]) -> None:
    """Of `sample_views_batch`: a Geometry with the images first."""
    images = len(asked["keys"])
    if not isinstance(answer, Geometry):
        raise ContractError(f"gives {named(answer)}. Give a twinview.values.Geometry, with {images} images first in every tensor.")
    _tensor(answer.boxes, "boxes", (images, len(answer.sizes), 4), floating=True, why="one box x0 y0 x1 y1 for each image and view")
    _tensor(answer.flips, "flips", (images, len(answer.sizes)), dtype=torch.bool, why="one for each image and view")


def draws_batch(answer: Any, asked: Mapping[str, Any]) -> None:
    """Of `draw_augment_batch`: tensors by name, with the images first."""
    draws(answer, asked)
    for name, value in answer.items():
        if value.ndim == 0 or len(value) != len(asked["keys"]):
            raise ContractError(f"gives {named(value)} for {name!r}. Give [{len(asked['keys'])}, ...]: one for each image.")


def augmented(answer: Any, asked: Mapping[str, Any]) -> None:
    """Of `apply_augment`: pixels of the shape and type that came in."""
    pixels: Tensor = asked["pixels"]
    if not isinstance(answer, Tensor) or answer.shape != pixels.shape or answer.dtype != pixels.dtype:
        raise ContractError(f"gives {named(answer)} for {named(pixels)}. Give pixels of the same shape and dtype.")
    _finite(answer, "pixels")


def masks(answer: Any, asked: Mapping[str, Any]) -> None:
    """Of `make_masks`: per view [h*w] bool, or None."""
    grids: Sequence[Size] = asked["grids"]
    if not isinstance(answer, Sequence) or len(answer) != len(grids):
        raise ContractError(f"gives {named(answer)}. Give a tuple of {len(grids)}: for each view a tensor [h*w] bool, or None.")
    for view, (mask, grid) in enumerate(zip(answer, grids, strict=True)):
        if mask is not None:
            _tensor(mask, f"view {view}", (grid[0] * grid[1],), dtype=torch.bool, why=f"True where one of its {grid[0]} x {grid[1]} cells is hidden")


def encoder(answer: Any, asked: Mapping[str, Any]) -> None:
    """Of `make_encoder`: a module that carries its `spec`."""
    del asked
    if not isinstance(answer, nn.Module):
        raise ContractError(f"gives {named(answer)}. Give an nn.Module that carries `spec`.")
    spec = getattr(answer, "spec", None)
    if not isinstance(spec, EncoderSpec):
        raise ContractError(f"gives a module whose `spec` is {named(spec)}. Give it a twinview.values.EncoderSpec.")


def features(answer: Any, asked: Mapping[str, Any]) -> None:
    """Of `encode`: features of the widths, strides and prefix that the encoder's `spec` promises."""
    if not isinstance(answer, Features):
        raise ContractError(f"gives {named(answer)}. Give twinview.values.Features.")
    spec: EncoderSpec = asked["branch"].encoder.spec
    images: Tensor = asked["images"]
    size = (images.shape[-2], images.shape[-1])
    if answer.cells is not None:
        _map(answer.cells, "cells", spec.cells, len(images), spec.grid(size))
    if answer.pooled is not None:
        _tensor(answer.pooled, "pooled", (len(images), spec.pooled), floating=True, why="as `spec` says")
    for name, value in answer.levels.items():
        if name not in spec.levels:
            raise ContractError(f"gives a level {name!r}, which the encoder's `spec` does not name. It names: {', '.join(spec.levels) or 'none'}.")
        stride = spec.levels[name].stride
        _map(value, f"level {name!r}", spec.levels[name], len(images), (-(-size[0] // stride), -(-size[1] // stride)))
    if answer.tokens is not None:
        height, width = spec.grid(size)
        cells = height * width if answer.kept is None else answer.kept.shape[1]
        shape = (len(images), spec.prefix + cells, spec.cells.channels)
        _tensor(answer.tokens, "tokens", shape, floating=True, why="prefix and cells, as `spec` says")
    for name in answer.names():
        _finite(answer.at(name), name)


def promised(answer: Features, gives: frozenset[str], spec: EncoderSpec) -> None:
    """That an encoder's features hold what its part's traits promise."""
    for word in ("cells", "pooled", "tokens"):
        if word in gives and getattr(answer, word) is None:
            raise ContractError(f"gives no {word}, and traits() promises them. Give them, or take {word!r} out of `gives`.")
    if "levels" in gives and (missing := [name for name in spec.levels if name not in answer.levels]):
        raise ContractError(f"gives no level {missing[0]!r}, and `spec` promises it. Give it, or take it out of `spec`.")


def alignment(answer: Any, asked: Mapping[str, Any]) -> None:
    """Of `align`: two operators and a weight on their common grid."""
    if not isinstance(answer, Alignment):
        raise ContractError(f"gives {named(answer)}. Give a twinview.values.Alignment.")
    images = len(asked["step"].batch.keys)
    if not callable(answer.online) or not callable(answer.target):
        raise ContractError("gives an Alignment whose `online` or `target` cannot be called. Give functions of a map.")
    weight = answer.weight
    if not isinstance(weight, Tensor) or weight.ndim != 3 or len(weight) != images:
        raise ContractError(f"gives {named(weight)} as weight. Give [{images}, h, w].")
    _finite(weight, "weight")
    if bool((weight < 0).any()):
        raise ContractError("gives a weight below 0. Give 0 where the two views do not show the same place.")
    if answer.extra is not None and (answer.extra.ndim != 4 or answer.extra.shape[-2:] != weight.shape[-2:]):
        raise ContractError(f"gives {named(answer.extra)} as extra. Give [{images}, k, {weight.shape[1]}, {weight.shape[2]}].")


def terms(answer: Any, asked: Mapping[str, Any]) -> None:
    """Of `loss`: scalars by name, with gradient.  A loss that starts later may give zeros without one."""
    del asked
    if not isinstance(answer, Mapping) or not answer:
        raise ContractError(f"gives {'an empty dict' if isinstance(answer, Mapping) else named(answer)}. Give {{term: scalar tensor}}.")
    for term, value in answer.items():
        if not isinstance(term, str):
            raise ContractError(f"gives a term named {term!r}. Name terms by strings.")
        if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point():
            raise ContractError(f"gives {named(value)} for the term {term!r}. Give a scalar tensor of floats, with gradient.")
    if torch.is_grad_enabled() and not any(value.requires_grad for value in answer.values()) and any(bool(value != 0) for value in answer.values()):
        said = ", ".join(map(repr, answer))
        raise ContractError(f"gives {said} without gradient. Compute it from `step.online` or `step.apply(...)`, and do not detach it.")


def heads(answer: Any, asked: Mapping[str, Any]) -> None:
    """Of `heads`: modules by name, of a kind that there is; a state has buffers and no parameters."""
    del asked
    if not isinstance(answer, Mapping):
        raise ContractError(f"gives {named(answer)}. Give {{name: twinview.values.Head(module)}}.")
    for name, head in answer.items():
        if not isinstance(head, Head):
            raise ContractError(f"gives {named(head)} for {name!r}. Give a twinview.values.Head.")
        if not isinstance(head.module, nn.Module):
            raise ContractError(f"gives {named(head.module)} as the module of {name!r}. Give an nn.Module.")
        if head.kind not in KINDS:
            raise ContractError(f"gives {name!r} the kind {head.kind!r}. Give one of {', '.join(KINDS)}.")
        if head.kind == "state" and (own := [n for n, _ in head.module.named_parameters()]):
            raise ContractError(f"gives the state {name!r} a parameter {own[0]!r}. A state is not trained: make it a buffer (register_buffer).")


def widths(answer: Any, asked: Mapping[str, Any]) -> None:
    """Of `aligned_widths`: channel counts."""
    del asked
    if not isinstance(answer, Sequence) or not all(isinstance(width, int) and width > 0 for width in answer):
        raise ContractError(f"gives {answer!r}. Give a tuple of channel counts, such as (256,).")


def rule(answer: Any, asked: Mapping[str, Any]) -> None:
    """Of `param_groups`: a ParamRule, or None for the recipe's own."""
    if not isinstance(answer, ParamRule):
        raise ContractError(f"gives {named(answer)} for {asked['name']!r}. Give a twinview.values.ParamRule, or None for the recipe's own.")


def scores(answer: Any, asked: Mapping[str, Any]) -> None:
    """Of `evaluate`: plain numbers by name."""
    del asked
    if not isinstance(answer, Mapping):
        raise ContractError(f"gives {named(answer)}. Give {{score: number}}.")
    for name, value in answer.items():
        if not isinstance(value, Real):
            raise ContractError(f"gives {named(value)} for {name!r}. Give a plain number: float(x).")


def pictures(answer: Any, asked: Mapping[str, Any]) -> None:
    """Of `pictures`: images by name."""
    del asked
    if not isinstance(answer, Mapping):
        raise ContractError(f"gives {named(answer)}. Give {{name: [3, H, W] uint8}}.")
    for name, value in answer.items():
        if not isinstance(value, Tensor) or value.ndim != 3 or value.shape[0] != 3 or value.dtype != torch.uint8:
            raise ContractError(f"gives {named(value)} for {name!r}. Give [3, H, W] uint8.")


def nothing(answer: Any, asked: Mapping[str, Any]) -> None:
    """Of hooks that give nothing."""
    del asked
    raise ContractError(f"gives {named(answer)}. It is asked for nothing; write to a state head, or log with `step.note`.")


CHECKS: dict[str, Callable[[Any, Mapping[str, Any]], None]] = {
    "sample_views": views, "sample_views_batch": views_batch, "draw_augment": draws, "draw_augment_batch": draws_batch,
    "apply_augment": augmented, "make_masks": masks, "make_encoder": encoder, "encode": features,
    "align": alignment, "loss": terms, "heads": heads, "aligned_widths": widths, "param_groups": rule, "evaluate": scores, "pictures": pictures,
    "before_epoch": nothing, "after_step": nothing, "after_micro_batch": nothing, "check": nothing,
}


# ---- the pieces
def _tensor(
    value: Any, name: str, shape: tuple[int, ...], *, dtype: torch.dtype | None = None, floating: bool = False, why: str = ""
) -> None:
    wanted = f"[{', '.join(map(str, shape))}] {'of floats' if floating else str(dtype).removeprefix('torch.')}"
    right = isinstance(value, Tensor) and tuple(value.shape) == shape
    if not right or (dtype is not None and value.dtype != dtype) or (floating and not value.is_floating_point()):
        raise ContractError(f"gives {named(value)} as {name}. Give {wanted}: {why}.")
    _finite(value, name)


def _map(value: Any, name: str, level: Level, images: int, grid: Size) -> None:
    _tensor(value, name, (images, level.channels, *grid), floating=True, why=f"{level.channels} channels at stride {level.stride}, as `spec` says")


def _finite(value: Tensor, name: str) -> None:
    if value.is_floating_point() and not bool(value.isfinite().all()):
        raise ContractError(f"gives {name} with values that are not finite.")
