"""The values that pass between hooks.  Shapes stand beside each field; B images, V views, C channels, h x w cells."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, get_args

import attrs
import torch
from torch import Tensor, nn

from twinview.branch import Branch, Branches
from twinview.branch import Head as Head
from twinview.branch import ParamRule as ParamRule
from twinview.errors import ContractError, PluginError
from twinview.published import Pretrained as Pretrained
from twinview.published import Published as Published

Role = Literal["online", "target"]
ROLES = get_args(Role)
Size = tuple[int, int]  # height, width


# ---- where views lie
class Geometry(NamedTuple):
    """Where the views of an image lie.  Tensors may carry leading batch dimensions `...`; points are (x, y), fractions of a side.

    A view's own frame is the picture that the network sees: after the crop, the resize and the mirroring.
    """

    boxes: Tensor  # [..., V, 4] x0 y0 x1 y1 in the source, 0..1
    flips: Tensor  # [..., V] bool: mirrored left to right
    source: Tensor  # [..., 2] height, width of the source in pixels
    sizes: tuple[Size, ...]  # V output sizes in pixels
    pairs: tuple[tuple[int, int], ...]  # ordered (online view, target view)
    notes: dict[str, Tensor] = {}  # noqa: RUF012  numbers [...] that the sampler wants logged, never mutated
    draws: tuple[int, ...] = ()  # of each view, the view whose photometric draws it takes, itself or another; (): each its own
    cut_from: tuple[int, ...] = ()  # of each view, itself: cut from the source; or another: from that one's picture, photometry and all; (): itself
    sets: tuple[tuple[int, ...], ...] = ()  # views of one size that are pieces of one picture; under [run] views_together they share a pass

    def to_source(self, points: Tensor, view: int) -> Tensor:
        """Points [..., P, 2] in `view`'s frame -> the same places as fractions of the source, [..., P, 2]."""
        box = self.boxes[..., view, None, :]
        return box[..., :2] + self._mirror(points, view) * (box[..., 2:] - box[..., :2])

    def to_view(self, points: Tensor, view: int) -> Tensor:
        """The inverse of `to_source`; a place outside the view comes out below 0 or above 1."""
        box = self.boxes[..., view, None, :]
        return self._mirror((points - box[..., :2]) / (box[..., 2:] - box[..., :2]), view)

    def overlap(self, online: int = 0, target: int = 1) -> Tensor:
        """[..., 4]: the box that two views both see, fractions of the source; empty where x1 <= x0 or y1 <= y0."""
        a, b = self.boxes[..., online, :], self.boxes[..., target, :]
        return torch.cat([torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])], -1)

    def iou(self, online: int = 0, target: int = 1) -> Tensor:
        """[...]: intersection over union of two views' boxes, 0 where they do not meet."""
        both = box_area(self.overlap(online, target))
        return both / (box_area(self.boxes[..., online, :]) + box_area(self.boxes[..., target, :]) - both)

    def centers(self, view: int, grid: Size) -> Tensor:
        """[..., h*w, 2]: where the middles of `view`'s cells lie, fractions of the source, in the order of the view's own map."""
        return self.to_source(cell_centers(grid, self.boxes.device).to(self.boxes.dtype), view)

    def _mirror(self, points: Tensor, view: int) -> Tensor:
        flip = self.flips[..., view, None]
        x = torch.where(flip, 1 - points[..., 0], points[..., 0])
        return torch.stack([x, points[..., 1].expand_as(x)], -1)


