"""The cells of the same few images over a training: kept as the scores of their main directions, a few kilobytes a moment."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from twinview.data.dataset.base import DataSource
from twinview.data.formats.decode import PixelFormat
from twinview.data.loading.factory import PlainImages
from twinview.engine.deepspeed_config import MONITORS
from twinview.files import write_atomic
from twinview.model import Siamese
from twinview.ops.pictures import photograph
from twinview.ops.principal import colors_of, principal
from twinview.values import Features

if TYPE_CHECKING:
    from PIL.Image import Image

    from twinview.engine.setup import TrainSetup
    from twinview.values import DataFactory

IMAGES = 6
FOLDER = Path("pictures") / "cells"
PHOTOS = "images.npz"


class Snapshots(NamedTuple):
    """What a run has kept."""

    photos: list[Tensor]  # [3, h, w] uint8
    steps: list[int]
    scores: dict[int, Tensor]  # step -> [B, 3, h, w]


class Recorder:
    """Keeps a moment of a training; on rank 0, with the model at rest."""

    def __init__(self, run: Path, model: Siamese, shards: DataSource) -> None:
        self.folder, self.model, self.shards = run / FOLDER, model, shards
        self._images: Tensor | None = None
        self._last: Tensor | None = None

    @torch.no_grad()
    def keep(self, step: int) -> Tensor | None:
        """Write the moment of `step`; the scores [B, 3, h, w], None where the encoder gives no cells or no image can be read."""
        images = self._read()
        if not len(images):
            return None
        model = self.model
        features = model.online.encoder((images.to(model.device).float() - model.mean) / model.std)
        cells = features.cells if isinstance(features, Features) else None  # the first step says what is wrong with others
        if cells is None:
            return None
        if self._last is None and (before := [n for n in _steps(self.folder) if n < step]):  # of a run that goes on
            self._last = _scores(self.folder, before[-1])
        self._last = principal(cells, self._last)
        with write_atomic(self.folder / f"step-{step:06d}.npz") as file:
            np.savez_compressed(file, scores=self._last.half().numpy())
        return self._last

    def _read(self) -> Tensor:
        """The images [B, C, H, W] of 0..255, spread over the data set; their photographs are written once."""
        if self._images is None:
            recipe = self.model.assembly.recipe
            shards = self.shards.preview(IMAGES)
            count = min(IMAGES, len(shards))
            read = PlainImages(shards, PixelFormat.of(recipe.data), self.model.dims.sizes[0], (), True)
            near = bool(recipe.data.window)  # a cache that holds few shards: images of the first one alone
            batch, _ = read([i if near else i * len(shards) // count for i in range(count)])
            self._images = batch.images
            self.folder.mkdir(parents=True, exist_ok=True)
            photos = [photograph(image).numpy() for image in batch.images]
            with write_atomic(self.folder / PHOTOS) as file:
                np.savez_compressed(file, photos=np.stack(photos) if photos else np.empty(0))
        return self._images


def read_snapshots(run: Path) -> Snapshots | None:
    """What a run has kept; None where that is nothing, or damaged."""
    folder = run / FOLDER
    steps = _steps(folder)
    try:
        with np.load(folder / PHOTOS, allow_pickle=False) as file:
            photos = [torch.from_numpy(photo) for photo in file["photos"]]
        scores = {step: found for step in steps if (found := _scores(folder, step)) is not None and len(found) == len(photos)}
    except (OSError, ValueError, KeyError):
        return None
    return Snapshots(photos, sorted(scores), scores) if photos and scores else None


def _scores(folder: Path, step: int) -> Tensor | None:
    try:
        with np.load(folder / f"step-{step:06d}.npz", allow_pickle=False) as file:
            return torch.from_numpy(file["scores"]).float()
    except (OSError, ValueError, KeyError):
        return None


def _steps(folder: Path) -> list[int]:
    found = (path.stem.removeprefix("step-") for path in folder.glob("step-*.npz"))
    return sorted(int(number) for number in found if number.isdigit())


def moment_pictures(recorder: Recorder, setup: TrainSetup, data: DataFactory, step: int, *, evaluated: bool) -> dict[str, Image]:
    """Keep a moment; every rank calls it, with the model at rest.

    Pictures for the monitors, where there are any, on rank 0: the cells, and after evaluations what the parts draw.
    """
    drawn: dict[str, Image] = {}
    watched = any(table.get("enabled") for name, table in setup.recipe.deepspeed.items() if name in MONITORS and isinstance(table, dict))
    if setup.ranks.rank == 0:
        scores = recorder.keep(step)
        if watched and scores is not None:
            from twinview.ops.sheet import Cell, sheet

            colors = colors_of(scores)
            title = f"cells in the colors of their main directions, step {step}"
            drawn["cells"] = sheet([[Cell(color) for color in colors]], title=title, nearest=True)
    if watched and evaluated:  # parts may ask the other ranks
        from twinview.analysis.figures import draw_trained

        drawn |= draw_trained(setup.model, setup.shards, data, f"step {step}")
    return drawn
