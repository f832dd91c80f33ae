"""What a run's network makes of images, as pictures for its page: neighbors, a map of features, cells in the colors of their main directions."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from twinview.analysis.figures import Opened, open_model, pictures_of
from twinview.analysis.report.page import Picture
from twinview.analysis.report.snapshots import read_snapshots
from twinview.data.dataset.read import BadSample
from twinview.data.formats.decode import PixelFormat
from twinview.data.loading.factory import PlainImages
from twinview.engine.run_recipe import run_recipe
from twinview.errors import TwinviewError
from twinview.ops.pictures import photograph
from twinview.ops.principal import colors_of, principal
from twinview.ops.sheet import Cell, sheet

T = TypeVar("T")
QUERIES, NEAREST = 8, 6  # of the sheet of neighbors
SHOWN = 6  # images of the sheets of cells
BATCH = 32
MAP, THUMB = 1200, 52  # pixels of the map of features, and of a picture on it
MANY = 8  # moments of the training on a sheet


class Seen(NamedTuple):
    """A sample of a run's images, and what its encoder makes of them."""

    keys: list[str]
    photos: list[Tensor]  # [3, h, w] uint8
    pooled: Tensor  # [N, C]
    shown: list[int]  # of these, the images of the sheet of cells
    cells: Tensor  # [len(shown), C, h, w]


def draw_run(run: Path, overrides: Sequence[str] = (), *, images: int = 160) -> tuple[dict[str, list[Picture]], list[str]]:
    """Pictures by section, of `images` of the run's own, and what could not be drawn, with the reason.  Raises TwinviewError for wrong overrides."""
    found: dict[str, list[Picture]] = {}
    notes: list[str] = []
    if steps := _tried(notes, "Cells over the training", lambda: over_training(run)):
        found["The same images over the training"] = [steps]
    recipe = run_recipe(run, overrides)
    opened = _tried(notes, "Pictures of the network", lambda: open_model(recipe, run))
    if opened is None:
        return found, notes
    drawn = _tried(notes, "Views and clusters", lambda: pictures_of(opened)) or {}
    titles = {"views": "Views", "attention": "Attention"}
    for name, picture in drawn.items():
        found[titles.get(name, name[:1].upper() + name[1:])] = [Picture("", picture)]
    seen = _tried(notes, "Neighbors and the map", lambda: look(opened, images))
    if seen is not None:
        at = f"step {opened.step}" if opened.step is not None else "untrained"
        found["Cells"] = [cells_now(seen, at)]
        found["Nearest neighbors"] = [neighbors_sheet(seen, at)]
        if len(seen.keys) > 7:
            found["Map of the features"] = [feature_map(seen, at)]
    return found, notes


def _tried(notes: list[str], what: str, work: Callable[[], T]) -> T | None:
    try:
        return work()
    except (TwinviewError, BadSample) as e:
        notes.append(f"{what}: {e}")
        return None


