"""The hooks: where they run, what they take, what they give, how many may answer."""
from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, dataclass_transform

import attrs
import pluggy

from twinview.errors import PluginError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from twinview.branch import Branch, Branches, Head, ParamRule
    from twinview.values import Alignment, DataFactory, Dims, Features, Geometry, Progress, Role, Size, Step, Traits

VERSION = 1  # of the hooks; a module may say `TWINVIEW_HOOKS = 1`: built for these.  It rises when a hook that was promised goes (docs/hooks.md)

hookspec = pluggy.HookspecMarker("twinview")
hookimpl = pluggy.HookimplMarker("twinview")

T = TypeVar("T")


@dataclass_transform(kw_only_default=True, eq_default=False, field_specifiers=(attrs.field,))
def part(cls: type[T]) -> type[T]:
    """Make a class a part: an attrs class whose fields are its options, all keyword-only, compared by identity.

    Once made, a part is fixed: what it learned would be in no checkpoint, and other ranks and data workers have parts of their own.
    """
    made: Any = attrs.define(eq=False, kw_only=True, slots=False)(cls)
    initialize = made.__init__

    @functools.wraps(initialize)
    def __init__(self: Any, *args: Any, **options: Any) -> None:
        initialize(self, *args, **options)
        self.__dict__[_MADE] = True

    made.__init__, made.__setattr__, made.__delattr__ = __init__, _set, _delete
    return cast(type[T], made)


_MADE = "_twinview_made"


def _set(self: Any, name: str, value: Any) -> None:
    _refuse_once_made(self, name)
    object.__setattr__(self, name, value)


def _delete(self: Any, name: str) -> None:
    _refuse_once_made(self, name)
    object.__delattr__(self, name)


def _refuse_once_made(part: Any, name: str) -> None:
    if _MADE in part.__dict__:
        place = f"{type(part).__module__}.{type(part).__qualname__}"
        instead = 'Keep what it learns in a module: heads() gives {"NAME": Head(module, "state")}, and branches.online.of(self, "NAME") finds it'
        raise PluginError(f"{place}: sets {name!r} after it was made, and no checkpoint would hold that. {instead}.")


