"""A step made by hand: a loss is asked for what tensors of other code say it should give."""
from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from twinview.ops.vision import import_timm
from twinview.values import Features, Geometry, Progress

import_timm()  # before any test file asks for it: without torch's compiler
START = Progress(0, 10, 0, 0.0)


class HandBranch:
    """The heads of one branch, found by name alone."""

    def __init__(self, heads: Mapping[str, nn.Module]) -> None:
        self.heads = dict(heads)

    def of(self, part: object, name: str) -> nn.Module:
        return self.heads[name]


class HandStep:
    """As much of a step as a loss asks for: given features, given heads (by name), and whatever geometry and alignment it is told."""

    def __init__(
        self,
        online: Sequence[Features],
        target: Sequence[Features],
        heads: Mapping[str, nn.Module],
        averaged: Mapping[str, nn.Module],
        pairs: tuple[tuple[int, int], ...],
        geometry: Geometry | None = None,
        alignment: Callable[[Any, int, int], Any] | None = None,
        progress: Progress = START,
    ) -> None:
        """`heads`, `averaged`: of the online and of the target branch; state is in both."""
        self.online, self.target, self.pairs, self.geometry, self.progress = online, target, pairs, geometry, progress
        one, other = HandBranch(heads), HandBranch(averaged)
        self.branches = type("Branches", (), {"online": one, "target": other})()
        self.hidden: tuple[Tensor | None, ...] = (None,) * max(len(online), len(target))
        self.watch, self.notes, self.made = True, dict[str, Tensor](), dict[tuple[Any, ...], Tensor]()
        self._align = alignment

    def alignment(self, online: int, target: int, name: str = "") -> Any:
        assert self._align is not None
        return self._align(self, online, target)

    def head(self, part: object, name: str) -> str:
        return name

    def apply(self, heads: str | Sequence[str], view: int, role: str, on: str | Sequence[str] = "cells") -> Tensor:
        chain = (heads,) if isinstance(heads, str) else tuple(heads)
        key = (chain, view, role, on if isinstance(on, str) else tuple(on))
        if key not in self.made:
            features = (self.online if role == "online" else self.target)[view]
            branch = self.branches.online if role == "online" else self.branches.target
            with torch.set_grad_enabled(role == "online"):
                x: Any = features.at(on) if isinstance(on, str) else [features.at(name) for name in on]
                for name in chain:
                    x = branch.of(None, name)(x)
            self.made[key] = x
        return self.made[key]

    def note(self, name: str, value: Tensor) -> None:
        self.notes[name] = value


@pytest.fixture(scope="session")
def class_shards(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The photographs as shards with two classes."""
    from twinview.data.prepare.pack import pack
    from twinview.data.writing.writer import Options

    root = tmp_path_factory.mktemp("classes")
    for i, path in enumerate(sorted(photographs.iterdir())):
        place = root / "in" / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / path.name).write_bytes(path.read_bytes())
    return str(pack("imagefolder", str(root / "in"), root / "out", Options()).out)


@pytest.fixture(scope="session")
def hand_step() -> type[HandStep]:
    """`hand_step(online, target, heads, averaged, pairs, ...)`."""
    return HandStep


@pytest.fixture(scope="session")
def reference_file() -> Callable[[str], Any]:
    """Tensors made with the official code of a baseline: the whole file, or the test skips."""

    def load(name: str) -> Any:
        path = Path(__file__).resolve().parents[3] / "shared" / "reference" / "baselines" / f"{name}.pt"
        if not path.is_file():
            pytest.skip("needs the shared folder beside the checkout")
        return torch.load(path, weights_only=True)

    return load


@pytest.fixture(scope="session")
def reference_slice() -> Callable[[str], Any]:
    """The slice of such a file that is kept here."""

    def load(name: str) -> Any:
        return torch.load(Path(__file__).parent / "fixtures" / "baselines" / f"{name}.pt", weights_only=True)

    return load


FIXTURES = Path(__file__).with_name("fixtures") / "baselines"


@pytest.fixture
def net(install: Callable[..., None]) -> Any:
    """The module tests/plugins/reference_net.py, installed as the method `reference`, on the ranks of `two_ranks` too."""
    install("reference", Path(__file__).with_name("reference_net.py").read_text())
    return importlib.import_module("twinview_reference")


@pytest.fixture(params=["slice", "whole"])
def tensors(request: pytest.FixtureRequest) -> Callable[[str], Any]:
    """`tensors("moco_v2")`: tensors of the official code by that name; a slice of them, and all where they lie beside the checkout."""

    def load(name: str) -> Any:
        folder: Path = FIXTURES if request.param == "slice" else request.getfixturevalue("shared") / "reference" / "baselines"
        return torch.load(folder / f"{name}.pt", weights_only=True)

    return load
