"""What a command works on: a run, an exported file, or weights that a library publishes; `resolve` makes an encoder of its name."""
from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import attrs
import numpy as np
from torch import nn

from twinview.analysis.load import read_encoder
from twinview.analysis.transform import Transform
from twinview.assembly.plugins import find_part, pluggy_manager
from twinview.errors import CheckpointError, RecipeError, closest
from twinview.ops.seeding import seeded
from twinview.paths import expand
from twinview.recipe import override, structure
from twinview.saved import check_finite

if TYPE_CHECKING:
    from twinview.values import EncoderSpec

LIBRARIES = {"timm": "timm.encoder", "torchvision": "torchvision.resnet"}  # the parts whose networks `LIBRARY:NAME` names
KINDS = "a run's folder, a file of `twinview export`, timm:NAME, torchvision:NAME"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Branch = Literal["online", "target"]


class LoadedEncoder(nn.Module):
    """What `twinview.load` gives, for readers and type checkers: the encoder's own module, which carries these besides."""

    spec: EncoderSpec
    transform: Transform  # a PIL image, a path or a uint8 image -> what the encoder takes

    def normalize(self, pixels: Any) -> Any:
        """A uint8 batch [B, C, H, W] -> what the encoder takes; see `Transform.normalize`."""
        raise NotImplementedError

    def __call__(self, images: Any, hidden: Any = None) -> Any:
        """`twinview.values.Features` of images [B, C, H, W], normalized."""
        raise NotImplementedError


@attrs.frozen(kw_only=True)
class Target:
    """An encoder in eval mode, on the CPU, and how its images are read."""

    name: str  # as it was asked for
    encoder: nn.Module
    transform: Transform
    use: str  # the part that made it
    options: Mapping[str, Any]  # of that part, without weights
    run: Path | None = None  # the folder of a run
    step: int | None = None  # of a run's checkpoint

    @property
    def described(self) -> dict[str, Any]:
        """What a file of features says of its encoder."""
        place = {"step": self.step} if self.step is not None else {}
        return {"target": self.name, **place, "encoder": {"use": self.use, **self.options}, **attrs.asdict(self.transform)}

    def loaded(self) -> LoadedEncoder:
        """The encoder with `transform` and `normalize`, as `twinview.load` gives it."""
        made: Any = self.encoder
        made.transform, made.normalize = self.transform, self.transform.normalize
        return cast(LoadedEncoder, made)


def resolve(name: str | Path, *, step: int | None = None, branch: Branch = "online") -> Target:
    """The encoder that `name` stands for: a run's folder, a file of `twinview export`, `timm:NAME` or `torchvision:NAME`.

    Behind a library's name may stand options of its part, `timm:resnet18,weights=dino.pth,weights_key=teacher`; without `weights` the library's own
    are fetched, and `weights=` leaves it at its random start.  `step`, `branch`: of a run.  Raises CheckpointError, RecipeError.
    """
    text = str(name)
    library, colon, rest = text.partition(":")
    if colon and library in LIBRARIES:
        found = _published(text, library, rest)
    elif text.endswith(".safetensors"):
        found = _exported(expand(text, fault=CheckpointError))
    else:
        return _of_run(text, step, branch)
    if step is not None or branch != "online":
        raise RecipeError(f"{text}: step and branch are of a run. Leave them out.")
    return found


def is_run(name: str | Path) -> bool:
    """Whether a name is that of a run's folder."""
    return (Path(name).expanduser() / "recipe.toml").is_file()


def _of_run(text: str, step: int | None, branch: Branch) -> Target:
    folder = expand(text, fault=CheckpointError)
    if found := re.fullmatch(r"step-(\d+)", folder.name):  # of its checkpoints
        folder, step = folder.parent.parent, int(found[1]) if step is None else step
    if not folder.exists() and re.fullmatch(r"[a-z]+:.*", text):
        raise RecipeError(f"{text}: there are no weights by that name.{closest(text.partition(':')[0], LIBRARIES)} A target is {KINDS}.")
    if not folder.exists():
        raise CheckpointError(f"{text}: there is no such run or file.{_nearest(folder)} A target is {KINDS}.")
    if folder.is_file():
        raise CheckpointError(f"{text}: is no file of `twinview export` (.safetensors). A target is {KINDS}; timm:NAME,weights=FILE reads others.")
    trained = read_encoder(folder, step, branch)
    recipe = trained.assembly.recipe
    views = trained.assembly.calls.sample_views(size=(256, 256), rng=np.random.default_rng(0))
    mean, std = recipe.data.colors()
    form = Transform(size=views.sizes[0], mean=tuple(mean), std=tuple(std), channels=recipe.data.channels, white=recipe.data.white)
    options = {key: value for key, value in recipe.encoder.options.items() if not key.startswith("weights")}
    return Target(name=text, encoder=trained.encoder, transform=form, use=recipe.encoder.use, options=options, run=folder, step=trained.step)