class Hooks(Protocol):
    """As a plugin answers them.  An implementation may take any subset of the arguments."""

    # ---- asked of a method, when a recipe names it
    @hookspec
    def parts(self) -> dict[str, type]:
        """Once, any process.  The method's parts by name; each is a class made with `@part`.  Every named method answers."""

    @hookspec
    def traits(self) -> Traits | None:
        """Once, at assembly, before data or device.  What the part needs of the others and what it gives.  Collected, by part."""

    # ---- in a data worker, for every image
    @hookspec(firstresult=True)
    def sample_views(self, size: Size, rng: np.random.Generator) -> Geometry | None:
        """Where the views lie in an image of `size` (height, width in pixels).  Exactly one part.

        Number of views, `sizes`, `pairs`, `sets` and `draws` are the same for every image; the core asks once with a made-up size to learn them.
        """

    @hookspec(firstresult=True)
    def draw_augment(self, view: int, size: Size, rng: np.random.Generator) -> dict[str, Tensor] | None:
        """The photometric draws of one view of one image of `size` pixels: named tensors of fixed shape, stacked to [B, ...].

        At most one part, which answers `apply_augment` too.
        """

    @hookspec(firstresult=True)
    def sample_views_batch(self, sizes: NDArray[np.int64], keys: NDArray[np.uint64]) -> Geometry | None:
        """`sample_views` of several images at once, for speed: the same numbers, with B first in every tensor.

        `sizes` [B, 2] height, width.  `keys` [B, 2]: the `rng` of image b is `Generator(Philox(key=keys[b]))` as it is before its first number
        (`twinview.ops.compiled.philox` has these numbers in numba).  Optional: where it is not answered, gives None, or `sample_views` is wrapped or
        answered by a subclass, `sample_views` is asked image by image.  The first image is drawn both ways, and has to be the same.
        """

    @hookspec(firstresult=True)
    def draw_augment_batch(self, view: int, size: Size, keys: NDArray[np.uint64]) -> dict[str, Tensor] | None:
        """`draw_augment` of one view of several images at once, for speed: the same tensors, stacked to [B, ...].

        Optional, with `keys` and rules as `sample_views_batch` has them.
        """

    @hookspec(firstresult=True)
    def apply_augment(self, pixels: Tensor, params: dict[str, Tensor]) -> Tensor | None:
        """Apply draws to pixels [B, C, h, w] uint8 -> the same shape and dtype.  Under [data] white they are float32, of the same 0..255.

        C is [data] channels: 3, unless the part's traits give `any_channels`; float32 comes to parts alone whose traits give `deep`.
        For the batches of a worker or on the device, by the recipe's choice; both give the same picture.  What else is in a batch changes no bit of
        an image, or the number of ranks would change the run.  `params` stay on the CPU.
        """

    @hookspec(firstresult=True)
    def make_masks(self, geometry: Geometry, grids: tuple[Size, ...], rng: np.random.Generator) -> tuple[Tensor | None, ...] | None:
        """Per view [h*w] bool, True = hidden from the online branch; None: nothing hidden.

        At most one part.  `geometry` is the image's, without a batch dimension; `grids` the views' cells (h, w).  Each image hides as many cells
        of a view as any other, unless the part's traits give `uneven_masks`: then counts may differ, none among them.
        """

    # ---- on the device, once
    @hookspec(firstresult=True)
    def make_encoder(self, masked: bool, channels: int) -> nn.Module | None:
        """The encoder: an `nn.Module` with `spec`, called with images [B, channels, H, W] and hidden [B, h*w] or None.  Exactly one part.

        `masked`: whether the recipe hides cells; what serves hidden cells alone is frozen without.  `channels`: of the images, 3 unless the
        part's traits give `any_channels`.
        """

    @hookspec
    def check(self, dims: Dims, data: DataFactory) -> None:
        """Raise RecipeError or DataError for what the sizes do not allow: a mask on a view that there is not, more clusters than cells.

        Once, before the first step: by `twinview check`, `plan`, a dry run and a training alike.  Collected.  `dims.dataset_size` is 0 where the
        shards are not open (`check`, `plan`).  Of `data` there is `require(shards)` alone: shards of an evaluation that are not there are refused.
        """

    @hookspec
    def aligned_widths(self, dims: Dims) -> tuple[int, ...] | None:
        """Channel widths of the maps that this loss sends through its alignment; a learned alignment is built for them.  By part."""

    @hookspec
    def heads(self, dims: Dims) -> Mapping[str, Head] | None:
        """The part's own modules by name.  Collected, by part; found again with `branch.of(self, name)`."""

    # ---- on the device, for every micro-batch
    @hookspec(firstresult=True)
    def encode(
        self,
        branch: Branch,
        images: Tensor,
        hidden: Tensor | None,
        view: int,
        role: Role,
        views: tuple[int, ...],
        step: Step,
        rng: np.random.Generator,
    ) -> Features | None:
        """Features of images [B, C, h, w], normalized, of one view and branch.  The core answers unless a part does.

        Under [run] views_together `images` are those of several `views`, one view behind another; a part that takes `view` alone is then refused.
        `rng` draws the same on every rank: from (seed, step, micro-batch, view, role).
        """

    @hookspec(firstresult=True)
    def align(self, step: Step, online: int, target: int) -> Alignment | None:
        """The alignment of a pair of views.  Exactly one part for each alignment that the recipe names; cached per pair."""

    @hookspec
    def loss(self, step: Step) -> dict[str, Tensor] | None:
        """Named terms, each a scalar of order one.  One or more parts; the core weights, sums and logs each."""

    # ---- around the step
    @hookspec(firstresult=True)
    def param_groups(self, name: str, parameter: Tensor) -> ParamRule | None:
        """How the optimizer treats one of the online parameters.  Once per parameter; the last part of the recipe that answers holds."""

    @hookspec
    def before_epoch(self, branches: Branches, data: DataFactory, progress: Progress, rng: np.random.Generator) -> None:
        """Before the first step of an epoch, on all ranks: clustering, pseudo labels, `branches.reset(self, "classifier")`.  Collected.

        What it writes to parameters stays, under every ZeRO stage; all ranks write the same.  `rng` draws the same on every rank: from (seed, epoch).
        """

    @hookspec(firstresult=True)
    def sample_weights(
        self, branches: Branches, data: DataFactory, progress: Progress, rng: np.random.Generator
    ) -> NDArray[Any] | Tensor | Sequence[float] | None:
        """How often the coming epoch has each sample, by its id: a number for each of the run's samples, the same on every rank.

        Whole numbers are counts, of at least an epoch's samples; fractions are weights, and sample i is drawn its share of the epoch's samples times,
        rounded up or down.  None: every sample once.  At most one part; after every part's `before_epoch`.  The order stays a pure function of
        (seed, epoch, these numbers), which checkpoints hold.
        """

    @hookspec
    def after_micro_batch(self, branches: Branches, step: Step, progress: Progress) -> None:
        """After the forward and backward pass of each micro-batch, before the optimizer moves anything, on all ranks.  Collected.

        The step is detached, the precision that of `loss`.  `progress.micro` counts the micro-batches of a step from 0.  Gather here what a queue
        or a center is to learn and commit it in `after_step`: then `run.accumulation` changes nothing, for every micro-batch of a step has met
        the same state.
        """

    @hookspec
    def after_step(self, branches: Branches, step: Step, progress: Progress) -> None:
        """After the optimizer has moved the online branch and the target has followed.  Collected.

        The step is as in `after_micro_batch`; with `run.accumulation` it is that of the last micro-batch.  What it writes to parameters stays,
        under every ZeRO stage; all ranks write the same.  Under stage 3 an answer that takes `branches` finds them whole, for a gathering a step.
        """

    @hookspec
    def evaluate(self, branches: Branches, data: DataFactory, progress: Progress) -> dict[str, float] | None:
        """Named scores, on all ranks, encoders in eval mode and without gradient.  Every N steps and at the end.  Collected.

        More is better, for `[run] keep_best` too, but of names that end in `loss`, `error`, `error_NAME`, `mean_error`, `nll`, `mse`, `rmse`
        or `ece`.
        """

    @hookspec
    def pictures(self, step: Step, data: DataFactory) -> dict[str, Tensor] | None:
        """Named pictures [3, H, W] uint8 of what the part does with a batch or with other images: `twinview show NAME RUN`.  Collected."""


