"""Encoders of timm: plain vision transformers that leave hidden cells out, and every other network of which timm gives feature maps."""
from __future__ import annotations

import difflib
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, cast

import attrs
from attrs import field
from attrs.validators import ge, lt, optional

from twinview.errors import RecipeError, closest
from twinview.hooks import hookimpl, part
from twinview.ops.checks import default_of, of_weights
from twinview.ops.vision import import_timm

if TYPE_CHECKING:
    from torch import Tensor, nn

    from twinview.values import Pretrained, Step, Traits

PLAIN = ("vision_transformer", "deit")  # timm's modules of plain vision transformers
OF_ANY = ("name", "weights", "weights_key", "img_size", "drop_path")  # options that every network takes
OF_MAPS = ("cells",)  # of networks that are no plain vision transformer; all others are of these


@cache
def _names() -> list[str]:
    """Every network of timm's: more than a thousand, sorted anew by each call of the library's."""
    return list(import_timm().list_models())


def _known(_: Any, __: Any, name: str) -> None:
    known = _names()
    if name not in known:
        bare, _, tag = name.partition(".")
        if tag and bare in known:
            raise RecipeError(f"name: {name!r} names weights too. Write name = {bare!r}, and weights = 'timm:{name}' to start from them.")
        raise RecipeError(f"name: timm has no network {name!r}.{closest(name, difflib.get_close_matches(name, known, n=5))}")
    if "distilled" in name:
        raise RecipeError(f"name: {name!r} has a second class token, for a teacher's labels. Write {name.replace('_distilled', '')!r}.")


