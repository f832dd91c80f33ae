"""Plain vision transformers of timm (Dosovitskiy et al. 2021), which see the patches that are not hidden."""
from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from twinview.errors import RecipeError
from twinview.ops.sines import sine_table
from twinview.ops.weights import load_weights, trained_options
from twinview.values import EncoderSpec, Features, Level, Published, Size
from twinview_timm.create import call_arguments, create, refuse_torchvision

if TYPE_CHECKING:
    from twinview_timm import Encoder

log = logging.getLogger(__name__)

TOKENS = ("cls_token", "reg_token")  # timm's names of what stands before the patches, in its order
CLASSIFIERS = ("head.", "fc_norm.", "attn_pool.")
BESIDE = ("decoder_", "mm_", "projector_decoder_", "predictor_decoder_", "student_norm.", "mask_token")  # in checkpoints of MAE and SiameseIM


class VisionTransformer(nn.Module):
    """Images [B, C, H, W] -> `Features`; parameters are called as in timm's VisionTransformer, and `mask_token` where there is one.

    Sides that are no multiple of the patch are filled up with zeros, below and on the right.
    """

    mask_token: nn.Parameter | None

    def __init__(
        self, vit: Any, *, row_first: bool | None, mask_token: bool, pooled: str, pooled_blocks: int, maps: Sequence[int], name: str,
        options: dict[str, Any],
    ) -> None:
        """`vit`: timm's, for dynamic sizes; `row_first`: of sine positions, None: `vit`'s learned ones; `name`, `options`: what timm made it of."""
        super().__init__()
        self.cls_token, self.reg_token, self.pos_embed = vit.cls_token, vit.reg_token, vit.pos_embed
        self.patch_embed, self.norm_pre, self.blocks, self.norm = vit.patch_embed, vit.norm_pre, vit.blocks, vit.norm
        self.mask_token = nn.Parameter(torch.empty(1, 1, vit.embed_dim).normal_(std=0.02)) if mask_token else None
        self.row_first, self.pooled, self.pooled_blocks, self.maps, self.name, self.options = row_first, pooled, pooled_blocks, maps, name, options
        self.placed_prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens  # rows of learned positions before the patches'
        patch = vit.patch_embed.patch_size[0]
        level = Level(vit.embed_dim, patch)
        width = vit.embed_dim * (pooled_blocks + (pooled == "token_and_mean"))
        levels = {f"b{place}": level for place in maps}
        self.spec = EncoderSpec(pooled=width, cells=level, levels=levels, prefix=vit.num_prefix_tokens, patch=patch)

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> Features:
        """`hidden` [B, h * w], the same number in each image: left out behind the positions, or a mask token before them."""
        x = self.patch_embed(images)  # [B, h, w, C]
        grid = (x.shape[1], x.shape[2])
        x = x.flatten(1, 2)
        if hidden is not None and self.mask_token is not None:
            x = torch.where(hidden[..., None], self.mask_token.to(x.dtype), x)
        prefix, places = self.positions(grid, x.device)
        x, kept = x + places, None
        if hidden is not None and self.mask_token is None:
            kept = (~hidden).nonzero()[:, 1].view(len(x), -1)  # [B, N], ascending
            x = x.gather(1, _wide(kept, x))
        before = [getattr(self, t).expand(x.shape[0], -1, -1) for t in TOKENS if getattr(self, t) is not None]
        if before:
            x = torch.cat([torch.cat(before, 1) + prefix, x], 1)
        x = self.norm_pre(x)
        levels: dict[str, Tensor] = {}  # no dict[str, Tensor](), at which torch.compile breaks its graph
        tokens: list[Tensor] = []
        if not self.maps and self.pooled_blocks == 1:
            x = self.blocks(x)
        else:
            for place, block in enumerate(self.blocks, start=1):
                x = block(x)
                if place in self.maps:
                    levels[f"b{place}"] = self._map(x, kept, grid)
                if len(self.blocks) - self.pooled_blocks < place < len(self.blocks):
                    tokens.append(self.norm(x)[:, 0])
        x = self.norm(x)
        patches = x[:, self.spec.prefix :]
        if self.pooled == "mean":
            pooled = patches.mean(1)
        else:
            pooled = torch.cat([*tokens, x[:, 0], *([patches.mean(1)] if self.pooled == "token_and_mean" else [])], 1)
        return Features(cells=self._map(x, kept, grid), pooled=pooled, levels=levels, tokens=x, prefix=self.spec.prefix, kept=kept)

    def _map(self, x: Tensor, kept: Tensor | None, grid: Size) -> Tensor:
        """Tokens [B, prefix + N, C] -> [B, C, h, w], zero where a patch was dropped."""
        patches = x[:, self.spec.prefix :]
        cells = patches if kept is None else x.new_zeros(len(x), grid[0] * grid[1], x.shape[-1]).scatter(1, _wide(kept, x), patches)
        return cells.transpose(1, 2).view(x.shape[0], -1, *grid)  # not len(x): traced graphs take any batch

    def positions(self, grid: Size, device: torch.device) -> tuple[Tensor, Tensor]:
        """What is added to the tokens before the patches, [prefix or 1, C], and to those of the patches, [h * w, C]."""
        width = self.spec.cells.channels
        none = torch.zeros(1, width, device=device)
        if self.row_first is not None:
            return none, sine_table(grid, width, row_first=self.row_first, device=device)
        if self.pos_embed is None:
            return none, none
        made_for = self.patch_embed.grid_size
        every = resample_abs_pos_embed(self.pos_embed, new_size=grid, old_size=made_for, num_prefix_tokens=self.placed_prefix)[0]
        return every[: self.placed_prefix] if self.placed_prefix else none, every[self.placed_prefix :]

    def recomputable(self) -> list[nn.Module]:
        """The transformer's blocks."""
        return [*self.blocks]

    @torch.no_grad()
    def published(self, size: Size) -> Published:
        """For timm, with positions for images of `size` pixels.  Raises ValueError where the patch does not divide them."""
        patch = self.spec.cells.stride
        if size[0] % patch or size[1] % patch:
            raise ValueError(f"wants multiples of the patch, {patch} pixels, not {size[0]}x{size[1]}")
        tensors = {name: value for name, value in self.state_dict().items() if name != "mask_token"}
        prefix, places = self.positions((size[0] // patch, size[1] // patch), torch.device("cpu"))
        if self.row_first is not None or self.pos_embed is not None:
            rows = [prefix.expand(self.placed_prefix, -1)] if self.placed_prefix else []
            tensors["pos_embed"] = torch.cat([*rows, places])[None]
        options = {"img_size": size, **self.options}
        return Published("timm", f"timm.create_model({self.name!r}, {call_arguments(options)})", tensors)


def _wide(kept: Tensor, x: Tensor) -> Tensor:
    """Indices [B, N] -> [B, N, C]."""
    return kept[..., None].expand(-1, -1, x.shape[-1])


@torch.no_grad()
def start_as_mae(encoder: VisionTransformer) -> None:
    """MAE's random start: linear layers and the flattened patch kernel xavier-uniform, their biases 0 (the kernel's stays), tokens N(0, 0.02)."""
    for layer in encoder.blocks.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    nn.init.xavier_uniform_(encoder.patch_embed.proj.weight.flatten(1))  # a view: filled in place
    for name in TOKENS:
        if getattr(encoder, name) is not None:
            nn.init.normal_(getattr(encoder, name), std=0.02)


def resized_positions(encoder: VisionTransformer, name: str, table: Tensor, own: Tensor) -> Tensor | None:
    """A file's `pos_embed` [1, prefix + n * n, C] for the encoder's grid, bicubic as timm resizes it, and said; None for what is no such table."""
    prefix, grid = encoder.placed_prefix, encoder.patch_embed.grid_size
    side = math.isqrt(max(table.shape[1] - prefix, 0)) if table.ndim == 3 else 0
    if name != "pos_embed" or not side or side * side + prefix != table.shape[1] or table.shape[2] != own.shape[2]:
        return None
    patch = encoder.spec.cells.stride
    keep = f"img_size = {side * patch} keeps it as it is"
    log.warning("[encoder] weights: their table of positions is of %d x %d patches, and is resized to %d x %d; %s.", side, side, *grid, keep)
    found: Tensor = resample_abs_pos_embed(table, new_size=list(grid), num_prefix_tokens=prefix)
    return found


@torch.no_grad()
def start_as_moco_v3(encoder: VisionTransformer) -> None:
    """MoCo v3's random start: MAE's, but queries, keys and values count as three layers, the kernel's bias is 0, the class token N(0, 1e-6)."""
    start_as_mae(encoder)
    for name, layer in encoder.blocks.named_modules():
        if name.endswith("attn.qkv") and isinstance(layer, nn.Linear):
            bound = math.sqrt(6 / (layer.out_features // 3 + layer.in_features))
            nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.zeros_(encoder.patch_embed.proj.bias)
    if encoder.cls_token is not None:
        nn.init.normal_(encoder.cls_token, std=1e-6)


START = {"mae": start_as_mae, "moco_v3": start_as_moco_v3}


def make(options: Encoder, channels: int) -> VisionTransformer:
    """The encoder that a recipe's table describes, for images of `channels`, at random (torch's global generator) or with its weights."""
    sine = options.positions != "learned"
    sizes = {"patch_size": options.patch, "embed_dim": options.width, "depth": options.depth, "num_heads": options.heads}
    arguments: dict[str, Any] = {key: value for key, value in sizes.items() if value}
    arguments |= {} if options.layer_scale is None else {"init_values": options.layer_scale}
    arguments |= {"num_classes": 0, "global_pool": "avg" if options.pooled == "mean" else "token", "fc_norm": False}
    arguments |= {} if options.final_norm else {"final_norm": False}
    arguments |= {} if channels == 3 else {"in_chans": channels}
    training = {"dynamic_img_size": True, "dynamic_img_pad": True, "drop_path_rate": options.drop_path}
    built = {"img_size": options.img_size} if options.img_size else {}
    vit = create(options.name, **arguments, **training, **built, **({"pos_embed": "none"} if sine else {}))
    if vit.pool_include_prefix:
        arguments["pool_include_prefix"] = False  # what is published pools as we do
    for what, last in (("maps", max(options.maps, default=0)), ("pooled_blocks", options.pooled_blocks)):
        if last > len(vit.blocks):
            raise RecipeError(f"[encoder] timm.encoder {what}: {last} is more than the {len(vit.blocks)} blocks of this network.")
    if sine and vit.embed_dim % 4:
        raise RecipeError(f"[encoder] timm.encoder: sine positions want a width that is a multiple of 4, not {vit.embed_dim}. Set width.")
    encoder = VisionTransformer(
        vit,
        row_first=options.positions == "sine_row" if sine else None,
        mask_token=options.hide == "mask_token",
        pooled=options.pooled,
        pooled_blocks=options.pooled_blocks,
        maps=tuple(options.maps),
        name=options.name,
        options=arguments,
    )
    if options.init in START:
        START[options.init](encoder)
    if options.frozen_patch_embed:
        encoder.patch_embed.requires_grad_(False)
    if options.weights:
        refuse_torchvision(options.weights)
        _check_positions(options)
        left_out = (*CLASSIFIERS, *BESIDE, *(["pos_embed"] if sine else []), *([] if options.final_norm else ["norm."]))
        resize = partial(resized_positions, encoder)
        look = partial(_check_sines, options) if sine else None
        load_weights(
            encoder, options.weights, ignore=left_out, optional=("mask_token",), channels=channels, key=options.weights_key, resize=resize, look=look,
        )
    return encoder


def _check_positions(options: Encoder) -> None:
    """Of the positions that a run was trained with; those of sines are in no tensor."""
    trained = trained_options(options.weights, "timm.encoder")
    if trained:
        _same_positions(options, trained.get("positions", "learned"))


def _check_sines(options: Encoder, state: Mapping[str, Tensor]) -> None:
    """Of the table of positions that weights hold."""
    table = state.get("pos_embed")
    if table is None or table.ndim != 3:
        return
    side = math.isqrt(table.shape[1])  # of a square of patches, without what stands before them
    rows = table[0, table.shape[1] - side * side :].float()
    orders = {f"sine_{name}": sine_table((side, side), rows.shape[1], row_first=name == "row", device=rows.device) for name in ("row", "column")}
    near = [name for name, sines in orders.items() if torch.allclose(rows, sines, atol=1e-3)]
    if options.positions not in near:
        _same_positions(options, near[0] if near else "learned")


def _same_positions(options: Encoder, trained: str) -> None:
    """Raises RecipeError for sines in the other order, which nobody means; learned ones in place of sines, or the other way, are said."""
    if trained == options.positions:
        return
    said = f'{options.weights} was trained with positions = "{trained}", and this encoder has "{options.positions}"'
    if "learned" not in (trained, options.positions):
        raise RecipeError(f'[encoder] weights: {said}. Write positions = "{trained}".')
    log.warning("[encoder] weights: %s, which knows nothing of them before it is trained.", said)
