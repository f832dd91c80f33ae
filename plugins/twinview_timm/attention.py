"""Where a vision transformer looks: the attention of its last block."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from twinview.ops.pictures import from_picture, photograph, to_picture
from twinview.ops.sheet import Cell, sheet
from twinview.values import Step
from twinview_timm.vit import VisionTransformer

ROWS, HEADS, HEIGHT = 6, 6, 150


@torch.no_grad()
def last_attention(encoder: VisionTransformer, images: Tensor) -> Tensor:
    """[B, heads, h * w]: how much the class token of the last block attends to each patch; without one, how much all patches do on average."""
    seen = dict[str, Tensor]()
    attention: Any = encoder.blocks[-1].attn

    def keep(_: Any, given: tuple[Tensor, ...]) -> None:
        seen["x"] = given[0]

    hook = attention.register_forward_pre_hook(keep)
    try:
        encoder(images)
    finally:
        hook.remove()
    x = seen["x"]
    q, k, _ = attention.qkv(x).reshape(*x.shape[:2], 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attention.q_norm(q), attention.k_norm(k)
    weights = (q.float() @ k.float().mT * attention.scale).softmax(-1)  # [B, heads, tokens, tokens]
    prefix = encoder.spec.prefix
    found: Tensor = weights[:, :, 0, prefix:] if prefix else weights.mean(2)
    return found


def attention_sheet(encoder: VisionTransformer, step: Step) -> Tensor:
    """[3, H, W] uint8, a row for each image: the first view, the mean of the last block's heads over it, and its first heads."""
    pixels = step.pixels[0][:ROWS]
    maps = last_attention(encoder, pixels)
    grid = step.grids[0]
    heads = min(HEADS, maps.shape[1])
    rows = []
    for image, weights in zip(pixels.cpu(), maps.cpu()):
        photo = photograph(image)
        shown = [weights.mean(0), *weights[:heads]]
        rows.append([Cell(to_picture(photo)), *(Cell(_over(photo, one.view(grid))) for one in shown)])
    who = "the class token" if encoder.spec.prefix else "all patches, on average,"
    caption = f"How much {who} of the last block attends to each patch: bright is much. Each map is stretched to its own range."
    headings = ["view 1", "mean of the heads", *(f"head {n + 1}" for n in range(heads))]
    return from_picture(sheet(rows, headings=headings, caption=caption, height=HEIGHT))


def _over(photo: Tensor, weights: Tensor) -> Tensor:
    """A map [h, w] as brightness, from dark blue to yellow, over a darkened photograph [3, H, W]."""
    low, high = weights.amin(), weights.amax()
    full = F.interpolate(((weights - low) / (high - low).clamp(min=1e-12))[None, None], photo.shape[1:], mode="bilinear", align_corners=False)[0]
    color = torch.cat([full, full**1.3 * 0.85, 0.35 * (1 - full)]) * 255
    return (0.65 * color + 0.35 * photo.float().mean(0)).clamp(0, 255).byte()