@part
class Encoder:
    """A network of timm's by name, without its classifier, for images of any size, under timm's own parameter names.

    Plain vision transformers (vit_*, deit*) give `cells`, `pooled` and `tokens`, and hide cells by dropping their tokens or by a mask token.
    Other networks (resnet*, convnext*, swin*, ...) give their maps as `levels`, c2 (stride 4) to c5 (32), with `pooled` the mean of the last;
    they hide cells by zeroing: the pixels of a hidden cell at the input (the mean color) and its features in `cells`.
    """

    name: str = field(default="vit_small_patch16_224", validator=_known)  # of timm's
    weights: str = ""  # a file, a run's folder, or timm:NAME; "": random
    weights_key: str = field(default="", validator=of_weights)  # of several encoders in a file: a word before its names (teacher, encoder_q, ...)
    img_size: int = field(default=0, validator=ge(0))  # pixels of a side that the network is built for (a grid of learned positions); 0: timm's own
    drop_path: float = field(default=0.0, validator=[ge(0), lt(1)])  # stochastic depth, from 0 at the first block to this; online branch only
    cells: str = ""  # other networks: the level that is `cells`, c2 to c5; "": the last
    patch: int = field(default=0, validator=ge(0))  # from here on vision transformers; pixels of a side; 0: the network's own
    width: int = field(default=0, validator=ge(0))  # of a token; 0: the network's own
    depth: int = field(default=0, validator=ge(0))  # blocks; 0: the network's own
    heads: int = field(default=0, validator=ge(0))  # of attention; 0: the network's own
    positions: Literal["learned", "sine_row", "sine_column"] = "learned"  # or fixed sines: row first (SiameseIM), column first (MAE)
    hide: Literal["drop", "mask_token"] = "drop"  # hidden cells: leave their tokens out (MAE), or put a learned token in their place (BEiT)
    pooled: Literal["mean", "token", "token_and_mean"] = "mean"  # of the patches that are seen, the class token, or both joined (DINO ViT-B's probe)
    pooled_blocks: int = field(default=1, validator=ge(1))  # class tokens of so many last blocks, each behind the final norm (DINO ViT-S: 4)
    maps: list[int] = field(factory=list)  # blocks, counted from 1, whose patch tokens are levels too: [4, 6, 8, 12] gives b4, b6, b8, b12 (UperNet)
    final_norm: bool = True  # LayerNorm behind the last block
    layer_scale: float | None = field(default=None, validator=optional(ge(0)))  # start of the branches' scales; 0: none; left out: the network's own
    init: Literal["timm", "mae", "moco_v3"] = "timm"  # mae: xavier-uniform, tokens of std 0.02 (MAE, SiameseIM); moco_v3: nearly so
    frozen_patch_embed: bool = False  # the patch embedding stays as it starts

    def __attrs_post_init__(self) -> None:
        options: tuple[attrs.Attribute[Any], ...] = attrs.fields(cast(Any, type(self)))
        foreign = OF_MAPS if self.plain else tuple(f.name for f in options if f.name not in (*OF_ANY, *OF_MAPS))
        for option in (f.name for f in options if getattr(self, f.name) != default_of(f)):
            if option in foreign:
                kind = "is a plain vision transformer, whose one map is `cells`" if self.plain else "is no plain vision transformer"
                raise RecipeError(f"{option}: {self.name!r} {kind}. Leave {option} out.")
        if self.positions != "learned" and self.width % 4:
            raise RecipeError(f"width: sine positions want a multiple of 4, not {self.width}. Write {self.width + -self.width % 4}")
        if self.pooled == "mean" and self.pooled_blocks > 1:
            raise RecipeError('pooled_blocks: joins class tokens. Write pooled = "token" with it, or leave it out')
        if len({*self.maps}) < len(self.maps) or any(place < 1 for place in self.maps):
            raise RecipeError(f"maps: wants different numbers of blocks, counted from 1, not {self.maps}")
        if self.heads and self.width % self.heads:
            raise RecipeError(f"heads: {self.heads} do not divide a width of {self.width}. Write another number")

    @property
    def plain(self) -> bool:
        """Whether the network is a plain vision transformer, by timm's register."""
        return bool(import_timm().models.is_model_in_modules(self.name, PLAIN))

    @staticmethod
    def pretrained(name: str) -> Pretrained:
        """timm's weights of that name, `resnet50` or `resnet50.a1_in1k`, with the mean and deviation of their images.  Raises RecipeError."""
        import timm

        from twinview.values import Pretrained

        bare = name.partition(".")[0]
        _known(None, None, bare)
        try:
            found = timm.get_pretrained_cfg(name)
        except RuntimeError:  # no such tag
            found = None
        if found is None or not found.has_weights:
            tags = timm.list_pretrained(f"{bare}.*")
            raise RecipeError(f"timm:{name}: timm publishes no such weights.{closest(name, tags) if tags else ' It has none of this network.'}")
        pooled = {"pooled": "token"} if Encoder(name=bare).plain and found.num_classes == 0 else {}
        size = (int(found.input_size[1]), int(found.input_size[2]))
        return Pretrained({"name": bare, "weights": f"timm:{name}", **pooled}, tuple(found.mean), tuple(found.std), size)

    @hookimpl
    def traits(self) -> Traits:
        """Vision transformers give cells, pooled and tokens, other networks cells, pooled and levels; all can hide cells."""
        from twinview.values import Traits

        gives = {"cells", "pooled", "hides", "any_channels", "recomputable", "tokens" if self.plain else "levels"}
        gives |= {"levels"} if self.maps else set()
        drops = self.plain and self.hide == "drop"
        instead = 'Write hide = "mask_token".' if drops else ""
        return Traits(gives=frozenset(gives if drops else gives | {"hides_any"}), instead=instead)

    @hookimpl
    def make_encoder(self, masked: bool, channels: int) -> nn.Module:
        """The network; its mask token, if it has one, is frozen where nothing is hidden.

        Raises RecipeError for options that it does not take, CheckpointError for weights that do not fit.
        """
        if self.plain:
            from twinview_timm.vit import make
        else:
            from twinview_timm.maps import make  # type: ignore[assignment]

        made = make(self, channels)
        for name, parameter in made.named_parameters():
            if name == "mask_token":
                parameter.requires_grad_(masked)
        return made

    @hookimpl
    def pictures(self, step: Step) -> dict[str, Tensor] | None:
        """`attention` of a plain vision transformer: what the heads of its last block attend to in a few images."""
        if not self.plain:
            return None
        from twinview_timm.attention import attention_sheet

        return {"attention": attention_sheet(cast(Any, step.branches.online.encoder), step)}


@hookimpl
def parts() -> dict[str, type]:
    """`timm.encoder`."""
    return {"encoder": Encoder}
