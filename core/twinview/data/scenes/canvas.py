"""What the street scenes are drawn with: dice, colors, noise, a camera, and a canvas of antialiased shapes with labels.

Only IEEE-exact element-wise arithmetic (+ - * / sqrt floor) on Philox's uniform numbers, so that every machine draws the same bytes.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from math import floor, fsum, sqrt
from typing import TypeVar

import attrs
import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Plane = NDArray[np.floating]  # [h, w], float32
Color = NDArray[np.floating]  # float32: [3, 1, 1] or, pixel by pixel, [3, h, w]; 0..1
Point = tuple[float, float]  # pixels: right, down
Place = tuple[float, float, float]  # meters: right of the camera, above the ground, ahead
Box = tuple[slice, slice]  # rows and columns of the canvas
Shader = Callable[[Plane, Plane], tuple[Color, Plane | float]]  # pixels without the roll -> color and opacity

NOISE = 256  # side of a noise tile, a power of two
SPECK = 1.0  # square pixels: what is smaller is left out


class Dice:
    """Draws from Philox's uniform numbers alone, whose stream numpy keeps from version to version."""

    def __init__(self, seed: int, stream: int) -> None:
        self.generator = np.random.Generator(np.random.Philox(key=seed + (stream << 64)))
        self.numbers = self.draw()

    def draw(self) -> Iterator[float]:
        """Numbers in [0, 1), without end; drawn a thousand at a time, which is quicker."""
        while True:
            yield from self.generator.random(1024).tolist()

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * next(self.numbers)

    def count(self, low: int, high: int) -> int:
        """An integer, both ends included."""
        return low + int((high - low + 1) * next(self.numbers))

    def chance(self, share: float) -> bool:
        """True in this share of the draws."""
        return next(self.numbers) < share

    def sign(self) -> int:
        """-1 or 1."""
        return 1 if self.chance(0.5) else -1

    def pick(self, choices: Sequence[T]) -> T:
        """One of the choices."""
        return choices[self.count(0, len(choices) - 1)]

    def color(self, saturation: tuple[float, float], value: tuple[float, float], hue: tuple[float, float] = (0.0, 1.0)) -> Color:
        """A color [3, 1, 1] whose hue (of the circle, 0 = red), saturation and value are uniform in these ranges."""
        h, s, v = self.between(*hue), self.between(*saturation), self.between(*value)
        parts = ((n + 6 * h) % 6 for n in (5, 3, 1))
        return rgb(*(v - v * s * max(0.0, min(k, 4 - k, 1.0)) for k in parts))


def rgb(red: float, green: float, blue: float) -> Color:
    """A color [3, 1, 1]."""
    return np.array([red, green, blue], np.float32).reshape(3, 1, 1)


def unit(values: Plane) -> Plane:
    """Clipped to 0..1 (quicker than np.clip on small planes)."""
    clipped: Plane = np.minimum(np.maximum(values, 0), 1)
    return clipped


