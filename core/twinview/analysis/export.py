"""A run's encoder as a file of tensors that its library loads: no DeepSpeed, no twinview."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import attrs
import numpy as np
from torch import Tensor, nn

from twinview.analysis.load import read_encoder
from twinview.analysis.own_files import has_keys, marked, refuse_others
from twinview.errors import CheckpointError, RecipeError
from twinview.files import write_atomic, write_text
from twinview.published import odd_options
from twinview.values import Published, Size
from twinview.version import __version__

TOLD = ("library", "encoder", "twinview")  # keys that tell the .json of an export from others
OWN = "torch"  # the encoder's own names, for a library that is none of those that publish models


@attrs.frozen
class Export:
    """What was written, and how it is read again."""

    path: Path  # .safetensors
    metadata: Path  # .json beside it
    published: Published
    size: Size  # of the images that positions are for, pixels


def export_encoder(run: Path, out: Path, *, to: str = "", size: Size | None = None, step: int | None = None, branch: str = "online") -> Export:
    """Write the encoder of a run to `out`, a .safetensors file, and what else a user of it needs to know to a .json beside it.

    `to`: the library whose names the tensors have, "" for the one that the encoder comes from; `size`: height, width in pixels that fixed or learned
    positions are made for (default: the first view's); `step`: the checkpoint of that step; `branch`: online or target.
    Raises CheckpointError, RecipeError.
    """
    if out.suffix != ".safetensors":
        raise RecipeError(f"{out}: is no name for the file. Write one that ends in .safetensors.")
    _refuse_others(out)
    encoder, assembly, at_step = read_encoder(run, step, branch)
    views = assembly.calls.sample_views(size=(256, 256), rng=np.random.default_rng(0))
    made_for = size or views.sizes[0]
    published = _published(encoder, assembly.recipe.encoder.use, made_for, to)
    if size and (published.library == OWN or cast(Any, encoder.spec).patch is None):
        raise RecipeError("size: nothing in this file depends on the size of images. Leave it out.")
    data, tensors = assembly.recipe.data, {name: value.detach().contiguous().clone() for name, value in published.tensors.items()}
    metadata = {
        "library": published.library,
        "model": published.load,  # the expression that makes it
        "strict": published.strict,
        "size": made_for,
        "mean": data.mean,
        "std": data.std,
        "white": data.white,  # of 16-bit images: the value that is 1 before mean and std
        "encoder": assembly.table()["encoder"],
        "run": str(run.resolve()),
        "step": at_step,
        "twinview": __version__,
    }
    return _write(out, tensors, metadata, published, made_for)


def _published(encoder: nn.Module, use: str, size: Size, to: str) -> Published:
    """The encoder for the library `to`."""
    ask: Any = getattr(encoder, "published", None)
    if to == OWN or (ask is None and not to):
        return Published(OWN, "", encoder.state_dict())
    try:
        found: Published | None = ask(size) if ask else None
    except ValueError as e:
        raise RecipeError(f"size: {e}.") from None
    if found is None and not to:
        return Published(OWN, "", encoder.state_dict())
    if found is None or (to and found.library != to):
        there = f"{found.library} or {OWN}" if found else OWN
        raise CheckpointError(f"to={to}: {to} has no network that is this encoder, {use}{odd_options(encoder)}. Write to={there}.")
    return found


def _refuse_others(out: Path) -> None:
    """Raises CheckpointError where the file, or the .json beside it, is there and no earlier export."""
    beside = out.with_suffix(".json")
    told = has_keys(beside, TOLD)
    refuse_others("twinview export", [beside], lambda _: told, CheckpointError)
    refuse_others("twinview export", [out], lambda path: told or marked(path), CheckpointError)


def _write(out: Path, tensors: dict[str, Tensor], metadata: dict[str, Any], published: Published, size: Size) -> Export:
    """Both files, each whole or not there."""
    from safetensors.torch import save

    beside = out.with_suffix(".json")
    out.parent.mkdir(parents=True, exist_ok=True)
    with write_atomic(out) as file:
        file.write(save(tensors, metadata={"format": "pt", "twinview": __version__}))
    write_text(beside, json.dumps(metadata, indent=1) + "\n")
    return Export(out, beside, published, size)