@torch.no_grad()
def look(opened: Opened, images: int) -> Seen:
    """Read images, spread over the data set, and their features by the online branch."""
    recipe, model = opened.model.assembly.recipe, opened.model
    shards = opened.shards.preview(images)
    count = min(images, len(shards))
    places = [i * len(shards) // count for i in range(count)]
    read = PlainImages(shards, PixelFormat.of(recipe.data), model.dims.sizes[0], (), True)
    keys, photos, pooled, cells, shown = list[str](), list[Tensor](), list[Tensor](), list[Tensor](), list[int]()
    marks = {i * count // SHOWN for i in range(SHOWN)}  # spread too: data sets are often sorted by class
    for at in range(0, count, BATCH):
        batch, _ = read(places[at : at + BATCH])
        if not batch.keys:
            continue
        features = model.online.encoder((batch.images.float() - model.mean) / model.std)
        chosen = [k for k in range(len(batch.keys)) if len(keys) + k in marks]
        if features.cells is not None:
            shown += [len(keys) + k for k in chosen]
            cells.append(features.cells[chosen].float())
        keys += batch.keys
        photos += [photograph(image) for image in batch.images]
        pooled.append(features.pooled if features.pooled is not None else features.at("cells").mean((2, 3)))
    if not keys:
        raise TwinviewError("no image of the run's data could be read.")
    return Seen(keys, photos, torch.cat(pooled).float(), shown, torch.cat(cells) if cells else torch.empty(0, 1, 1, 1))


def cells_now(seen: Seen, at: str) -> Picture:
    """Some of the images beside their cells."""
    if not len(seen.cells):
        return Picture("", sheet([[Cell(photo) for photo in seen.photos[:SHOWN]]], title="This encoder gives no cells"))
    photos = [seen.photos[i] for i in seen.shown]
    colors = colors_of(principal(seen.cells))
    rows = [[Cell(photo) for photo in photos], [Cell(_blocks(color, photo)) for color, photo in zip(colors, photos)]]
    caption = (
        "The three main directions of the cells of all these images together, as red, green and blue. Cells of one color have like features: a "
        "trained network gives the parts of one thing one color, in every image."
    )
    return Picture("", sheet(rows, title=f"Cells in the colors of their main directions, {at}"), caption)


def neighbors_sheet(seen: Seen, at: str) -> Picture:
    """A row for each query: itself, and the images with the most alike pooled features."""
    unit = F.normalize(seen.pooled - seen.pooled.mean(0), dim=1)
    alike = unit @ unit.T
    alike.fill_diagonal_(-2)
    chosen = [i * len(seen.keys) // min(QUERIES, len(seen.keys)) for i in range(min(QUERIES, len(seen.keys)))]
    rows = []
    for i in chosen:
        value, place = alike[i].topk(min(NEAREST, len(seen.keys) - 1))
        near = [Cell(seen.photos[j], f"{v:.2f}: {seen.keys[j]}") for v, j in zip(value.tolist(), place.tolist())]
        rows.append([Cell(seen.photos[i], seen.keys[i], "blue"), *near])
    title = f"Nearest neighbors among {len(seen.keys)} images, {at}"
    return Picture("", sheet(rows, title=title, height=110), "Blue: the query. Below each neighbor the cosine of the centered pooled features.")


def feature_map(seen: Seen, at: str) -> Picture:
    """Thumbnails where t-SNE puts the pooled features."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    unit = F.normalize(seen.pooled - seen.pooled.mean(0), dim=1).numpy()
    with threadpool_limits(1):  # threads that wait for one another cost a hundred times as much on a busy machine
        places = TSNE(perplexity=min(30.0, (len(unit) - 1) / 3), init="pca", random_state=0).fit_transform(unit)
    low, high = places.min(0), places.max(0)
    whole = Image.new("RGB", (MAP, round(MAP * 0.7)), "white")
    for (x, y), photo in zip((places - low) / (high - low + 1e-9), seen.photos):
        small = Image.fromarray(photo.permute(1, 2, 0).numpy())
        small.thumbnail((THUMB, THUMB))
        whole.paste(small, (round(float(x) * (whole.width - THUMB)), round(float(y) * (whole.height - THUMB))))
    caption = f"{len(seen.keys)} images where t-SNE of their pooled features puts them ({at}): near means alike; distances across the map say little."
    return Picture("", whole, caption)


def over_training(run: Path) -> Picture | None:
    """The cells of the same images at several moments; None where the run has kept none."""
    kept = read_snapshots(run)
    if kept is None:
        return None
    shown = [kept.steps[round(i * (len(kept.steps) - 1) / max(min(MANY, len(kept.steps)) - 1, 1))] for i in range(min(MANY, len(kept.steps)))]
    shown = list(dict.fromkeys(shown))
    colors = {step: colors_of(kept.scores[step]) for step in shown}
    rows = [[Cell(photo), *(Cell(_blocks(colors[step][i], photo)) for step in shown)] for i, photo in enumerate(kept.photos)]
    caption = (
        "The three main directions of the cells of all these images, as red, green and blue, at each moment; directions are turned so that colors "
        "stay as much the same as they can from one moment to the next."
    )
    return Picture("", sheet(rows, title="Cells over the training", headings=["image", *(f"step {step}" for step in shown)], height=120), caption)


def _blocks(colors: Tensor, photo: Tensor) -> Tensor:
    """[3, h, w] uint8 -> as large as the photo, cells as squares."""
    return F.interpolate(colors[None].float(), photo.shape[1:], mode="nearest")[0].byte()