def _nearest(path: Path) -> str:
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f" Did you mean {path.parent / near[0]}?" if near else ""


def _exported(path: Path) -> Target:
    """A .safetensors file and the .json beside it."""
    beside = path.with_suffix(".json")
    for place in (path, beside):
        if not place.is_file():
            raise CheckpointError(f"{place}: is missing. `twinview export` writes a .safetensors file and a .json beside it. Name the first.")
    try:
        about = json.loads(beside.read_text(encoding="utf-8"))
        use, options = about["encoder"]["use"], {k: v for k, v in about["encoder"].items() if k not in ("use", "weights", "weights_key")}
        size, mean, std = (tuple(about[key]) for key in ("size", "mean", "std"))
        form = Transform(size=(size[0], size[1]), mean=mean, std=std, channels=len(mean), white=about["white"])
        library = about["library"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise CheckpointError(f"{beside}: is none that `twinview export` wrote, or a damaged one. Export the run anew.") from None
    if library == "torch":  # the encoder's own names, pyramids and mask tokens included
        from safetensors.torch import load_file

        encoder = _made(use, options, str(beside), form.channels)
        try:
            tensors = load_file(path)
            check_finite(tensors, encoder, str(path))
            encoder.load_state_dict(tensors)
        except CheckpointError:
            raise
        except Exception as e:  # safetensors raises its own for a damaged file
            raise CheckpointError(f"{path}: does not fit {beside.name}: {' '.join(str(e).split())[:200]}") from None
    else:
        encoder = _made(use, {**options, "weights": str(path)}, str(beside), form.channels)
    return Target(name=str(path), encoder=encoder.eval(), transform=form, use=use, options=options, step=about.get("step"))


def _published(text: str, library: str, rest: str) -> Target:
    """Weights of a library by name."""
    name, *given = rest.split(",")
    use, options = LIBRARIES[library], override({}, [one for one in given if one])
    form = Transform(size=(224, 224), mean=IMAGENET[0], std=IMAGENET[1])
    if library == "timm":
        import timm

        config: Any = timm.get_pretrained_cfg(name, allow_unregistered=True)
        options.setdefault("weights", f"timm:{name}")
        if config is not None:
            form = attrs.evolve(form, size=tuple(config.input_size[1:]), mean=tuple(config.mean), std=tuple(config.std))
        options = {"name": name.partition(".")[0], **options}
    else:
        name, _, weights = name.partition("/")
        options = {"name": name, **{"weights": weights or "DEFAULT", **options}}
        if options["weights"] == "DEFAULT":
            options["weights"] = _default(name)
    if isinstance(size := options.get("img_size"), int) and size:
        form = attrs.evolve(form, size=(size, size))
    encoder = _made(use, options, text, form.channels).eval()
    return Target(name=text, encoder=encoder, transform=form, use=use, options={k: v for k, v in options.items() if k != "weights"})


def _default(name: str) -> str:
    """The newest of torchvision's weights of a network; the name itself where there is none, for the part to refuse."""
    import torchvision

    try:
        return str(torchvision.models.get_model_weights(name).DEFAULT.name)
    except (ValueError, AttributeError):
        return "DEFAULT"


def _made(use: str, options: Mapping[str, Any], place: str, channels: int) -> nn.Module:
    """The encoder of a part, outside of any recipe; its random start is always the same."""
    method, _, part = str(use).partition(".")
    manager = pluggy_manager()
    made = structure(dict(options), find_part(manager, method, part, place), place)
    alone = pluggy_manager()
    alone.register(made)
    with seeded(0, "encoder"):
        encoder: nn.Module = alone.hook.make_encoder(masked=False, channels=channels)
    return encoder