def box_area(boxes: Tensor) -> Tensor:
    """Area [...] of boxes [..., 4]; an empty box has area 0."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def cell_centers(grid: Size, device: torch.device | None = None) -> Tensor:
    """[h*w, 2]: the middles (x, y) of the cells of a grid of height, width, as fractions, row by row."""
    height, width = grid
    y, x = torch.meshgrid((torch.arange(height, device=device) + 0.5) / height, (torch.arange(width, device=device) + 0.5) / width, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


# ---- what a network gives
class Features(NamedTuple):
    """What an encoder makes of a batch of images.  An encoder gives what it has; its `EncoderSpec` says which."""

    cells: Tensor | None = None  # [B, C, h, w]; zero where the cell was hidden and dropped
    pooled: Tensor | None = None  # [B, C]
    levels: Mapping[str, Tensor] = {}
    tokens: Tensor | None = None  # [B, prefix + N, C]
    prefix: int = 0
    kept: Tensor | None = None  # [B, N] indices of the cells that tokens stand for, where cells were dropped

    def at(self, name: str) -> Tensor:
        """`cells`, `pooled`, `tokens`, or a level by its name.  Raises ContractError with the names there are."""
        found: Tensor | None = getattr(self, name) if name in ("cells", "pooled", "tokens") else self.levels.get(name)
        if found is None:
            raise ContractError(f"asks for {name!r}, and the encoder gives: {', '.join(self.names())}.")
        return found

    def names(self) -> list[str]:
        """What `at` answers."""
        return [n for n in ("cells", "pooled", "tokens") if getattr(self, n) is not None] + list(self.levels)

    def detach(self) -> Features:
        """The same values without gradient."""
        return self.each(lambda value: value.detach())

    def split(self, n: int) -> list[Features]:
        """Of `n` batches that went through the encoder as one: the features of each."""

        def part(i: int) -> Features:
            return self.each(lambda value: value[i * len(value) // n : (i + 1) * len(value) // n])

        return [part(i) for i in range(n)]

    def each(self, change: Callable[[Tensor], Tensor]) -> Features:
        """Every tensor of them changed; `change` keeps the first dimension for images."""
        def changed(value: Tensor | None) -> Tensor | None:
            return None if value is None else change(value)

        levels = {name: change(value) for name, value in self.levels.items()}
        return Features(changed(self.cells), changed(self.pooled), levels, changed(self.tokens), self.prefix, changed(self.kept))


class Level(NamedTuple):
    """A feature map of an encoder."""

    channels: int
    stride: int  # pixels of the view per cell


@attrs.frozen(kw_only=True)
class EncoderSpec:
    """What an encoder gives, as plain numbers: its module carries it as `spec`."""

    pooled: int  # width of `pooled`
    cells: Level
    levels: Mapping[str, Level] = attrs.field(factory=dict)
    prefix: int = 0  # tokens before the cells' tokens
    patch: int | None = None  # pixels of a patch, for transformers

    def grid(self, size: Size) -> Size:
        """Cells (h, w) of a view of `size` pixels; every encoder here rounds up, as strided convolutions do."""
        return -(-size[0] // self.cells.stride), -(-size[1] // self.cells.stride)


class Encoder(Protocol):
    """An `nn.Module` that also carries `spec`.  `hidden` [B, h*w] bool marks cells that it must not see.

    One whose activations can be made anew in the backward pass (`run.activation_checkpointing`) answers `recomputable() -> list[nn.Module]`, its
    blocks, none inside another, and says so in its part's traits; so may a head, which needs no trait.
    One that a library could load again may answer `published(size) -> Published | None`, for images of `size` pixels; ValueError: not of that size.
    """

    spec: EncoderSpec

    def __call__(self, images: Tensor, hidden: Tensor | None = None) -> Features:  # noqa: D102
        ...


@attrs.frozen(kw_only=True)
class Dims:
    """The sizes that heads and workers need, worked out once from the encoder and the recipe; plain numbers only."""

    encoder: EncoderSpec
    grids: tuple[Size, ...]  # cells (h, w) of each view
    sizes: tuple[Size, ...]  # pixels (h, w) of each view
    pairs: tuple[tuple[int, int], ...]
    draws: tuple[int, ...] = ()  # as Geometry has them
    cut_from: tuple[int, ...] = ()
    sets: tuple[tuple[int, ...], ...] = ()  # of views that are pieces of one picture
    channels: int = 3  # of an image
    global_batch: int
    dataset_size: int
    classes: int = 0  # label classes of the training shards, 0 where there are none
    wants: tuple[str, ...] = ()  # labels of views that parts need besides: label_maps, objects
    aligned_widths: Mapping[str, tuple[int, ...]] = attrs.field(factory=dict)  # alignment name -> channel widths that losses send through it
    sent: tuple[int, ...] = ()  # channel widths for the alignment whose `heads()` is being called; empty for other parts
    extras: Mapping[str, int] = attrs.field(factory=dict)  # alignment name -> channels of its `extra`
    heads: Mapping[str, int] = attrs.field(factory=dict)  # name of a shared `[[head]]` -> channels of its `projector`

    def width(self, on: str) -> int:
        """Channels of `cells`, `pooled`, `tokens` or a level by name."""
        if on == "pooled":
            return self.encoder.pooled
        if on in ("cells", "tokens"):
            return self.encoder.cells.channels
        return self.encoder.levels[on].channels


class Alignment(NamedTuple):
    """Makes the two branches' maps comparable, cell by cell.

    `online` and `target` take a map [B, C, h, w] of their own view (any width; any resolution of that view) and give
    [B, C, h', w'] on one common grid.
    """

    online: Callable[[Tensor], Tensor]
    target: Callable[[Tensor], Tensor]
    weight: Tensor  # [B, h', w'], 0 where the two do not show the same place
    extra: Tensor | None = None  # [B, k, h', w']: what a predictor is told besides, never part of a similarity
    fills_hidden: bool = False  # it predicts cells that the online branch did not see
    takes_tokens: bool = False  # `online` and `target` also take an encoder's tokens [B, prefix + N, C], class token and all


# ---- what happens when
class Progress(NamedTuple):
    """How far a run is.  `share` runs from 0 at the first step to 1 at the end, whatever the run is measured in."""

    step: int
    steps: int  # 0 where the run is measured in hours
    epoch: int
    share: float
    micro: int = 0  # micro-batch of the step (run.accumulation), from 0; in `loss`, `align`, `encode` and `after_micro_batch`


class Batch(NamedTuple):
    """One micro-batch of views on a rank."""

    keys: tuple[str, ...]  # B sample keys
    ids: Tensor  # [B] int64: place in the data set
    seeds: Tensor  # [B] int64: hash of the sample's key, and of how often the epoch had it before
    epoch: int
    images: tuple[Tensor, ...]  # V x [B, C, h, w] uint8; float32 of the same 0..255 under [data] white
    geometry: Geometry
    hidden: tuple[Tensor | None, ...]  # V x ([B, h*w] bool, True = hidden), None where nothing is
    augment: tuple[dict[str, Tensor], ...] | None = None  # V x draws that are still to be applied on the device
    labels: dict[str, Tensor] = {}  # noqa: RUF012  class [B]; what traits need besides: map/VIEW [B, h, w], objects/VIEW/boxes [B, M, 4] ...
    places: Tensor = torch.empty(0, dtype=torch.int64)  # [B] int64: number of each reading in its epoch, whichever rank has it; below dataset_size


class PlainBatch(NamedTuple):
    """Whole images, resized, without any draw: what evaluations read."""

    keys: tuple[str, ...]
    ids: Tensor  # [B] int64
    images: Tensor  # [B, C, H, W] float, normalized
    labels: dict[str, Tensor]  # class [B], map [B, H, W], objects/boxes [B, M, 4] ..., as asked for


class DataFactory(Protocol):
    """What `before_epoch` and `evaluate` read images with.  Each rank gets its own share."""

    @property
    def channels(self) -> int:
        """Of an image."""
        ...

    def plain(
        self, shards: str | Sequence[str] | None = None, *, size: Size, labels: Sequence[str] = (), batch_size: int = 64, crop: bool | float = False,
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    ) -> Iterator[PlainBatch]:
        """Whole images of `shards` at `size`, in order, with the named labels.

        By default those that the run trains with; "held-out": those that [data] held_out keeps from training.
        `crop`: the largest central box of the shape of `size`, instead of the whole image squeezed into it; a number: that share of the box's
        sides (0.875 is the center of 224 pixels of an image whose shorter side is 256).
        """
        ...

    def stored(
        self, what: str, modules: Sequence[nn.Module], shards: str | Sequence[str] | None, make: Callable[[], dict[str, Tensor]], *,
        lasting: bool = False, **how: object,
    ) -> dict[str, Tensor]:
        """What `make` gives, the same on every rank: computed once, kept on disk, and shared by all evaluations that ask for the same.

        The same is: `what` (a name of the asker's), the weights and code of `modules`, the samples of `shards` (as for `plain`), the colors of
        [data], and `how` (sizes, levels, seeds: numbers, words and lists of them).  While a run trains, its weights move and nothing is kept unless
        `lasting` says that these modules stay as they are.  All ranks call it; tensors come on the CPU.
        """
        return make()

    def class_names(self, shards: str | Sequence[str] | None = None) -> tuple[str, ...]:
        """What the class numbers of `shards` (as for `plain`) stand for, as their manifests say; empty where one of them says nothing.
        For an evaluation to compare: a validation set that was numbered otherwise than what it is scored by gives wrong scores without a word.
        """
        ...

    def shared(self, one: str | Sequence[str] | None, other: str | Sequence[str] | None) -> int:
        """How many samples of `one` (as for `plain`) are samples of `other` too, for an evaluation to say that it scores what it learned from."""
        return 0

    def views(self, epoch: int) -> Iterator[Batch]:
        """The training batches just as `epoch` draws them, every sample once (`sample_weights` is not asked)."""
        ...

    def features(
        self, branch: Branch, batch: Batch | PlainBatch, view: int = 0, *, train: bool = False, move_statistics: bool = False
    ) -> Features:
        """What a branch's encoder gives, without gradient and with nothing hidden, for a view of a batch of `views`, or for the images of `plain`.
        The images as a training step has them: draws applied, normalized, on the device.  Worked out in the run's precision, given in float32, which
        modules take outside of a step.  `train`: in train mode, with the batch's own BatchNorm statistics (dropout too), of all ranks where the run
        synchronizes them; running statistics stay as they are unless `move_statistics`.  Raises PluginError for `plain` batches in train mode on
        several ranks: ranks have other numbers of them.
        """
        raise PluginError("data.features: this data factory knows no model.")

    def alignment(self, batch: Batch, online: int, target: int, name: str = "") -> Alignment:
        """The recipe's alignment (of that name) for a pair of views of a batch of `views`, as if nothing were hidden, without gradient.
        An alignment that looks at features gets those of the encoders in eval mode.
        """
        raise PluginError("data.alignment: this data factory knows no model.")

    def require(self, shards: str | Sequence[str]) -> None:
        """Raises DataError where paths of `shards` are not there.  Nothing is read, and nothing that lies elsewhere is asked for."""
        return


class Traits(NamedTuple):
    """What a part needs from the others and what it offers, checked when the recipe is assembled.

    `needs`: of the encoder `cells`, `pooled`, `tokens`, `levels`; of the views `crop_draws`, `pairs`, `patches` (two sets); of the masks
    `even_masks` (if there are any, as many hidden cells in every image); of the recipe `alignment`, `masks`, `averaged_target`, `labels`;
    of each sample `label_maps` or `objects`, which every view has as it sees them (`Batch.labels`); of the data `ids` (below `Dims.dataset_size`, as
    those of an uncounted stream are not), `known_epoch` (`data.views` gives an epoch before it begins: no part has `sample_weights`).
    `gives`: an encoder `cells`, `pooled`, `tokens`, `levels`, `hides` (it can leave hidden cells unseen), `hides_any` (as many as each image has:
    it puts something in their place), `recomputable` (it names blocks); masks that hide other numbers of cells in other images, none among them,
    `uneven_masks`; a view sampler that notes the numbers its crop was drawn from, `crop_draws`, one with two sets of pieces, the online and the
    target one, `patches`; a loss that passes an alignment's `extra` on to its predictor, `uses_extra`; an encoder or an augmentation of images of any
    number of channels, `any_channels`; an augmentation of float32 images, `deep`.
    """

    needs: frozenset[str] = frozenset()
    gives: frozenset[str] = frozenset()
    extra: int = 0  # channels of the `extra` that this alignment gives
    channels: int = 0  # of the maps that the `projector` of this [[head]] gives
    scores: frozenset[str] | None = None  # names of the numbers that its `evaluate` gives, for [run] keep_best; None: not said
    instead: str = ""  # hint appended to the error when an option limits what this part supports


class Step(Protocol):
    """What one micro-batch offers a loss.  Everything is computed when first asked for, and once."""

    batch: Batch
    progress: Progress
    branches: Branches
    watch: bool  # this step is logged: worth computing what only `note` is told
    label: str  # the part that is being asked for its loss (or answers `after_step` ...), by its name in the recipe: `byol.image`, or its `name`

    @property
    def online(self) -> Sequence[Features]:
        """Features of each view from the online branch, with gradient."""
        ...

    @property
    def target(self) -> Sequence[Features]:
        """Features of each view from the target branch, without gradient; with `momentum = 0` the online ones, detached."""
        ...

    def made(self, view: int, role: Role) -> bool:
        """Whether anyone has asked for the features of this view and branch yet: then they cost nothing more, and asking changes nothing."""
        ...

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Ordered (online view, target view)."""
        ...

    @property
    def grids(self) -> tuple[Size, ...]:
        """Per view the cells (h, w) of its map: what an alignment needs to know of it, without asking for its features."""
        ...

    @property
    def geometry(self) -> Geometry:
        """The batch's geometry, on the device."""
        ...

    @property
    def hidden(self) -> tuple[Tensor | None, ...]:
        """Per view [B, h*w] bool, True = hidden from the online branch."""
        ...

    @property
    def pixels(self) -> Sequence[Tensor]:
        """Per view [B, C, h, w] as the encoder saw them (normalized)."""
        ...

    def alignment(self, online: int, target: int, name: str = "") -> Alignment:
        """The recipe's alignment (of that name) for a pair of views; visibility is already in its weight."""
        ...

    def head(self, part: object, name: str) -> str:
        """The key of a part's own head, for `apply`; `part` may be the name of a `[[head]]` that several parts share."""
        ...

    def apply(self, heads: str | Sequence[str], view: int, role: Role, on: str | Sequence[str] = "cells") -> Tensor:
        """Heads (keys, applied one after another) on a view's `cells`, `pooled`, `tokens` or level.  Memoized by chain, view, role and `on`.

        `on` may name several, `("c2", "c3")`: the first head is then called with the list of them.  Without gradient where `role` is "target".
        """
        ...

    def uniform(self, purpose: str, n: int) -> Tensor:
        """[B, n] float32 in [0, 1): drawn from (seed, epoch, sample, purpose) alone, the same on any rank and after a resume."""
        ...

    def note(self, name: str, value: Tensor) -> None:
        """Log a number (a scalar, or [B] to be averaged) beside the loss terms."""
        ...