@cache
def noise(cell: int) -> Plane:
    """A tile [NOISE, NOISE] of smooth noise in -1..1 that wraps around, one knot every `cell` pixels (a power of two)."""
    knots: Plane = 2 * np.random.Generator(np.random.Philox(key=cell)).random((NOISE // cell,) * 2).astype(np.float32) - 1
    share = (np.arange(cell, dtype=np.float32) / cell).reshape(1, cell, 1)
    for _ in range(2):  # rows, then columns
        ahead = np.roll(knots, -1, 0)
        knots = (knots[:, None] * (1 - share) + ahead[:, None] * share).reshape(NOISE, -1).T
    return np.ascontiguousarray(knots)


def grain(cell: float, u: Plane, v: Plane) -> Plane:
    """Noise in -1..1 at the places (u, v), in units of its finest detail; `cell` is rounded down to a power of two, 1..64."""
    size = 1
    while 2 * size <= cell and size < 64:
        size *= 2
    values: Plane = noise(size)[v.astype(np.int32) & (NOISE - 1), u.astype(np.int32) & (NOISE - 1)]
    return values


def pulses(t: Plane, duty: Plane | float, width: Plane | float) -> Plane:
    """The share of [t - width/2, t + width/2] that the unit-spaced pulses [k, k + duty] cover: stripes without moiré."""
    low, high = t - 0.5 * width, t + 0.5 * width
    whole_low, whole_high = np.floor(low), np.floor(high)
    share: Plane = ((whole_high - whole_low) * duty + np.minimum(high - whole_high, duty) - np.minimum(low - whole_low, duty)) / width
    return share


@attrs.frozen
class Camera:
    """A pinhole camera above the road, in pixels; `roll` is the tangent of a slight roll."""

    focal: float
    x: float  # where the street's lines meet
    y: float
    above: float  # meters above the ground
    roll: float

    def see(self, place: Place) -> Point:
        """Where a place is seen."""
        right, up, ahead = place
        x, y = self.focal * right / ahead, self.focal * (self.above - up) / ahead
        return self.x + x - self.roll * y, self.y + y + self.roll * x

    def upright(self, x: Plane, y: Plane) -> tuple[Plane, Plane]:
        """Rays through pixels, columns x [1, w] and rows y [h, 1]: meters right and down per meter ahead [h, w], the roll undone."""
        x, y, norm = x - self.x, y - self.y, self.focal * (1 + self.roll * self.roll)
        return (x + self.roll * y) / norm, (y - self.roll * x) / norm

    def scale(self, ahead: float) -> float:
        """Pixels per meter at this distance."""
        return self.focal / ahead


class Canvas:
    """A picture [3, h, w] of 0..1 and its labels [h, w], painted far to near with antialiased shapes."""

    def __init__(self, height: int, width: int, camera: Camera) -> None:
        self.pixels = np.zeros((3, height, width), np.float32)
        self.labels = np.zeros((height, width), np.uint8)
        self.column = np.arange(width, dtype=np.float32)[None] + 0.5
        self.row = np.arange(height, dtype=np.float32)[:, None] + 0.5
        self.across, self.down = camera.upright(self.column, self.row)

    def box(self, left: float, top: float, right: float, bottom: float) -> Box | None:
        """The pixels that a shape within these bounds can touch; None where it lies outside."""
        height, width = self.labels.shape
        y0, y1 = max(floor(min(top, height)) - 1, 0), min(floor(max(bottom, 0)) + 2, height)
        x0, x1 = max(floor(min(left, width)) - 1, 0), min(floor(max(right, 0)) + 2, width)
        return (slice(y0, y1), slice(x0, x1)) if y0 < y1 and x0 < x1 else None

    def paint(self, box: Box, inside: Plane, fill: Color | Shader, label: int | None, opacity: float = 1.0) -> None:
        """Paint where `inside`, the distance from the border in pixels (positive within), says; label what is half covered."""
        cover = unit(inside + 0.5)
        if label is not None:
            self.labels[box][cover >= 0.5] = label
        if callable(fill):
            fill, density = fill(self.across[box], self.down[box])
            cover = cover * density
        if opacity != 1.0:
            cover *= opacity
        region = self.pixels[:, box[0], box[1]]
        region += cover * (fill - region)

    def polygon(self, points: Sequence[Point], fill: Color | Shader, label: int | None, opacity: float = 1.0) -> None:
        """A convex polygon, either way round."""
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        box = self.box(min(xs), min(ys), max(xs), max(ys))
        turn = fsum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))  # fsum: sum() differs between Python's versions
        if box is None or abs(turn) < 2 * SPECK:
            return
        edges = []  # a, b, c of each: a place lies a x + b y - c pixels within
        for i in range(len(xs)):
            dx, dy = xs[i] - xs[i - 1], ys[i] - ys[i - 1]
            length = sqrt(dx * dx + dy * dy) if turn > 0 else -sqrt(dx * dx + dy * dy)
            if abs(length) >= 1e-3:
                right, down = -dy / length, dx / length
                edges.append((right, down, right * xs[i] + down * ys[i]))
        a, b, c = np.array(edges, np.float32).T[:, :, None, None]
        inside = (self.column[:, box[1]] * a + (self.row[box[0]] * b - c)).min(0)
        self.paint(box, inside, fill, label, opacity)

    def ellipse(self, center: Point, rx: float, ry: float, fill: Color | Shader, label: int | None, opacity: float = 1.0) -> None:
        """An ellipse with half axes rx and ry."""
        box = self.box(center[0] - rx, center[1] - ry, center[0] + rx, center[1] + ry)
        if box is None or rx * ry < SPECK:
            return
        away = self.radius(box, center, rx, ry)
        self.paint(box, (1 - away) * min(rx, ry), fill, label, opacity)

    def ring(self, center: Point, rx: float, ry: float, width: float, fill: Color, label: int | None) -> None:
        """An ellipse's line, drawn inside it."""
        box = self.box(center[0] - rx, center[1] - ry, center[0] + rx, center[1] + ry)
        if box is None or rx * ry < SPECK:
            return
        away = (1 - self.radius(box, center, rx, ry)) * min(rx, ry)
        self.paint(box, np.minimum(away, width - away), fill, label)

    def radius(self, box: Box, center: Point, rx: float, ry: float) -> Plane:
        """How far each pixel lies from the center: 1 on the ellipse."""
        x = (self.column[:, box[1]] - center[0]) / rx
        y = (self.row[box[0]] - center[1]) / ry
        away: Plane = np.sqrt(x * x + y * y)
        return away

    def line(self, start: Point, end: Point, width: float, fill: Color | Shader, label: int | None, opacity: float = 1.0) -> None:
        """A stroke with round ends."""
        half = 0.5 * width
        box = self.box(min(start[0], end[0]) - half, min(start[1], end[1]) - half, max(start[0], end[0]) + half, max(start[1], end[1]) + half)
        if box is None:
            return
        x, y = self.column[:, box[1]] - start[0], self.row[box[0]] - start[1]
        dx, dy = end[0] - start[0], end[1] - start[1]
        square = max(dx * dx + dy * dy, 1e-6)
        along = unit(x * (dx / square) + y * (dy / square))
        x, y = x - along * dx, y - along * dy
        self.paint(box, half - np.sqrt(x * x + y * y), fill, label, opacity)

    def shade(self, center: Point, rx: float, ry: float, strength: float) -> None:
        """Darken a soft ellipse: the shadow under a thing."""
        box = self.box(center[0] - rx, center[1] - ry, center[0] + rx, center[1] + ry)
        if box is not None and min(rx, ry) >= 0.5:
            depth = unit(2 * (1 - self.radius(box, center, rx, ry)))
            self.pixels[:, box[0], box[1]] *= 1 - strength * depth
