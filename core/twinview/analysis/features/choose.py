"""Which of an encoder's features: `pooled`, `cells`, a level, their means, class tokens of chosen layers."""
from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from twinview.errors import RecipeError, closest
from twinview.values import EncoderSpec, Features

TOKEN = re.compile(r"token(?:\.(-?\d+))?")


class Chosen:
    """Images [B, C, H, W], normalized -> the chosen features by name, float32; `close` takes the hooks off the encoder."""

    def __init__(self, encoder: nn.Module, names: Sequence[str]) -> None:
        """`names`: see `check_names`.  Raises RecipeError."""
        self.encoder, self.names = encoder, tuple(dict.fromkeys(names))
        check_names(encoder, self.names)
        self._seen: dict[str, Tensor] = {}
        self._hooks = [self._watch(name, int(found[1])) for name in self.names if (found := TOKEN.fullmatch(name)) and found[1]]

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Vectors [B, C], maps [B, C, h, w]."""
        features: Features = self.encoder(images)
        return {name: self._one(features, name).float() for name in self.names}

    def close(self) -> None:
        """Leave the encoder as it was."""
        for hook in self._hooks:
            hook.remove()

    def _one(self, features: Features, name: str) -> Tensor:
        if TOKEN.fullmatch(name):
            return self._seen[name] if name in self._seen else features.at("tokens")[:, 0]
        what, mean, _ = name.partition(".mean")
        found = features.at(what)
        return found.mean((2, 3)) if mean else found

    def _watch(self, name: str, block: int) -> Any:
        def keep(_: nn.Module, __: Any, out: Tensor) -> None:
            self._seen[name] = out[:, 0]

        return cast(Any, self.encoder).recomputable()[block].register_forward_hook(keep)


def check_names(encoder: nn.Module, names: Sequence[str]) -> None:
    """Raises RecipeError for a feature that the encoder does not give.

    There are `pooled`; the maps `cells` and those of its levels (`c2`, ...), and their means over the cells (`cells.mean`); of transformers with a
    class token `token`, and `token.N`, as block N gives it (from 0; -1 is the last), before the last norm.
    """
    spec = cast(EncoderSpec, encoder.spec)
    maps = ["cells", *spec.levels]
    known = ["pooled", *maps, *(f"{name}.mean" for name in maps), *(["token", "token.N"] if spec.prefix else [])]
    for name in names:
        token = TOKEN.fullmatch(name)
        if name in known and name != "token.N":
            continue
        if not (token and spec.prefix):
            raise RecipeError(f"features: this encoder gives no {name!r}.{closest(name, known)}")
        blocks = len(cast(Any, encoder).recomputable()) if hasattr(encoder, "recomputable") else 0
        if not -blocks <= int(token[1]) < blocks:
            raise RecipeError(f"features: {name!r} is of no block: the encoder has {blocks}, counted from 0.")
    if not names:
        raise RecipeError(f"features: names none. There is: {', '.join(known)}.")
