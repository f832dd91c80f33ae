"""The core's own tables of a recipe: `[data] [target] [optimizer] [schedule] [run]`.  Imports nothing heavy."""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, Literal

import attrs
from attrs import field
from attrs.validators import and_, deep_iterable, ge, gt, le, lt, matches_re, optional

from twinview.errors import RecipeError

FORMAT = 1  # of recipes and of a run's folder
ORDER: Final = 2  # the newest format of an epoch's order; 1 is that of runs whose recipe says none
BUFFER: Final = 1000
MEASURED: Final = "shards"  # in place of [data] mean or std: what the manifest of the shards says
Numbers = list[float] | str  # of the channels, or MEASURED
HELD_OUT = "held-out"  # what evaluations call the samples that [data] held_out keeps from training


def _positive(default: Any) -> Any:
    return field(default=default, validator=gt(0))


def _share(default: float) -> Any:
    return field(default=default, validator=[ge(0), le(1)])


@attrs.frozen(kw_only=True)
class Target:
    """The target branch: an averaged copy of the online branch, or the online branch itself without gradient."""

    momentum: float = _share(0.99)  # 0: stop-gradient, no copy
    schedule: Literal["cosine", "constant"] = "cosine"  # cosine: from `momentum` to 1 over the run
    update: Literal["after_step", "before_forward"] = "after_step"


Weight = float | list[list[float]]  # of a loss: a number, or points [share of the run, weight]
Amount = float | int  # of samples: a share is written with a point, a number without


def _amount(default: Amount, wants: str, share: Callable[[float], bool]) -> Any:
    def check(_: object, attribute: attrs.Attribute[Any], value: Amount) -> None:
        if isinstance(value, int) and value == 1:
            raise ValueError(f"{attribute.name}: 1 is one sample, and a share is written with a point. Write {wants}, or a number of samples")
        if not (share(value) if isinstance(value, float) else value > 1 or value == default):
            raise ValueError(f"{attribute.name}: wants {wants}, or a number of samples, not {value!r}")

    return field(default=default, validator=check)


@attrs.frozen(kw_only=True)
class Source:
    """One of the sources that [data] mixes."""

    shards: str | list[str]  # as shards of [data]
    name: str = field(default="", validator=matches_re(r"[\w.-]*"))  # stands before its keys, NAME/KEY; needed where two sources share keys
    weight: float | None = field(default=None, validator=optional(and_(gt(0), lt(math.inf))))  # share of an epoch, beside the others' weights
    subset: float | int = _amount(1.0, "a share up to 1.0", lambda share: 0 < share <= 1)  # of its samples, or how many; 0.1 holds 0.01


@attrs.frozen(kw_only=True)
class Data:
    """Where images come from and how they reach the device."""

    shards: str | list[str] = field(factory=list)  # paths with {000..063}, images:DIR, or scenes:train; or the sources
    source: list[Source] = field(factory=list)  # [[data.source]] tables: several, with weights and subsets
    held_out: float | int = _amount(0, "a share below 1.0", lambda share: 0 <= share < 1)  # of all, or how many: for evaluations alone
    workers: int = field(default=2, validator=ge(0))  # data worker processes per rank
    window: int = field(default=0, validator=ge(0))  # shards shuffled together; 0 = all of them
    order: int = field(default=0, validator=[ge(0), le(ORDER)])  # format of the order of samples: 1, or 2; 0: the run's own, of a new run 2
    frozen_draws: bool = False  # every epoch draws the views of the first
    augment_on: Literal["worker", "device"] = "worker"
    decode: Literal["full", "scaled"] = "full"  # scaled: JPEGs at 1/2, 1/4 or 1/8 where every view is still made smaller; nearly the same pixels
    channels: int = _positive(3)  # of an image; with 3, grey ones become three equal channels
    white: int = field(default=0, validator=[ge(0), lt(1 << 16)])  # of 16-bit images: the value that is full scale (4095 of 12 bits); 0: refused
    mean: Numbers = field(factory=lambda: [0.485, 0.456, 0.406])  # of the channels, 0..1 of full scale; "shards": as their manifest says
    std: Numbers = field(factory=lambda: [0.229, 0.224, 0.225])
    bad_samples: int = field(default=0, validator=ge(0))  # samples that may fail to decode before the run stops
    streaming: bool = False  # read shards from start to end, and keep none
    buffer: int = _positive(BUFFER)  # streaming: samples that a worker shuffles among
    samples: int = field(default=0, validator=ge(0))  # streaming: of all shards, where no manifest.json says it
    cache: str = ""  # folder where shards that lie elsewhere are kept; "": shards in $TWINVIEW_CACHE, or in ~/.cache/twinview
    cache_gb: float = field(default=0.0, validator=[ge(0), lt(1e9)])  # of them, the longest unused go beyond this; 0 = unlimited
    allow_pipes: list[str] = field(factory=list)  # programs that pipe:COMMAND may run, for example ["aws"]

    def __attrs_post_init__(self) -> None:
        if self.streaming and (self.source or self.held_out or self.window):
            raise ValueError("streaming goes with none of source, held_out and window. Leave one of them out")
        if self.decode == "scaled" and (self.channels != 3 or self.white):
            raise ValueError('decode = "scaled" is of 8-bit color images: it goes with neither channels nor white. Leave it out')
        if not self.streaming and (self.samples or self.buffer != BUFFER):
            raise ValueError("samples and buffer are of streaming. Write streaming = true, or leave them out")

    def colors(self) -> tuple[list[float], list[float]]:
        """Mean and deviation of the channels.  Raises RecipeError where they are still to be read from the shards."""
        if isinstance(self.mean, str) or isinstance(self.std, str):
            raise RecipeError(f"[data] mean, std: {MEASURED!r} is known once the shards are open. Write the numbers.")
        return self.mean, self.std


