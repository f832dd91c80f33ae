"""`manifest.json` beside shards, as `twinview shards pack` writes it: the one place where it is read."""
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from twinview.data.store.regular import SMALL_BYTES, read_regular

NAME = "manifest.json"
Kind = tuple[int, int]  # channels, bits of each


@attrs.frozen(kw_only=True)
class ShardEntry:
    """What it says of one shard."""

    name: str
    bytes: int | None = None  # None: it does not say
    images: int | None = None
    sha256: str = ""
    kinds: Mapping[Kind, int] = attrs.field(factory=dict)  # how many images of each kind


@attrs.frozen(kw_only=True)
class Manifest:
    """What it says of a folder of shards; the default is that of a folder without one."""

    shards: Mapping[str, ShardEntry] = attrs.field(factory=dict)  # by name, in order
    images: int = 0
    classes: tuple[str, ...] = ()  # their names, by number
    kinds: Mapping[str, int] = attrs.field(factory=dict)  # `3x8` -> images
    mean: tuple[float, ...] = ()  # by channel, as shares of full scale; empty where it was not measured
    std: tuple[float, ...] = ()
    bits: int = 8  # of a channel, where mean and std were measured
    largest: tuple[int, ...] = ()  # value of each channel


def parse(data: bytes) -> Manifest | None:
    """A manifest; None for what is none of ours."""
    try:
        found = json.loads(data)
        shards = [_shard(shard) for shard in found["shards"]]
        names = found.get("classes")
        named = isinstance(names, list) and all(isinstance(name, str) for name in names)
        return Manifest(
            shards={shard.name: shard for shard in shards},
            images=int(found.get("images") or 0),
            classes=tuple(names) if named else (),
            kinds=dict(found.get("kinds") or {}),
            mean=tuple(float(x) for x in found.get("mean") or ()),
            std=tuple(float(x) for x in found.get("std") or ()),
            bits=int(found.get("bits") or 8),  # older ones say none; null where the images mix
            largest=tuple(int(x) for x in found.get("largest") or ()),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _shard(found: Mapping[str, Any]) -> ShardEntry:
    numbers = {name: int(found[name]) for name in ("bytes", "images") if name in found}
    kinds = {_kind(kind): int(count) for kind, count in (found.get("kinds") or {}).items()}
    return ShardEntry(name=str(found["name"]), sha256=str(found.get("sha256", "")), kinds=kinds, **numbers)


def _kind(text: str) -> Kind:
    channels, bits = map(int, text.split("x"))
    return channels, bits


def beside(folder: Path) -> Manifest:
    """The manifest of a folder of shards; that of a folder without one where it has none of ours."""
    try:
        return parse(read_regular(folder / NAME, SMALL_BYTES)) or Manifest()
    except (OSError, ValueError):
        return Manifest()
