"""What a command works on: a run, a file of weights, or weights that a library publishes.  `find_target` reads its name for all commands alike."""
from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import attrs
import numpy as np
from torch import Tensor, nn

from twinview.analysis.load import read_encoder
from twinview.analysis.transform import Transform
from twinview.assembly import answered, find_part, installed, methods, pluggy_manager
from twinview.engine.run_recipe import run_recipe
from twinview.errors import CheckpointError, RecipeError, closest
from twinview.ops.seeding import seeded
from twinview.ops.weights import FILES
from twinview.paths import expand
from twinview.recipe import Recipe, find, override, read, structure
from twinview.saved import check_finite
from twinview.values import Pretrained, Size

if TYPE_CHECKING:
    from twinview.values import EncoderSpec

FROZEN = "frozen/weights"  # the recipe of an encoder that is no run's
COLORS = ("mean", "std", "white")  # of [data], as an exported file says them
KINDS = "a run's folder, a file of `twinview export`, a checkpoint of another project (with encoder.use=...), timm:NAME, torchvision:NAME"
SIZE = (224, 224)  # of images, where nothing says another
Branch = Literal["online", "target"]


class LoadedEncoder(nn.Module):
    """What `twinview.load` gives, for readers and type checkers: the encoder's own module, which carries these besides."""

    __call__: Callable[..., Any]  # images [B, C, H, W], normalized -> `twinview.values.Features`
    spec: EncoderSpec
    transform: Transform  # a PIL image, a path or a uint8 image -> what the encoder takes
    normalize: Callable[[Tensor], Tensor]  # a uint8 batch [B, C, H, W] -> what the encoder takes; see `Transform.normalize`


class _Made(NamedTuple):
    encoder: nn.Module
    transform: Transform
    step: int | None


@attrs.frozen(kw_only=True, slots=False)
class Target:
    """An encoder by name, and how its images are read.  Recipe and network are made when they are first asked for."""

    name: str  # as it was asked for
    scores: Path  # the file that keeps its scores
    run: Path | None = None  # the folder of a run whose checkpoint it is
    step: int | None = None  # of a run's checkpoint, as it was asked for; None: the last
    branch: Branch = "online"
    table: Mapping[str, Any] = attrs.field(factory=dict)  # [encoder] and [data] of what is no run's checkpoint
    size: Size | None = None  # of its images, height, width; None: that of the run's views, or 224
    own: Path | None = None  # a file that has the encoder's own names
    overrides: tuple[str, ...] = ()  # keys of the recipe

    def recipe(self, shards: str | Sequence[str] = "") -> Recipe:
        """The run's recipe; of what is no run one in which nothing is trained, with `shards` in [data].  Raises RecipeError, CheckpointError."""
        if self.run is not None:
            return run_recipe(self.run, self.overrides)
        whole = tomllib.loads(find(FROZEN).read_text(encoding="utf-8"))
        whole["encoder"] = dict(self.table["encoder"])
        whole["data"] = {**whole["data"], **self.table.get("data", {}), **({"shards": shards} if shards else {})}
        return read(override(whole, self.overrides))

    @cached_property
    def _made(self) -> _Made:
        if self.run is not None:
            trained = read_encoder(self.run, self.step, self.branch)
            views = trained.assembly.calls.sample_views(size=(256, 256), rng=np.random.default_rng(0))
            return _Made(trained.encoder, _transform(trained.assembly.recipe, self.size or views.sizes[0]), trained.step)
        recipe = self.recipe()
        options = recipe.encoder.options
        side = options.get("img_size")
        size = (side, side) if isinstance(side, int) and side else self.size or SIZE
        place = self.name if self.own is None else str(self.own.with_suffix(".json"))
        encoder = _encoder(recipe.encoder.use, options if self.own is None else _bare(options), place, recipe.data.channels).eval()
        if self.own is not None:
            _fill(encoder, self.own, place)
        return _Made(encoder, _transform(recipe, size), self.step)

    @property
    def encoder(self) -> nn.Module:
        """In eval mode, on the CPU.  Raises CheckpointError, RecipeError."""
        return self._made.encoder

    @property
    def transform(self) -> Transform:
        """How its images are read."""
        return self._made.transform

    @cached_property
    def part(self) -> tuple[str, Mapping[str, Any]]:
        """The part that makes the encoder, and its options without weights."""
        config = self.recipe().encoder
        return config.use, _bare(config.options)

    @property
    def use(self) -> str:
        """The part that makes the encoder."""
        return self.part[0]

    @property
    def described(self) -> dict[str, Any]:
        """What a file of features says of its encoder."""
        use, options = self.part
        place = {"step": self._made.step} if self._made.step is not None else {}
        return {"target": self.name, **place, "encoder": {"use": use, **options}, **attrs.asdict(self.transform)}

    def loaded(self) -> LoadedEncoder:
        """The encoder with `transform` and `normalize`, as `twinview.load` gives it."""
        made: Any = self.encoder
        made.transform, made.normalize = self.transform, self.transform.normalize
        return cast(LoadedEncoder, made)