@attrs.frozen(kw_only=True)
class Rates:
    """A rate is written as `lr`, or as `base_lr` for 256 images, scaled linearly with run.batch_size."""

    lr: float | None = field(default=None, validator=optional(and_(ge(0), lt(math.inf))))
    base_lr: float | None = field(default=None, validator=optional(and_(ge(0), lt(math.inf))))
    weight_decay: float = field(default=0.0, validator=ge(0))
    weight_decay_end: float | None = field(default=None, validator=optional(ge(0)))  # a cosine leads there over the run (DINO); left out: constant
    clip: float = field(default=0.0, validator=ge(0))  # norm of each parameter's gradient by itself (DINO); run.clip_gradients: of all together
    decay_norm_bias: bool = False  # weight decay (and LARS's trust ratio) on biases and norms too

    def peak(self, batch_size: int) -> float:
        """The learning rate at the top of the schedule."""
        return self.lr if self.lr is not None else (self.base_lr or 0.0) * batch_size / 256


@attrs.frozen(kw_only=True)
class SGD(Rates):
    """torch.optim.SGD."""

    momentum: float = field(default=0.9, validator=[ge(0), lt(1)])
    nesterov: bool = False

    def __attrs_post_init__(self) -> None:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov wants a momentum above 0")


@attrs.frozen(kw_only=True)
class AdamW(Rates):
    """torch.optim.AdamW."""

    betas: tuple[float, float] = field(default=(0.9, 0.999), validator=deep_iterable(and_(ge(0), lt(1))))
    eps: float = _positive(1e-8)
    fused: bool = False  # torch's kernel that takes a parameter in one pass


@attrs.frozen(kw_only=True)
class LARS(Rates):
    """Layer-wise adaptive rates (You et al. 2017), as BYOL, MoCo-v3, PixPro and SimCLR released it."""

    momentum: float = field(default=0.9, validator=[ge(0), lt(1)])
    trust: float = _positive(0.001)
    eps: float = field(default=0.0, validator=ge(0))  # added to the norm of the decayed gradient (PixPro: 1e-8)
    nesterov: bool = False
    lr_inside: bool = False  # the momentum buffer sums lr times the gradient (SimCLR) in place of the gradient


OPTIMIZERS: dict[str, type[Rates]] = {"sgd": SGD, "adamw": AdamW, "lars": LARS}


@attrs.frozen(kw_only=True)
class Schedule:
    """Learning rate over the run: linear warm-up, then cosine or poly to `final` of the peak, steps down, or constant.  At most one warm-up key."""

    use: Literal["cosine", "poly", "constant", "multistep"] = "cosine"
    warmup_epochs: float | None = None
    warmup_steps: int | None = None
    warmup_share: float | None = field(default=None, validator=optional(and_(ge(0), le(1))))  # of the run
    start: float = _share(0.0)  # of the peak, where the warm-up begins
    final: float = _share(0.0)  # of the peak, where the cosine or poly ends
    power: float = field(default=0.9, validator=gt(0))  # poly: the part of the run that is left, to this power (mmsegmentation); 1: a straight line
    grain: Literal["step", "epoch"] = "step"  # epoch: the cosine moves once an epoch (MoCo, SimSiam, DenseCL); the warm-up always by the step
    milestones: list[float] = field(factory=list, validator=deep_iterable(gt(0)))  # multistep: epochs after which the rate is multiplied by gamma
    gamma: float = field(default=0.1, validator=[gt(0), lt(1)])

    def __attrs_post_init__(self) -> None:
        if (self.use == "multistep") != bool(self.milestones):
            raise ValueError('milestones and use = "multistep" go together. Write both, for example milestones = [120, 160], or none')
        if self.milestones != sorted(set(self.milestones)):
            raise ValueError(f"milestones: want numbers that rise, not {self.milestones}")
        for name, uses in {"final": '"cosine" or "poly"', "grain": '"cosine"', "power": '"poly"'}.items():
            if f'"{self.use}"' not in uses and getattr(self, name) != getattr(attrs.fields(Schedule), name).default:
                raise ValueError(f"{name} is of use = {uses}. Leave it out")


@attrs.frozen(kw_only=True)
class Run:
    """How long, how large, how exact.  Exactly one of `steps`, `epochs`, `hours`."""

    steps: int | None = None
    epochs: float | None = None
    hours: float | None = None
    batch_size: int = _positive(256)  # global: over all ranks and accumulated micro-batches
    accumulation: int = _positive(1)
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"  # auto: bf16 where the device has it in hardware; fp16 on a GPU alone
    channels_last: bool = False
    activation_checkpointing: bool = False  # blocks of the online branch keep their inputs alone and are computed again in the backward pass
    compile: bool = False  # torch.compile on the encoders, in the steps
    views_together: bool = False  # views of one size go through an encoder in one pass: BatchNorm statistics over all of them
    sync_batchnorm: bool = True  # statistics over all ranks
    clip_gradients: float = field(default=0.0, validator=ge(0))  # global norm; 0 = none
    seed: int = field(default=0, validator=[ge(0), lt(2**63)])
    device: Literal["auto", "cpu", "cuda"] = "auto"
    log_every: int = _positive(10)  # steps
    checkpoint_every: int = _positive(500)  # steps
    keep: int = _positive(2)  # checkpoints
    bad_steps: int = field(default=0, validator=ge(0))  # steps whose loss or gradient is not finite that are left out before the run stops
    any_versions: bool = False  # a resumed run may have other versions of the packages that its methods come from
    keep_best: str = ""  # a score of [[evaluate]] as metrics.jsonl names it, without score/: its best checkpoint stays too
