"""Everything that training would refuse before its first step for its sizes, found without device, data or memory."""
from __future__ import annotations

import logging
from typing import Any, cast

import attrs
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from twinview.assembly import Assembly
from twinview.data.loading.factory import Paths
from twinview.data.loading.loader import check_choice
from twinview.engine.schedule import warn_unreached
from twinview.engine.setup import check_batchnorm, check_blocks
from twinview.errors import CheckpointError, HookError, TwinviewError
from twinview.model import Siamese
from twinview.ops.vision import without_compiler
from twinview.ops.weights import check_source
from twinview.recipe import Recipe
from twinview.values import DataFactory

log = logging.getLogger(__name__)

WRITE = {"normal_", "uniform_", "erfinv_", "mul_", "div_", "add_", "sub_", "clamp_", "fill_", "zero_"}  # values alone; shapes stay
ASSUMED_IMAGES, ASSUMED_CLASSES = 1_281_167, 1000  # of a data set that is not opened: ImageNet's


def check_sizes(assembly: Assembly) -> None:
    """Ask every part's `check`, make its heads, and say what the run will never come to.  Raises RecipeError, PluginError, DataError.

    The model is made of tensors without memory (torch's meta device); on the CPU where an encoder or a head cannot be.
    """
    assembly = assembly.under(with_numbers(assembly.recipe))
    warn_unreached(assembly.recipe)
    try:
        with without_compiler(), torch.device("meta"), _NothingWritten():
            _make(assembly)
    except HookError:  # of a part that wants numbers: once more with them
        _make(assembly)
    except TwinviewError:
        raise
    except Exception:
        _make(assembly)


def warn_of_weights(recipe: Recipe) -> None:
    """Say in a line where [encoder] weights names a file or a run that is not here: a recipe may be checked before the run that it starts from."""
    source = recipe.encoder.options.get("weights")
    if isinstance(source, str) and source:
        try:
            check_source(source)
        except CheckpointError as e:
            log.warning("%s Training refuses it.", e)


class _NothingWritten(TorchFunctionMode):
    """Random starts of tensors without memory are left out: torch would import its symbolic shapes, and sympy with them, to write nothing."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init" or getattr(func, "__name__", "") in WRITE:
            tensor = args[0] if args else kwargs.get("tensor")
            if isinstance(tensor, Tensor) and tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


def _make(assembly: Assembly) -> None:
    recipe = assembly.recipe
    encoder = assembly.encoder(random=True)
    needs_labels = any("labels" in traits.needs for traits in assembly.traits.values())
    dims = assembly.dims(encoder, ASSUMED_IMAGES, ASSUMED_CLASSES if needs_labels else 0)
    assembly.check(attrs.evolve(dims, dataset_size=0), cast(DataFactory, Paths(recipe)))
    for label in assembly.answers("sample_weights"):
        check_choice(recipe, assembly.uses[label][1])
    model = Siamese(assembly, dims, encoder)
    check_blocks(recipe, encoder)
    check_batchnorm(model, recipe, world=1)


def with_numbers(recipe: Recipe) -> Recipe:
    """Mean and deviation as numbers, where they are to be read from shards that are not open."""
    if isinstance(recipe.data.mean, str) or isinstance(recipe.data.std, str):
        half = [0.5] * recipe.data.channels
        return attrs.evolve(recipe, data=attrs.evolve(recipe.data, mean=half, std=half))
    return recipe
