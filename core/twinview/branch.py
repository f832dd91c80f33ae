"""A branch: an encoder and the heads that the recipe's parts declare."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, cast, get_args

from torch import Tensor, nn

from twinview.errors import ContractError, PluginError, closest

HeadKind = Literal["averaged", "online_only", "state"]
KINDS = get_args(HeadKind)


class ParamRule(NamedTuple):
    """How the optimizer treats one parameter; None leaves it to the recipe."""

    lr_scale: float = 1.0
    weight_decay: float | None = None  # stays what it is: [optimizer] weight_decay_end is of the recipe's own
    schedule: Literal["recipe", "constant"] = "recipe"
    frozen: bool = False
    frozen_until: int = 0  # epochs: till then no gradient, no decay, no momentum; then the optimizer takes its first step on it


class Head(NamedTuple):
    """A module that a part asks for, and what becomes of it."""

    module: nn.Module
    kind: HeadKind = "averaged"
    rule: ParamRule | None = None  # how the optimizer treats its parameters, where no part's `param_groups` says otherwise


class Branch(nn.Module):
    """Online or target.  `heads` are found by key (`multisiam/clusters/projector`); a part finds its own with `of`."""

    asked: set[str]

    def __init__(
        self,
        encoder: nn.Module,
        heads: Mapping[str, nn.Module],
        labels: Mapping[int, str],
        state: Mapping[str, nn.Module],
        rules: Mapping[str, ParamRule] | None = None,
    ) -> None:
        """`labels`: part identity -> its stable name; `state`: modules that both branches see and neither owns; `rules`: of heads, by key."""
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict(dict(heads))
        object.__setattr__(self, "_labels", dict(labels))
        object.__setattr__(self, "_rules", dict(rules or {}))
        object.__setattr__(self, "_state", state)  # not a submodule: kept once, beside the branches
        object.__setattr__(self, "asked", set[str]())  # keys of the modules that anyone has asked for

    def of(self, part: object, name: str) -> Any:
        """This branch's module `name` of a part: the same part finds other weights in online than in target."""
        return self.find(self.key(part, name))

    def key(self, part: object, name: str) -> str:
        """The stable key of a module as it stands in checkpoints; `part` itself, or the name that the recipe gives it (a shared `[[head]]`)."""
        labels: dict[int, str] = self._labels  # type: ignore[assignment]
        return f"{part.replace('.', '/') if isinstance(part, str) else labels[id(part)]}/{name}"

    def head_of(self, parameter: str) -> str:
        """The key of the head that owns a parameter (by its name in this branch); "" for the encoder's."""
        return next((key for key in self.heads if parameter.startswith(f"heads.{key}.")), "")

    def rule(self, parameter: str) -> ParamRule | None:
        """What the head that owns a parameter (by its name in this branch) says of how the optimizer treats it."""
        rules: dict[str, ParamRule] = self._rules  # type: ignore[assignment]
        return next((rule for key, rule in rules.items() if parameter.startswith(f"heads.{key}.")), None)

    def find(self, key: str) -> nn.Module:
        """A module by key.  Raises ContractError naming the keys there are."""
        self.asked.add(key)
        if key in self.heads:
            return self.heads[key]
        state: Mapping[str, nn.Module] = self._state  # type: ignore[assignment]
        if key in state:
            return state[key]
        raise ContractError(f"asks for a head {key!r} that this branch does not have.{closest(key, [*self.heads, *state])} Declare it in heads().")

    def recomputable(self) -> list[nn.Module]:
        """Blocks of the encoder and of heads whose activations may be made anew in the backward pass; none inside another."""
        owners = [module for module in (self.encoder, *self.heads.values()) if hasattr(module, "recomputable")]
        return [block for owner in owners for block in cast(Any, owner).recomputable()]


def _no_reset(part: object, head: str) -> None:
    raise PluginError(f"branches.reset({head!r}): heads are reset in before_epoch and in after_step, with the `branches` that those are given.")


class SampleStore(Protocol):
    """A uint8 array with a row for each sample that lies beside the checkpoints, in the run's folder, and survives a kill.

    See `Branches.new_samples`.  What belongs to a crop goes by `batch.places`: an epoch may have a sample twice, and then has another crop of it.
    What belongs to a sample goes by `batch.ids`, for parts whose traits need `ids`.
    """

    def read(self, rows: Tensor) -> Tensor:
        """[B, ...] uint8 of `rows` [B], on the CPU; 0 where nothing was written.  Raises PluginError for a row that there is not."""
        ...

    def write(self, rows: Tensor, values: Tensor) -> None:
        """Keep `values` [B, ...] uint8 of `rows` [B]; each rank its own.  Raises PluginError for a row that there is not."""
        ...

    def done(self) -> None:
        """All ranks call it when they have written."""
        ...


def _no_samples(part: object, name: str, *_: object) -> SampleStore:
    raise PluginError(f"branches.samples({name!r}): these branches belong to no model.")


class Branches(NamedTuple):
    """Both branches.  With `momentum = 0` the target is the online branch itself."""

    online: Branch
    target: Branch
    initial: Callable[[], nn.Module]  # a new encoder with the run's random start (no `weights`): the baseline of a probe
    reset: Callable[[object, str], None] = _no_reset
    """`reset(part, head)`, in `before_epoch` and `after_step`: draw a head of a part anew, in the target too where it is averaged.

    The draw depends on (seed, step, part, head) alone, and the optimizer starts on it as on its first step: momenta and counts are forgotten, the
    same under every ZeRO stage.  All ranks call it.  Raises PluginError for a head that there is not.
    """
    new_samples: Callable[[object, str, int, Sequence[int]], SampleStore] = _no_samples
    """`new_samples(part, name, epoch, shape)`, in `before_epoch`: `shape` bytes for each sample of the data set, all 0, for the coming epoch.

    For what is too large for every checkpoint, such as pseudo labels of cells: it lies in a file of the run's folder, one for each epoch, as long as
    a checkpoint stands in that epoch.  All ranks call it, each writes its own samples, and all call `done()`.
    """
    samples: Callable[[object, str, int], SampleStore] = _no_samples
    """`samples(part, name, epoch)`: what `new_samples` made for that epoch, in a run that went on too.  Raises CheckpointError where it is gone."""
