"""A sheet of pictures that explains itself: title, headings, captions, a legend.  What the core and plugins draw their pictures with."""
from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from twinview.ops.pictures import to_picture

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

INK, FAINT, PAPER = "#1c2430", "#5b6675", "white"
FRAMES = {"green": "#1a9850", "red": "#d73027", "yellow": "#ffd400", "blue": "#2b6cb0"}
MARGIN, GAP, FRAME = 12, 8, 4  # pixels
LARGE, PLAIN, SMALL = 18, 13, 11  # sizes of letters


class Cell(NamedTuple):
    """A picture of a sheet."""

    picture: Tensor | Image.Image  # [3, H, W] uint8, or drawn on already
    text: str = ""  # below it
    frame: str | None = None  # a color, by name or #rrggbb


class Entry(NamedTuple):
    """A line of a legend."""

    color: tuple[int, int, int] | str
    text: str
    mark: str = "box"  # or "dot", "frame", "hatch"


def sheet(
    rows: Sequence[Sequence[Cell]], *, title: str = "", headings: Sequence[str] = (), row_titles: Sequence[str] = (), legend: Sequence[Entry] = (),
    caption: str = "", height: int = 180, nearest: bool = False,
) -> Image.Image:
    """Rows of pictures, each `height` pixels high, with what a reader needs: `title` (run and step belong there), `headings` of the columns, texts
    below pictures and beside rows, `legend`, and a `caption` that says what is to be seen.

    `nearest`: enlarge pixels as squares.
    """
    from PIL import Image, ImageDraw

    drawn = [[_fitted(cell, height, nearest) for cell in row] for row in rows]
    columns = max((len(row) for row in drawn), default=0)
    widths = [max((row[c].width for row in drawn if c < len(row)), default=0) for c in range(columns)]
    texts = any(cell.text for row in rows for cell in row)
    line = height + 2 * FRAME + (SMALL + 6 if texts else 0) + GAP
    beside = max((int(font(SMALL).getlength(text)) for text in row_titles), default=0) + (GAP if row_titles else 0)
    width = max(beside + sum(widths) + GAP * max(columns - 1, 0), 360) + 2 * MARGIN
    heads = [_lines(heading, width // max(columns, 1) if not widths else max(widths[c], 60), PLAIN) for c, heading in enumerate(headings)]
    head = max((len(h) for h in heads), default=0) * (PLAIN + 4)
    said, told = _lines(title, width - 2 * MARGIN, LARGE), _lines(caption, width - 2 * MARGIN, PLAIN)
    marks = _placed(legend, width - 2 * MARGIN)
    top = MARGIN + len(said) * (LARGE + 5) + (GAP if said else 0)
    bottom = (marks[-1][1] + PLAIN + GAP if marks else 0) + len(told) * (PLAIN + 5) + GAP
    whole = Image.new("RGB", (width, top + head + line * len(drawn) + bottom + MARGIN), PAPER)
    draw = ImageDraw.Draw(whole)
    _write(draw, MARGIN, MARGIN, said, LARGE, INK)
    starts = [MARGIN + beside + sum(widths[:c]) + GAP * c for c in range(columns)]
    for x, lines in zip(starts, heads):
        _write(draw, x, top, lines, PLAIN, INK)
    for r, row in enumerate(drawn):
        y = top + head + r * line
        if r < len(row_titles):
            draw.text((MARGIN, y + height // 2), row_titles[r], fill=INK, font=font(SMALL), anchor="lm")
        for c, picture in enumerate(row):
            whole.paste(picture, (starts[c], y))
            if rows[r][c].text:
                draw.text((starts[c], y + height + 2 * FRAME + 2), _short(rows[r][c].text, picture.width, SMALL), fill=FAINT, font=font(SMALL))
    y = top + head + line * len(drawn)
    for entry, (x, dy) in zip(legend, marks):
        _mark(draw, MARGIN + x, y + dy, entry)
    _write(draw, MARGIN, y + (marks[-1][1] + PLAIN + GAP if marks else 0), told, PLAIN, FAINT)
    return whole


def titled(picture: Image.Image, title: str, caption: str = "") -> Image.Image:
    """A picture as it is, under a title."""
    from PIL import Image, ImageDraw

    width = max(picture.width, 360)
    said, told = _lines(title, width, LARGE), _lines(caption, width, PLAIN)
    top = len(said) * (LARGE + 5) + GAP + MARGIN // 2
    whole = Image.new("RGB", (width, top + picture.height + len(told) * (PLAIN + 5) + (GAP if told else 0)), PAPER)
    draw = ImageDraw.Draw(whole)
    _write(draw, MARGIN, MARGIN // 2, said, LARGE, INK)
    whole.paste(picture, (0, top))
    _write(draw, MARGIN, top + picture.height + GAP, told, PLAIN, FAINT)
    return whole


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own letters at a size in pixels."""
    from PIL import ImageFont

    return ImageFont.load_default(size)


def palette(n: int) -> list[tuple[int, int, int]]:
    """n colors whose hues lie far apart, none of them black, grey or white, the first ones told apart by color-blind readers too (Okabe and Ito)."""
    import colorsys

    first = [(0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0), (240, 228, 66)]
    rest = [colorsys.hsv_to_rgb((0.08 + i * 0.381966) % 1, (0.9, 0.55, 0.7)[i % 3], (1.0, 0.75, 0.55)[i % 3]) for i in range(max(0, n - len(first)))]
    return [*first, *((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in rest)][:n]


def hatched(picture: Image.Image, boxes: Sequence[tuple[float, float, float, float]], color: str = "#101418") -> None:
    """Cover boxes x0 y0 x1 y1 in pixels with hatching: cells that are hidden from the network, whose picture still shines through."""
    from PIL import Image, ImageDraw

    cover = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(cover)
    for x0, y0, x1, y1 in boxes:
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=(16, 20, 24, 170))
    lines = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    on = ImageDraw.Draw(lines)
    for at in range(-picture.height, picture.width, 7):
        on.line((at, picture.height, at + picture.height, 0), fill=(235, 240, 245, 150), width=1)
    picture.paste(cover, (0, 0), cover)
    inside = Image.composite(lines, Image.new("RGBA", picture.size, (0, 0, 0, 0)), cover.getchannel("A").point(lambda a: 255 if a else 0))
    picture.paste(inside, (0, 0), inside)


def _fitted(cell: Cell, height: int, nearest: bool) -> Image.Image:
    from PIL import Image

    picture = to_picture(cell.picture) if isinstance(cell.picture, Tensor) else cell.picture
    size = (max(1, min(round(picture.width * height / picture.height), 3 * height)), height)
    how = Image.Resampling.NEAREST if nearest else Image.Resampling.BICUBIC
    inner = picture if picture.size == size else picture.resize(size, how)
    framed = Image.new("RGB", (size[0] + 2 * FRAME, size[1] + 2 * FRAME), FRAMES.get(cell.frame, cell.frame) if cell.frame else PAPER)
    framed.paste(inner, (FRAME, FRAME))
    return framed


def _lines(text: str, width: int, size: int) -> list[str]:
    """The text in lines that fit; an average letter is about half as wide as it is high."""
    return textwrap.wrap(text, max(8, int(width / (0.54 * size))))


def _short(text: str, width: int, size: int) -> str:
    """The text as far as it fits; of a long one the end, which tells keys apart, is kept."""
    letters = font(size)
    if letters.getlength(text) <= width:
        return text
    head = text.partition(": ")[0] + ": " if ": " in text else ""
    rest = text[len(head) :]
    while rest and letters.getlength(f"{head}…{rest}") > width:
        rest = rest[1:]
    return f"{head}…{rest}"


def _placed(legend: Sequence[Entry], width: int) -> list[tuple[int, int]]:
    """Where the entries of a legend stand, row by row."""
    x = y = 0
    found = []
    for entry in legend:
        wide = 20 + int(font(PLAIN).getlength(entry.text)) + 18
        if x and x + wide > width:
            x, y = 0, y + PLAIN + 8
        found.append((x, y))
        x += wide
    return found


def _mark(draw: ImageDraw.ImageDraw, x: int, y: int, entry: Entry) -> None:
    box = (x, y + 1, x + 13, y + 14)
    if entry.mark == "dot":
        draw.ellipse(box, fill=entry.color, outline=INK)
    elif entry.mark == "frame":
        draw.rectangle(box, outline=entry.color, width=3)
    else:
        draw.rectangle(box, fill=entry.color, outline=FAINT)
        if entry.mark == "hatch":
            for k in (4, 9, 13):
                draw.line((x, y + 1 + k, x + k, y + 1), fill="white")
    draw.text((x + 20, y), entry.text, fill=INK, font=font(PLAIN))


def _write(draw: ImageDraw.ImageDraw, x: int, y: int, lines: Sequence[str], size: int, color: str) -> None:
    for n, text in enumerate(lines):
        draw.text((x, y + n * (size + 4)), text, fill=color, font=font(size))