def find_target(name: str | Path, overrides: Sequence[str] = (), *, step: int | None = None, branch: Branch = "online") -> Target:
    """The target of that name: a run's folder or one of its checkpoints, a file of `twinview export`, a file of weights, or METHOD:NAME.

    Behind METHOD:NAME may stand options of its part, `timm:resnet18,weights=dino.pth,weights_key=teacher`; without `weights` the library's own are
    fetched, and `weights=` leaves it at its random start.  `overrides`: keys of its recipe; those of the encoder make a run's weights those of
    another encoder, its last block's class token for its mean, say.  `step`, `branch`: of a run.  Raises RecipeError, CheckpointError.
    """
    text = str(name)
    others = _published(text, tuple(overrides))
    path = Path(text) if others is not None else expand(text, "TARGET", fault=CheckpointError)
    found = others if others is not None else _of_file(text, path, tuple(overrides)) if path.is_file() or path.suffix in FILES else None
    if found is not None:
        if step is not None or branch != "online":
            raise RecipeError(f"{text}: step and branch are of a run. Leave them out.")
        return found
    if named := re.fullmatch(r"step-(\d+)", path.name):  # of its checkpoints
        path, step = path.parent.parent, int(named[1]) if step is None else step
    if not path.exists():
        raise CheckpointError(f"{text}: there is no such run or file.{_nearest(path)} A target is {KINDS}.")
    whole = run_recipe(path)  # or a line that says that it is no run's folder
    if not any(word.startswith("encoder.") for word in overrides):
        return Target(name=text, scores=path / "scores.json", run=path, step=step, branch=branch, overrides=tuple(overrides))
    if step is not None or branch != "online":
        raise RecipeError(f"{text}: with other options of the encoder it is the last checkpoint's online branch. Leave step and branch out.")
    table = whole.table()
    data = {key: table["data"][key] for key in (*COLORS, "channels") if key in table["data"]}
    other = {"encoder": {**table["encoder"], "weights": str(path), "weights_key": ""}, "data": data}
    return Target(name=text, scores=path / "scores.json", table=other, overrides=tuple(overrides))


def is_run(name: str | Path) -> bool:
    """Whether a name is that of a run's folder."""
    return (Path(name).expanduser() / "recipe.toml").is_file()


def _nearest(path: Path) -> str:
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f" Did you mean {path.parent / near[0]}?" if near else ""


# ---- files
def _of_file(text: str, path: Path, overrides: tuple[str, ...]) -> Target:
    """A file of `twinview export` with the .json beside it, or weights alone."""
    scores = Path(f"{path}.scores.json")
    named = any(word.startswith("encoder.use=") for word in overrides)
    if not path.is_file():
        raise CheckpointError(f"{text}: there is no such file.{_nearest(path)}")
    beside = path.with_suffix(".json")
    if path.suffix == ".safetensors" and beside.is_file() and not named:
        return attrs.evolve(_exported(text, path, beside), scores=scores, overrides=overrides)
    if not named:
        example = "encoder.use=torchvision.resnet encoder.name=resnet50"
        others = f"encoder.use=timm.encoder, or timm:NAME,weights={text}"
        missing = f" {beside.name}, which `twinview export` writes beside its file, is missing." if path.suffix == ".safetensors" else ""
        raise RecipeError(f"{text}: holds weights alone.{missing} Say of which network they are: {example}, or {others}.")
    return Target(name=text, scores=scores, table={"encoder": {"weights": str(path)}}, overrides=overrides)


