"""Small shards, and a method whose views, draws and masks are all random."""
from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Write = Callable[[str, Mapping[str, bytes]], Path]


def encoded(pixels: Any, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def picture(seed: int, height: int = 20, width: int = 30) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a tar of named files."""

    def _write(name: str, files: Mapping[str, bytes]) -> Path:
        path = tmp_path / name
        with tarfile.open(path, "w") as tar:
            for member, data in files.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    return _write


@pytest.fixture
def shards(write: Write) -> list[str]:
    """61 images in three uneven shards, with classes and label maps."""
    paths = []
    for name, numbers in (("a", range(0, 7)), ("b", range(7, 40)), ("c", range(40, 61))):
        files: dict[str, bytes] = {}
        for n in numbers:
            labels = np.full((20, 30), n, np.uint8)
            files |= {f"{n:03}.png": encoded(picture(n)), f"{n:03}.cls": str(n % 5).encode(), f"{n:03}.seg.png": encoded(labels)}
        paths.append(str(write(f"{name}.tar", files)))
    return paths


RANDOM = '''
import os
import signal
import torch
from torch.utils.data import get_worker_info
from twinview.errors import PluginError
from twinview.hooks import hookimpl, part
from twinview.values import Geometry


@part
class Views:
    fault: str = ""

    @hookimpl
    def sample_views(self, size, rng):
        if self.fault and get_worker_info() is not None or self.fault == "here":
            if self.fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "bug":
                raise ZeroDivisionError("a bug of the part")
            raise PluginError("[views] random.views: it is not its day.")
        first = rng.random((3, 2)) * 0.5
        boxes = torch.from_numpy(__import__("numpy").concatenate([first, first + 0.1 + rng.random((3, 2)) * 0.4], 1)).float()
        boxes[2] = torch.tensor([0.0, 0.0, 1.0, 1.0])
        flips = torch.from_numpy(rng.random(3) < 0.5)
        return Geometry(boxes, flips, torch.tensor(size), ((12, 16), (8, 8), (10, 15)), ((0, 1), (1, 0)), {"iou": torch.tensor(rng.random())})


@part
class Sizes:
    @hookimpl
    def sample_views(self, size, rng):
        return Geometry(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([False]), torch.tensor(size), (size,), ())


@part
class Brightness:
    @hookimpl
    def draw_augment(self, view, size, rng):
        return {"add": torch.tensor(rng.integers(0, 100), dtype=torch.int16), "colour": torch.from_numpy(rng.random(3)).float()}

    @hookimpl
    def apply_augment(self, pixels, params):
        shifted = pixels + params["add"].view(-1, 1, 1, 1) * params["colour"].view(-1, 3, 1, 1)
        return shifted.clamp(0, 255).to(torch.uint8)


@part
class Masks:
    @hookimpl
    def make_masks(self, geometry, grids, rng):
        hidden = torch.zeros(grids[0][0] * grids[0][1], dtype=torch.bool)
        hidden[torch.from_numpy(rng.permutation(len(hidden))[:1])] = True
        return (hidden, None, None)


@hookimpl
def parts():
    return {"views": Views, "sizes": Sizes, "brightness": Brightness, "masks": Masks}
'''


@pytest.fixture
def tables(toy: dict[str, Any], install: Callable[..., None], shards: list[str]) -> dict[str, Any]:
    """A recipe of random views of those shards."""
    install("random", RANDOM, dist="twinview_random")
    return {
        **toy,
        "views": {"use": "random.views"},
        "augment": {"use": "random.brightness"},
        "masks": {"use": "random.masks"},
        "data": {"shards": shards, "workers": 0},
        "run": {**toy["run"], "batch_size": 28, "device": "cpu", "seed": 5},
    }