class Calls(Protocol):
    """As the core calls them: the same names, keywords only, with what pluggy makes of the answers."""

    def traits(self) -> list[Traits]: ...
    def sample_views(self, *, size: Size, rng: np.random.Generator) -> Geometry: ...
    def draw_augment(self, *, view: int, size: Size, rng: np.random.Generator) -> dict[str, Tensor] | None: ...
    def sample_views_batch(self, *, sizes: NDArray[np.int64], keys: NDArray[np.uint64]) -> Geometry | None: ...
    def draw_augment_batch(self, *, view: int, size: Size, keys: NDArray[np.uint64]) -> dict[str, Tensor] | None: ...
    def apply_augment(self, *, pixels: Tensor, params: dict[str, Tensor]) -> Tensor: ...
    def make_masks(self, *, geometry: Geometry, grids: tuple[Size, ...], rng: np.random.Generator) -> tuple[Tensor | None, ...] | None: ...
    def make_encoder(self, *, masked: bool, channels: int) -> nn.Module: ...
    def check(self, *, dims: Dims, data: DataFactory) -> list[None]: ...
    def aligned_widths(self, *, dims: Dims) -> list[tuple[int, ...]]: ...
    def heads(self, *, dims: Dims) -> list[Mapping[str, Head]]: ...
    def encode(
        self,
        *,
        branch: Branch,
        images: Tensor,
        hidden: Tensor | None,
        view: int,
        role: Role,
        views: tuple[int, ...],
        step: Step,
        rng: np.random.Generator,
    ) -> Features: ...
    def align(self, *, step: Step, online: int, target: int) -> Alignment: ...
    def loss(self, *, step: Step) -> list[dict[str, Tensor]]: ...
    def param_groups(self, *, name: str, parameter: Tensor) -> ParamRule | None: ...
    def before_epoch(self, *, branches: Branches, data: DataFactory, progress: Progress, rng: np.random.Generator) -> list[None]: ...
    def sample_weights(self, *, branches: Branches, data: DataFactory, progress: Progress, rng: np.random.Generator) -> Any: ...
    def after_micro_batch(self, *, branches: Branches, step: Step, progress: Progress) -> list[None]: ...
    def after_step(self, *, branches: Branches, step: Step, progress: Progress) -> list[None]: ...
    def evaluate(self, *, branches: Branches, data: DataFactory, progress: Progress) -> list[dict[str, float]]: ...
    def pictures(self, *, step: Step, data: DataFactory) -> list[dict[str, Tensor]]: ...


HOOKS: dict[str, Callable[..., Any]] = {name: spec for name, spec in vars(Hooks).items() if hasattr(spec, "twinview_spec")}
