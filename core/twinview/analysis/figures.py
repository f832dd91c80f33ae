"""Pictures of the views that a recipe draws, and those that the parts of a run offer."""
from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from twinview.assembly import assemble
from twinview.data.dataset.base import DataSource
from twinview.data.dataset.open import open_data
from twinview.data.dataset.read import read_image
from twinview.data.dataset.statistics import with_measured
from twinview.data.formats.decode import PixelFormat
from twinview.data.loading.factory import Factory
from twinview.data.loading.views import ViewDataset
from twinview.engine.checkpoint import find_checkpoint, load_model, steps_in
from twinview.engine.setup import check_classes
from twinview.errors import HookError
from twinview.model import LazyStep, Siamese, make_model
from twinview.ops.pictures import three_channels
from twinview.ops.sheet import Cell, Entry, font, hatched, sheet, titled
from twinview.recipe import Recipe
from twinview.terminal import say
from twinview.values import Batch, DataFactory, Geometry, Progress, Size, cell_centers

IMAGES = 6  # in a picture
HEIGHT = 200  # pixels of a picture on a sheet
BOXES = ("#ff3030", "#30a0ff", "#30d030", "#ffc020")  # a color per view
COLORS = ("red", "blue", "green", "amber")  # what they are called
BOTH = "#ffff40"  # of the intersection
SHOWN = 5  # matched cells along a side, at most
LEARNED = "is learned: it predicts what the target shows at a place and moves no cell, so its dots are where the geometry puts the target's cells"


class Opened(NamedTuple):
    """A model at rest, and the data that it is shown."""

    model: Siamese
    shards: DataSource
    data: DataFactory | None  # None: no run, and parts draw nothing
    title: str = ""  # the run and the step, for the pictures
    step: int | None = None  # of the checkpoint; None: untrained


def open_model(recipe: Recipe, run: Path | None = None) -> Opened:
    """The model of a recipe, with the newest checkpoint of `run` where it has one.  Raises TwinviewError."""
    assembly = assemble(recipe)  # whose faults come before those of the data
    shards = open_data(recipe.data)
    assembly = assembly.under(with_measured(recipe, shards))
    check_classes(assembly, shards)
    model = make_model(assembly, len(shards), shards.classes, weights=run is None)  # a run's own weights follow: the file it started from may be gone
    step = None
    if run is not None and steps_in(run / "checkpoints"):
        checkpoint = find_checkpoint(run / "checkpoints")
        load_model(checkpoint, model, rank=0, world=1)
        step = checkpoint.step
    model.eval()
    data = None if run is None else Factory(assembly.recipe, model.dims, shards, features=model.features, alignment=model.alignment)
    name = recipe.name if run is None else run.resolve().name
    return Opened(model, shards, data, f"{name}, step {step}" if step is not None else f"{name}, untrained" if run is not None else name, step)


def draw(recipe: Recipe, run: Path | None = None, *, images: int = IMAGES) -> dict[str, Image.Image]:
    """`views` of the recipe's own images (spread over the data set, as epoch 0 draws them), and what the parts of a run offer, by name.

    Without a `run` the networks are untrained, and only `views` is drawn.  Raises TwinviewError.
    """
    return pictures_of(open_model(recipe, run), images)


def draw_trained(model: Siamese, shards: DataSource, data: DataFactory, title: str = "") -> dict[str, Image.Image]:
    """All pictures of a model that is being trained, by name; every rank calls it, since parts may ask the other ranks.

    A part that fails to draw has none, and a line says why: the run goes on.
    """
    return pictures_of(Opened(model, shards, data, title), forgiving=True)


def save_pictures(folder: Path, pictures: Mapping[str, Image.Image]) -> None:
    """Write pictures as NAME.png."""
    folder.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png")