def _exported(text: str, path: Path, beside: Path) -> Target:
    try:
        said = json.loads(beside.read_text(encoding="utf-8"))
        encoder = {"use": said["encoder"]["use"], **_bare(said["encoder"]), "weights": str(path)}
        size, *colors = (tuple(said[key]) for key in ("size", "mean", "std"))
        data = {"mean": [*colors[0]], "std": [*colors[1]], "white": said["white"], "channels": len(colors[0])}
        own, size, step = path if said["library"] == "torch" else None, (int(size[0]), int(size[1])), said.get("step")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{beside}: is none that `twinview export` wrote, or a damaged one. Export the run anew.") from None
    return Target(name=text, scores=path, table={"encoder": encoder, "data": data}, size=size, own=own, step=step)


def _fill(encoder: nn.Module, path: Path, place: str) -> None:
    """The tensors of a file that has the encoder's own names, pyramids and mask tokens included."""
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
        check_finite(tensors, encoder, str(path))
        encoder.load_state_dict(tensors)
    except CheckpointError:
        raise
    except Exception as e:  # safetensors raises its own for a damaged file
        raise CheckpointError(f"{path}: does not fit {Path(place).name}: {' '.join(str(e).split())[:200]}") from None


# ---- names
def _published(text: str, overrides: tuple[str, ...]) -> Target | None:
    """`timm:NAME,option=value`: weights that an encoder's library publishes; None for what is no such name."""
    method, colon, rest = text.partition(":")
    if not colon or Path(text).exists() or not method.isidentifier():
        return None
    makers = {
        part: cls
        for _, _, parts in installed(method) if isinstance(parts, Mapping)
        for part, cls in parts.items() if "make_encoder" in answered(cls) and hasattr(cls, "pretrained")
    } if method in methods() else {}
    if not makers:
        known = [m for m, _, parts in installed() if isinstance(parts, Mapping) and any(hasattr(cls, "pretrained") for cls in parts.values())]
        raise RecipeError(f"{text}: no method {method!r} publishes weights by name.{closest(method, known)} A target is {KINDS}.")
    part = next(iter(makers))
    cls = find_part(pluggy_manager(), method, part, text)
    name, *given = rest.split(",")
    options = override({}, [one for one in given if one])
    try:
        found = cast(Pretrained, cast(Any, cls).pretrained(name))
    except RecipeError:
        if "weights" not in options:
            raise
        found = Pretrained({"name": name.partition(".")[0]})  # a network that has none of its library's own
    data = {key: list(numbers) for key, numbers in (("mean", found.mean), ("std", found.std)) if numbers}
    folder = Path("runs") / text.replace(":", "-").replace("/", "-")
    table = {"encoder": {"use": f"{method}.{part}", **found.options, **options}, "data": data}
    return Target(name=text, scores=folder / "scores.json", table=table, size=found.size, overrides=overrides)


# ---- pieces
def _bare(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if not key.startswith("weights") and key != "use"}


def _transform(recipe: Recipe, size: Size) -> Transform:
    mean, std = recipe.data.colors()
    return Transform(size=size, mean=tuple(mean), std=tuple(std), channels=recipe.data.channels, white=recipe.data.white)


def _encoder(use: str, options: Mapping[str, Any], place: str, channels: int) -> nn.Module:
    """The encoder of a part, outside of any recipe; its random start is always the same."""
    method, _, part = str(use).partition(".")
    made = structure(dict(options), find_part(pluggy_manager(), method, part, place), place)
    alone = pluggy_manager()
    alone.register(made)
    with seeded(0, "encoder"):
        encoder: nn.Module = alone.hook.make_encoder(masked=False, channels=channels)
    return encoder
