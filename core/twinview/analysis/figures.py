"""Pictures of the views that a recipe draws, and those that the parts of a run offer."""
from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path

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
from twinview.model import LazyStep, Siamese, make_model
from twinview.ops.pictures import three_channels
from twinview.recipe import Recipe
from twinview.values import Batch, DataFactory, Geometry, Progress, cell_centers

IMAGES = 6  # in a picture
HEIGHT, GAP, TITLE = 200, 8, 20  # pixels: of a picture, between pictures, of a heading
BOXES = ("#ff3030", "#30a0ff", "#30d030", "#ffc020")  # a colour per view
SHOWN = 5  # matched cells along a side, at most


def draw(recipe: Recipe, run: Path | None = None, *, images: int = IMAGES) -> dict[str, Image.Image]:
    """`views` of the recipe's own images (spread over the data set, as epoch 0 draws them), and what the parts of a run offer, by name.

    Without a `run` the networks are untrained, and only `views` is drawn.  Raises TwinviewError.
    """
    assembly = assemble(recipe)  # whose faults come before those of the data
    shards = open_data(recipe.data)
    assembly = assembly.under(with_measured(recipe, shards))
    trained = run is not None and bool(steps_in(run / "checkpoints"))
    model = make_model(assembly, len(shards), shards.classes, weights=run is None)  # a run's own weights follow: the file it started from may be gone
    if run is not None and trained:
        load_model(find_checkpoint(run / "checkpoints"), model, rank=0, world=1)
    model.eval()
    data = None if run is None else Factory(assembly.recipe, model.dims, shards, features=model.features, alignment=model.alignment)
    return _draw(model, shards, data, images)


def draw_trained(model: Siamese, shards: DataSource, data: DataFactory) -> dict[str, Image.Image]:
    """All pictures of a model that has just been trained, by name; every rank calls it, since parts may ask the other ranks."""
    return _draw(model, shards, data, IMAGES)


def save_pictures(folder: Path, pictures: Mapping[str, Image.Image]) -> None:
    """Write pictures as NAME.png."""
    folder.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png")


def _draw(model: Siamese, shards: DataSource, data: DataFactory | None, images: int) -> dict[str, Image.Image]:
    """`views`, and with `data` what the parts offer."""
    recipe = model.assembly.recipe
    shown = shards.preview(images)
    count = min(images, len(shown))
    chosen = [i * len(shown) // count for i in range(count)]
    batch, _ = ViewDataset(recipe, model.dims, shown, model.assembly).collate([(0, i) for i in chosen])
    form = PixelFormat.of(recipe.data)
    found = {"views": views_sheet(model, batch, [read_image(shown, int(i), form) for i in batch.ids])}
    return found | (part_pictures(model, batch, data) if data is not None else {})


def views_sheet(model: Siamese, batch: Batch, sources: Sequence[Tensor]) -> Image.Image:
    """A row per image: the source [C, H, W] as it was decoded with every view's box and the intersection, then the views as the encoder sees them.

    Dots of one colour and number are cells that the recipe's first alignment holds to show the same place; a row whose views do not meet has none.
    """
    step = LazyStep(model, batch, Progress(0, 1, 0, 0.0), False)
    views = len(batch.images)
    pixels = [_photograph(model, p * model.std + model.mean) for p in step.pixels]
    recipe = model.assembly.recipe
    matched = _matched(step, next(iter(recipe.align))) if recipe.align else None
    rows = []
    for row, source in enumerate(sources):
        geometry = batch.geometry._replace(boxes=batch.geometry.boxes[row], flips=batch.geometry.flips[row])
        pictures = [_boxes(_photograph(model, source), geometry)]
        for view in range(views):
            picture = _fit(pixels[view][row])
            if matched is not None and view in step.pairs[0]:
                _dots(picture, matched[step.pairs[0].index(view)][row], matched[2][row])
            pictures.append(picture)
        rows.append(pictures)
    return _sheet(["source, boxes, intersection (yellow)"] + [_title(batch.geometry, v) for v in range(views)], rows)


def part_pictures(model: Siamese, batch: Batch, data: DataFactory) -> dict[str, Image.Image]:
    """Every picture that the recipe's parts offer of a batch or of `data`, by name."""
    found: dict[str, Image.Image] = {}
    with torch.no_grad():
        step = LazyStep(model, batch, Progress(0, 1, 0, 0.0), False)
        for answer in model.assembly.calls.pictures(step=step, data=data):
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
            draw.rectangle([float(x) for x in both], outline="#ffff40", width=1)
    return image


def _matched(step: LazyStep, name: str) -> tuple[Tensor, Tensor, Tensor] | None:
    """Where each cell of the common grid lies in the online and the target view, [B, h', w', 2] as fractions, and its weight [B, h', w'].

    None for an alignment that is learned: it predicts a place's features and moves no places.
    """
    online, target = step.pairs[0]
    with torch.no_grad():
        found = step.alignment(online, target, name)
        if found.fills_hidden:
            return None
        places = []
        for view, through in ((online, found.online), (target, found.target)):
            grid = step._model.dims.grids[view]
            own = cell_centers(grid, step._model.device).view(*grid, 2).permute(2, 0, 1)
            places.append(through(own.expand(len(step.batch.keys), -1, -1, -1).contiguous()).permute(0, 2, 3, 1).cpu())
    return places[0], places[1], found.weight.cpu()


def _dots(picture: Image.Image, places: Tensor, weight: Tensor) -> None:
    draw = ImageDraw.Draw(picture)
    height, width = places.shape[:2]
    shown = [(y, x) for y in _spread(height) for x in _spread(width) if weight[y, x] > 0]
    for number, (y, x) in enumerate(shown):
        px, py = float(places[y, x, 0]) * picture.width, float(places[y, x, 1]) * picture.height
        red, green, blue = colorsys.hsv_to_rgb(number / max(len(shown), 1), 0.9, 1.0)
        draw.ellipse([px - 8, py - 8, px + 8, py + 8], fill=(int(red * 255), int(green * 255), int(blue * 255)), outline="black")
        draw.text((px, py), str(number), fill="black", anchor="mm")


def _spread(n: int) -> list[int]:
    return sorted({round(i * (n - 1) / max(min(n, SHOWN) - 1, 1)) for i in range(min(n, SHOWN))})


def _title(geometry: Geometry, view: int) -> str:
    height, width = geometry.sizes[view]
    return f"view {view + 1} ({['red', 'blue', 'green', 'amber'][view % 4]}), {height} x {width}"


def _sheet(titles: list[str], rows: list[list[Image.Image]]) -> Image.Image:
    """Rows of pictures under a line of headings."""
    widths = [max(row[c].width for row in rows) for c in range(len(titles))]
    sheet = Image.new("RGB", (sum(widths) + GAP * (len(widths) + 1), TITLE + (HEIGHT + GAP) * len(rows) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        x = GAP + sum(widths[:column]) + GAP * column
        draw.text((x, 4), title, fill="black")
        for row, pictures in enumerate(rows):
            sheet.paste(pictures[column], (x, TITLE + (HEIGHT + GAP) * row))
    return sheet