def pictures_of(opened: Opened, images: int = IMAGES, *, forgiving: bool = False) -> dict[str, Image.Image]:
    """`views`, and with data what the parts offer; `forgiving`: but for those that fail, which a line tells."""
    model, shards, recipe = opened.model, opened.shards, opened.model.assembly.recipe
    shown = shards.preview(images)
    count = min(images, len(shown))
    chosen = [i * len(shown) // count for i in range(count)]
    batch, _ = ViewDataset(recipe, model.dims, shown, model.assembly).collate([(0, i) for i in chosen])
    form = PixelFormat.of(recipe.data)
    found = {"views": views_sheet(model, batch, [read_image(shown, int(i), form) for i in batch.ids], opened.title)}
    if opened.data is not None:
        offered = part_pictures(model, batch, opened.data, forgiving=forgiving)
        found |= {name: titled(picture, f"{name}: {opened.title}") for name, picture in offered.items()}
    return found


def views_sheet(model: Siamese, batch: Batch, sources: Sequence[Tensor], title: str = "") -> Image.Image:
    """A row per image: the source [C, H, W] as it was decoded with every view's box and the intersection, then the views as the encoder sees them.

    Cells that the online branch does not see are hatched.  Dots of one color and number are cells that an alignment holds to show the same place;
    each alignment of the recipe has columns of its own.  A row whose views do not meet has no dots.
    """
    step = LazyStep(model, batch, Progress(0, 1, 0, 0.0), False)
    pixels = [_photograph(model, p * model.std + model.mean) for p in step.pixels]
    recipe = model.assembly.recipe
    aligned = {name: _matched(step, name) for name in recipe.align} if step.pairs else {}
    pair = step.pairs[0] if step.pairs else ()
    columns: list[tuple[int, str | None]] = [(view, name) for name in aligned for view in pair]  # (view, alignment whose dots are on it)
    columns += [(view, None) for view in range(len(batch.images)) if not aligned or view not in pair]
    rows = []
    for row, source in enumerate(sources):
        geometry = batch.geometry._replace(boxes=batch.geometry.boxes[row], flips=batch.geometry.flips[row])
        cells = [Cell(_boxes(_photograph(model, source), geometry), batch.keys[row])]
        for view, name in columns:
            picture = _fit(pixels[view][row])
            hidden = batch.hidden[view]
            if hidden is not None:
                hatched(picture, _cell_boxes(hidden[row].cpu(), model.dims.grids[view], picture.size))
            if name is not None:
                matched = aligned[name]
                _dots(picture, matched.places[pair.index(view)][row], matched.weight[row])
            cells.append(Cell(picture))
        rows.append(cells)
    names = {name: f"{recipe.align[name].use}{f' ({name})' if name else ''}" for name in aligned}
    titles = [_title(batch.geometry, view) + (f", {names[name]}" if name is not None else "") for view, name in columns]
    headings = ["source, boxes, intersection", *titles]
    legend = [Entry(BOXES[view % len(BOXES)], f"view {view + 1}", "frame") for view in range(min(len(batch.images), len(BOXES)))]
    legend += [Entry(BOTH, "what both views of the first pair show", "frame")] if step.pairs else []
    legend += [Entry("#303840", "hidden from the online branch", "hatch")] if any(hidden is not None for hidden in batch.hidden) else []
    legend += [Entry("#ff1a1a", "cells that the alignment holds to show the same place: same number, same color", "dot")] if aligned else []
    told = [f"{names[name]} {LEARNED}." for name, matched in aligned.items() if matched.learned]
    told += [] if aligned else ["This recipe has no alignment, so no cells are matched."]
    return sheet(rows, title=f"views: {title}" if title else "", headings=headings, legend=legend, caption=" ".join(told), height=HEIGHT)


def part_pictures(model: Siamese, batch: Batch, data: DataFactory, *, forgiving: bool = False) -> dict[str, Image.Image]:
    """Every picture that the recipe's parts offer of a batch or of `data`, by name; `forgiving`: see `pictures_of`."""
    found: dict[str, Image.Image] = {}
    with torch.no_grad():
        step = LazyStep(model, batch, Progress(0, 1, 0, 0.0), False)
        for label in model.assembly.answers("pictures"):
            try:
                answers = model.assembly.only("pictures", label)(step=step, data=data)
            except HookError as e:
                if not forgiving:
                    raise
                say(f"twinview: {e} It has no pictures; the run goes on.")
                continue
            for answer in answers:
                found.update({name: _image(picture) for name, picture in answer.items()})
    return found


def _photograph(model: Siamese, pixels: Tensor) -> Tensor:
    """[..., C, H, W] of 0..255 -> [..., 3, H, W] uint8.  Deep images, which may be dark, from two deviations below the mean to four above."""
    shown = pixels.to(model.device)
    if model.assembly.recipe.data.white:
        low, high = (model.mean + n * model.std for n in (-2, 4))
        shown = ((shown - low) / (high - low) * 255).view(shown.shape)
    return three_channels(shown).round().clamp(0, 255).byte().cpu() if shown.is_floating_point() else three_channels(shown).cpu()


def _image(picture: Tensor) -> Image.Image:
    return Image.fromarray(picture.permute(1, 2, 0).contiguous().cpu().numpy())


def _fit(picture: Tensor) -> Image.Image:
    image = _image(picture)
    return image.resize((round(image.width * HEIGHT / image.height), HEIGHT), Image.Resampling.BICUBIC)


def _boxes(source: Tensor, geometry: Geometry) -> Image.Image:
    image = _fit(source)
    draw = ImageDraw.Draw(image)
    scale = torch.tensor([image.width, image.height, image.width, image.height])
    for view, box in enumerate(geometry.boxes):
        draw.rectangle([float(x) for x in box * scale], outline=BOXES[view % len(BOXES)], width=3)
    for online, target in geometry.pairs[:1]:
        both = geometry.overlap(online, target) * scale
        if bool((both[2:] > both[:2]).all()):
            draw.rectangle([float(x) for x in both], outline=BOTH, width=1)
    return image


class Matched(NamedTuple):
    """What an alignment holds to be the same."""

    places: tuple[Tensor, Tensor]  # of each cell of the common grid, in the online and the target view, [B, h', w', 2] as fractions
    weight: Tensor  # [B, h', w']
    learned: bool  # it moves no places: these are the geometry's


def _matched(step: LazyStep, name: str) -> Matched:
    """Where each cell of an alignment's common grid lies in the two views of the first pair."""
    online, target = step.pairs[0]
    with torch.no_grad():
        found = step.alignment(online, target, name)
        grid = step._model.dims.grids[target]
        if found.fills_hidden:
            there = cell_centers(grid, step._model.device).expand(len(step.batch.keys), -1, -1)
            here = step.geometry.to_view(step.geometry.to_source(there, target), online)
            inside = ((here > 0) & (here < 1)).all(-1)
            shape = (len(there), *grid)
            return Matched((here.reshape(*shape, 2).cpu(), there.reshape(*shape, 2).cpu()), inside.reshape(shape).float().cpu(), True)
        places = []
        for view, through in ((online, found.online), (target, found.target)):
            grid = step._model.dims.grids[view]
            own = cell_centers(grid, step._model.device).view(*grid, 2).permute(2, 0, 1)
            places.append(through(own.expand(len(step.batch.keys), -1, -1, -1).contiguous()).permute(0, 2, 3, 1).cpu())
    return Matched((places[0], places[1]), found.weight.cpu(), False)


def _cell_boxes(hidden: Tensor, grid: Size, size: tuple[int, int]) -> list[tuple[float, float, float, float]]:
    """Boxes x0 y0 x1 y1, in a picture of `size` (width, height), of the hidden cells [h * w]."""
    width, height = size[0] / grid[1], size[1] / grid[0]
    cells = hidden.view(grid).nonzero().tolist()
    return [(x * width, y * height, (x + 1) * width, (y + 1) * height) for y, x in cells]


def _dots(picture: Image.Image, places: Tensor, weight: Tensor) -> None:
    draw = ImageDraw.Draw(picture)
    height, width = places.shape[:2]
    shown = [(y, x) for y in _spread(height) for x in _spread(width) if weight[y, x] > 0]
    for number, (y, x) in enumerate(shown):
        px, py = float(places[y, x, 0]) * picture.width, float(places[y, x, 1]) * picture.height
        red, green, blue = colorsys.hsv_to_rgb(number / max(len(shown), 1), 0.9, 1.0)
        draw.ellipse([px - 8, py - 8, px + 8, py + 8], fill=(int(red * 255), int(green * 255), int(blue * 255)), outline="black")
        draw.text((px, py), str(number), fill="black", anchor="mm", font=font(10))


def _spread(n: int) -> list[int]:
    return sorted({round(i * (n - 1) / max(min(n, SHOWN) - 1, 1)) for i in range(min(n, SHOWN))})


def _title(geometry: Geometry, view: int) -> str:
    height, width = geometry.sizes[view]
    return f"view {view + 1} ({COLORS[view % len(COLORS)]}), {height} x {width}"
