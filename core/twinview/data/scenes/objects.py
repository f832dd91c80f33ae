"""What stands and moves in the street scenes: cars, people, cyclists, signs, trees."""
from __future__ import annotations

from collections.abc import Sequence
from math import fsum

import attrs
import numpy as np

from twinview.data.scenes.canvas import Camera, Canvas, Color, Dice, Place, Plane, Point, Shader, grain, rgb

CLASSES = ("sky", "building", "road", "pavement", "vegetation", "fence", "car", "person", "cyclist", "sign")
SKY, BUILDING, ROAD, PAVEMENT, VEGETATION, FENCE, CAR, PERSON, CYCLIST, SIGN = range(len(CLASSES))
BLACK = rgb(0.06, 0.06, 0.07)

Quad = tuple[Place, Place, Place, Place]  # bottom left, bottom right, top right, top left, as seen


@attrs.frozen
class Scene:
    """One street while it is drawn, and its light."""

    canvas: Canvas
    camera: Camera
    dice: Dice
    haze: Color
    murk: float  # haze at great distance, 0..1
    sides: tuple[float, float, float]  # how bright faces are that look left, at the camera, right
    shadow: float  # how dark shadows are, 0..1

    def far(self, color: Color, ahead: Plane | float) -> Color:
        """The color through the haze at this distance."""
        share = self.murk * (ahead / (ahead + 40))
        return color + share * (self.haze - color)

    def facing(self, side: int) -> float:
        """The light on a face that looks left (-1), at the camera (0) or right (1)."""
        return self.sides[side + 1]

    def seen(self, ahead: float) -> tuple[float, float]:
        """How far to the left and right the picture reaches at this distance (m)."""
        reach = ahead / self.camera.focal
        return -self.camera.x * reach, (self.canvas.labels.shape[1] - self.camera.x) * reach

    def polygon(self, places: Sequence[Place], color: Color, label: int | None, light: float = 1.0) -> None:
        """A plain polygon in the street."""
        ahead = fsum(place[2] for place in places) / len(places)
        self.canvas.polygon([self.camera.see(place) for place in places], self.far(color * light, ahead), label)

    def shade(self, right: float, ahead: float, width: float, depth: float) -> None:
        """A soft shadow on the ground."""
        x, y = self.camera.see((right, 0, ahead))
        scale = self.camera.scale(ahead)
        deep = max(depth * scale * self.camera.above / ahead, 0.12 * width * scale)
        self.canvas.shade((x, y), 0.5 * width * scale, 0.5 * deep, self.shadow)


def between(a: Place, b: Place, share: float) -> Place:
    """The place this share of the way from a to b."""
    return a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1]), a[2] + share * (b[2] - a[2])


def inset(quad: Quad, left: float, right: float, bottom: float, top: float) -> Quad:
    """The part of a quad between these shares of its width and height."""
    a, b, c, d = quad
    low_left, low_right, high_left, high_right = between(a, b, left), between(a, b, right), between(d, c, left), between(d, c, right)
    return (between(low_left, high_left, bottom), between(low_right, high_right, bottom),
            between(low_right, high_right, top), between(low_left, high_left, top))


def block(scene: Scene, x: tuple[float, float], y: tuple[float, float], z: tuple[float, float], color: Color, label: int,
          taper: tuple[float, float, float] = (0, 0, 0)) -> tuple[Quad, Quad | None]:
    """Draw a box whose top is narrower by `taper` (each side, near, far); its near face, and the flank that is seen, if one is."""
    (x0, x1), (y0, y1), (z0, z1), (sides, near, far) = x, y, z, taper
    front: Quad = (x0, y0, z0), (x1, y0, z0), (x1 - sides, y1, z0 + near), (x0 + sides, y1, z0 + near)
    flank: Quad | None = None
    if x0 > 0 or x1 < 0:
        edge, top, side = (x0, x0 + sides, -1) if x0 > 0 else (x1, x1 - sides, 1)
        flank = (edge, y0, z0), (edge, y0, z1), (top, y1, z1 - far), (top, y1, z0 + near)
        scene.polygon(flank, color, label, scene.facing(side))
    if y1 < scene.camera.above:
        roof = [(x0 + sides, y1, z0 + near), (x1 - sides, y1, z0 + near), (x1 - sides, y1, z1 - far), (x0 + sides, y1, z1 - far)]
        scene.polygon(roof, color, label, 1.15)
    scene.polygon(front, color, label, scene.facing(0))
    return front, flank


@attrs.frozen
class Body:
    """A car's shape, in meters; the cabin starts and ends at these shares of the length."""

    height: float
    cabin: float
    start: float
    end: float
    length: float
    width: float
    slope: float  # of both screens


BODIES = {
    "saloon": Body(0.85, 0.55, 0.2, 0.72, 4.6, 1.8, 0.5),
    "hatch": Body(0.9, 0.6, 0.02, 0.7, 3.9, 1.75, 0.4),
    "estate": Body(0.95, 0.65, 0.01, 0.75, 4.7, 1.85, 0.3),
    "van": Body(1.1, 0.95, 0.0, 0.85, 5.0, 2.0, 0.2),
    "bus": Body(1.2, 1.7, 0.0, 1.0, 9.0, 2.5, 0.05),
}


def car(scene: Scene, right: float, ahead: float, body: Body, along: bool) -> None:
    """A car whose near end is `ahead`: seen from behind or before (`along` the street), or from the side (across it)."""
    dice, length, width, slope = scene.dice, body.length, body.width, body.slope
    start, end = (body.start, body.end) if dice.chance(0.5) else (1 - body.end, 1 - body.start)
    paint, glass = dice.color((0, 0.8), (0.15, 0.95)), dice.color((0, 0.3), (0.08, 0.5))
    base, belt, top = 0.3, body.height, body.height + body.cabin
    if along:
        x, z = (right - width / 2, right + width / 2), (ahead, ahead + length)
        cabin_x, cabin_z, taper = x, (ahead + start * length, ahead + end * length), (0.18, slope, slope)
    else:
        x, z = (right - length / 2, right + length / 2), (ahead, ahead + width)
        cabin_x, cabin_z, taper = (x[0] + start * length, x[0] + end * length), z, (slope, 0.12, 0.12)
    scene.shade((x[0] + x[1]) / 2, (z[0] + z[1]) / 2, 1.25 * (x[1] - x[0]), 1.3 * (z[1] - z[0]))
    block(scene, (x[0] + 0.08, x[1] - 0.08), (0.12, base), (z[0] + 0.1, z[1] - 0.1), BLACK, CAR)
    front, flank = block(scene, x, (base, belt), z, paint, CAR, (0.04, 0.04, 0.04))
    wheels(scene, flank if along else front, along, x, z[0])
    cabin_front, cabin_flank = block(scene, cabin_x, (belt, top), cabin_z, paint, CAR, taper)
    side, screen = (cabin_flank, cabin_front) if along else (cabin_front, cabin_flank)
    panes = 5 if length > 6 else 2
    if side:
        for i in range(panes):
            scene.polygon(inset(side, 0.07 + 0.88 * i / panes, 0.05 + 0.88 * (i + 1) / panes, 0.12, 0.86), glass, None)
    if screen:
        scene.polygon(inset(screen, 0.1, 0.9, 0.12, 0.86), glass, None)
    if along:
        lamp = dice.pick((rgb(0.85, 0.12, 0.1), rgb(0.95, 0.9, 0.75)))
        for left in (0.04, 0.76):
            scene.polygon(inset(front, left, left + 0.2, 0.5, 0.75), lamp, None)
        scene.polygon(inset(front, 0.36, 0.64, 0.25, 0.45), dice.color((0, 0.6), (0.5, 0.95)), None)
        scene.polygon(inset(front, 0.0, 1.0, 0.0, 0.14), paint * 0.45, None)
    else:
        scene.polygon(inset(front, 0.5, 0.51, 0.05, 0.95), paint * 0.6, None)


def wheels(scene: Scene, face: Quad | None, along: bool, x: tuple[float, float], near: float) -> None:
    """Two wheels on the long face, where it is seen, and the treads of the near ones where the car is seen from its end."""
    radius, camera = 0.34, scene.camera
    for right, _, ahead in (between(face[0], face[1], share) for share in (0.19, 0.81)) if face else ():
        scale = camera.scale(ahead)
        wide = radius * scale
        if along:
            fore, aft = camera.see((right, radius, ahead - radius))[0], camera.see((right, radius, ahead + radius))[0]
            wide = 0.5 * abs(aft - fore)
        center = camera.see((right, radius, ahead))
        scene.canvas.ellipse(center, wide, radius * scale, scene.far(BLACK, ahead), CAR)
        scene.canvas.ellipse(center, 0.5 * wide, 0.5 * radius * scale, scene.far(rgb(0.6, 0.6, 0.6), ahead), None)
    if along:
        for left in (x[0] + 0.05, x[1] - 0.3):
            scene.polygon([(left, 0, near), (left + 0.25, 0, near), (left + 0.25, 0.32, near), (left, 0.32, near)], BLACK, CAR)


@attrs.frozen
class Stand:
    """A flat figure that faces the camera: its own meters, right and up, to pixels; `way` mirrors it."""

    scene: Scene
    right: float
    ahead: float
    label: int
    size: float = 1.0
    way: int = 1

    def at(self, u: float, v: float) -> Point:
        """Where the figure's point is seen."""
        return self.scene.camera.see((self.right + self.way * self.size * u, self.size * v, self.ahead))

    def pixels(self, meters: float) -> float:
        """A length of the figure in pixels."""
        return self.size * meters * self.scene.camera.scale(self.ahead)

    def line(self, a: Point, b: Point, width: float, color: Color) -> None:
        """A limb or a bar."""
        self.scene.canvas.line(self.at(*a), self.at(*b), self.pixels(width), self.scene.far(color, self.ahead), self.label)

    def polygon(self, points: Sequence[Point], color: Color | Shader) -> None:
        """A convex patch."""
        fill = color if callable(color) else self.scene.far(color, self.ahead)
        self.scene.canvas.polygon([self.at(*point) for point in points], fill, self.label)

    def ellipse(self, center: Point, rx: float, ry: float, color: Color, opacity: float = 1.0) -> None:
        """A round patch."""
        self.scene.canvas.ellipse(self.at(*center), self.pixels(rx), self.pixels(ry), self.scene.far(color, self.ahead), self.label, opacity)

    def ring(self, center: Point, rx: float, ry: float, width: float, color: Color) -> None:
        """A round line."""
        line = max(self.pixels(width), 0.8)
        self.scene.canvas.ring(self.at(*center), self.pixels(rx), self.pixels(ry), line, self.scene.far(color, self.ahead), self.label)


def clothes(dice: Dice) -> Color:
    """Any color at all."""
    return dice.color((0, 0.85), (0.12, 0.95))


def head(figure: Stand, u: float, v: float) -> None:
    """A head with hair, a cap or a hood."""
    dice = figure.scene.dice
    skin = dice.color((0.25, 0.5), (0.3, 0.92), (0.04, 0.09))
    figure.line((u, v - 0.16), (u, v), 0.1, skin)
    figure.ellipse((u, v + 0.03), 0.125, 0.15, dice.pick((BLACK, clothes(dice), dice.color((0.2, 0.6), (0.1, 0.6), (0.03, 0.12)))))
    figure.ellipse((u + 0.025, v - 0.015), 0.095, 0.12, skin)


def person(scene: Scene, right: float, ahead: float) -> None:
    """A walker: legs, torso, arms, head, perhaps a skirt or a bag."""
    dice = scene.dice
    figure = Stand(scene, right, ahead, PERSON, dice.pick((0.7, 0.92, 1.0, 1.0, 1.08)), dice.sign())
    top, legs, shoe = clothes(dice), clothes(dice), dice.color((0, 0.4), (0.08, 0.6))
    stride, swing, stout = dice.between(0.02, 0.34), dice.between(-0.2, 0.3), dice.between(0.9, 1.25)
    scene.shade(right, ahead, 1.1, 0.7)
    figure.line((-0.2 * stout, 1.4), (-0.24 * stout - swing, 0.9), 0.11, top * 0.75)
    for foot, light in ((-stride, 0.75), (stride, 1.0)):
        knee = (0.5 * foot + 0.05, 0.45)
        figure.line((0.3 * foot, 0.85), knee, 0.17 * stout, legs * light)
        figure.line(knee, (foot, 0.1), 0.13, legs * light)
        figure.line((foot - 0.02, 0.05), (foot + 0.14, 0.04), 0.09, shoe)
    if dice.chance(0.3):
        figure.polygon([(-0.15, 1.0), (0.15, 1.0), (0.3 * stout, 0.45), (-0.3 * stout, 0.45)], dice.pick((legs, top)))
    shoulder, hip = 0.23 * stout, 0.17 * stout
    figure.polygon([(-hip, 0.8), (hip, 0.8), (shoulder, 1.38), (0.13, 1.5), (-0.13, 1.5), (-shoulder, 1.38)], top)
    figure.line((0.2 * stout, 1.4), (0.24 * stout + swing, 0.92), 0.12, top * 0.9)
    if dice.chance(0.35):
        u = (0.26 + swing) * dice.sign()
        figure.polygon([(u - 0.14, 0.55), (u + 0.14, 0.55), (u + 0.12, 0.85), (u - 0.12, 0.85)], clothes(dice))
    head(figure, 0.02, 1.66)


def cyclist(scene: Scene, right: float, ahead: float, along: bool) -> None:
    """A bicycle and its rider, from behind (`along` the street) or from the side; the wheels' discs belong to it."""
    dice = scene.dice
    figure = Stand(scene, right, ahead, CYCLIST, dice.between(0.95, 1.08), dice.sign())
    frame, top, legs = dice.color((0, 0.9), (0.2, 0.95)), clothes(dice), clothes(dice)
    scene.shade(right, ahead, 1.0 if along else 2.0, 0.8)
    if along:
        figure.ellipse((0, 0.34), 0.06, 0.34, BLACK)
        figure.line((-0.3, 1.02), (0.3, 1.02), 0.06, BLACK)
        for side in (-1, 1):
            knee = 0.6 + 0.1 * side
            figure.line((0.1 * side, 0.95), (0.17 * side, knee), 0.17, legs)
            figure.line((0.17 * side, knee), (0.13 * side, knee - 0.36), 0.12, legs * 0.9)
            figure.line((0.2 * side, 1.42), (0.33 * side, 1.05), 0.11, top * 0.85)
        figure.polygon([(-0.17, 0.88), (0.17, 0.88), (0.24, 1.4), (0.12, 1.52), (-0.12, 1.52), (-0.24, 1.4)], top)
        head(figure, 0, 1.66)
        return
    for u in (-0.52, 0.52):
        figure.ellipse((u, 0.34), 0.34, 0.34, rgb(0.5, 0.5, 0.5), 0.25)
        figure.ring((u, 0.34), 0.34, 0.34, 0.06, BLACK)
    pedal, saddle, bar, back, fore = (-0.02, 0.32), (-0.2, 0.92), (0.4, 0.95), (-0.52, 0.34), (0.52, 0.34)
    figure.line((-0.08, 0.9), (0.02, 0.55), 0.16, legs * 0.7)
    figure.line((0.02, 0.55), (-0.1, 0.25), 0.11, legs * 0.7)
    for a, b in ((pedal, saddle), (pedal, bar), ((-0.17, 0.8), (0.38, 0.82)), (back, pedal), (back, (-0.17, 0.8)), (fore, bar)):
        figure.line(a, b, 0.055, frame)
    lean = dice.between(0.05, 0.3)
    shoulder = (-0.15 + lean, 1.45)
    figure.line((-0.18, 0.98), (0.17, 0.7), 0.17, legs)
    figure.line((0.17, 0.7), (0.06, 0.28), 0.12, legs)
    figure.line((-0.17, 1.02), shoulder, 0.32, top)
    figure.line(shoulder, (0.42, 1.02), 0.1, top * 0.85)
    head(figure, shoulder[0] + 0.1, 1.7)


SHAPES: dict[str, tuple[Point, ...]] = {
    "triangle": ((-1, -0.7), (1, -0.7), (0, 1)),
    "give way": ((-1, 0.7), (1, 0.7), (0, -1)),
    "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    "board": ((-1.4, -0.7), (1.4, -0.7), (1.4, 0.7), (-1.4, 0.7)),
    "diamond": ((-1, 0), (0, -1), (1, 0), (0, 1)),
    "octagon": ((-1, -0.41), (-0.41, -1), (0.41, -1), (1, -0.41), (1, 0.41), (0.41, 1), (-0.41, 1), (-1, 0.41)),
    "disc": (),
}


def sign(scene: Scene, right: float, ahead: float) -> None:
    """A traffic sign or a traffic light on its post."""
    dice = scene.dice
    figure = Stand(scene, right, ahead, SIGN, dice.between(1.15, 1.7))
    height, post = dice.between(1.5, 2.1), dice.color((0, 0.3), (0.2, 0.8))
    scene.shade(right, ahead, 0.5, 0.3)
    figure.line((0, 0), (0, height), 0.11, post)
    if dice.chance(0.35):
        for u, v, color in ((0.27, 0.65, dice.color((0, 0.7), (0.1, 0.8))), (0.19, 0.57, BLACK)):
            figure.polygon([(-u, height - v), (u, height - v), (u, height + v), (-u, height + v)], color)
        lit = dice.count(0, 2)
        for i, lamp in enumerate((rgb(0.2, 0.9, 0.45), rgb(0.98, 0.75, 0.15), rgb(0.95, 0.15, 0.12))):
            figure.ellipse((0, height + 0.36 * (i - 1)), 0.14, 0.14, lamp if i == lit else lamp * 0.3)
        return
    for i in range(dice.pick((1, 1, 2))):
        plate(figure, height - 0.85 * i, dice.between(0.36, 0.46))


def plate(figure: Stand, height: float, radius: float) -> None:
    """One plate: a rim, a field, a symbol."""
    dice = figure.scene.dice
    rim, field, symbol = dice.color((0, 0.9), (0.15, 0.95)), dice.color((0, 0.9), (0.15, 0.98)), dice.color((0, 0.8), (0.05, 0.98))
    shape = SHAPES[dice.pick(tuple(SHAPES))]
    for size, color in ((radius, rim), (0.76 * radius, field)):
        if shape:
            figure.polygon([(size * u, height + size * v) for u, v in shape], color)
        else:
            figure.ellipse((0, height), size, size, color)
    for _ in range(dice.count(1, 2)):
        u, v = dice.between(-0.35, 0.35) * radius, dice.between(-0.4, 0.4) * radius
        figure.line((u, height + v), (-u, height - v), 0.17 * radius, symbol)


def tree(scene: Scene, right: float, ahead: float, height: float, trunk: float = 0.35) -> None:
    """A tree (or, where the trunk's share of the height is 0, a bush): ragged leafy blobs over a trunk."""
    dice, camera, canvas = scene.dice, scene.camera, scene.canvas
    leaf = dice.color((0.15, 0.65), (0.2, 0.75), dice.pick(((0.18, 0.4), (0.18, 0.4), (0.18, 0.4), (0.0, 0.18), (0.9, 1.1))))
    scale, spread = camera.scale(ahead), dice.between(0.3, 0.5) * height * (1 if trunk else 1.3)
    scene.shade(right, ahead, 2.2 * spread, 1.5 * spread)
    if trunk:
        bark = scene.far(dice.color((0.05, 0.5), (0.12, 0.55), (0.02, 0.15)), ahead)
        width = dice.between(0.05, 0.08) * height
        canvas.line(camera.see((right, 0, ahead)), camera.see((right, 0.7 * height, ahead)), width * scale, bark, VEGETATION)
    low, conical = trunk * height, trunk and dice.chance(0.25)
    middle = 0.5 * (low + height)
    blobs = [(0.0, middle, 0.75 * spread, 0.5 * (height - low))]
    for _ in range(5):
        v = dice.between(low + 0.15 * (height - low), height - 0.12 * (height - low))
        narrow = (height - v) / (height - low) + 0.15 if conical else 1.0
        reach = spread * narrow
        blobs.append((dice.between(-0.6, 0.6) * reach, v, dice.between(0.35, 0.6) * reach, dice.between(0.18, 0.32) * (height - low)))
    if conical:
        blobs[0] = (0.0, low + 0.3 * (height - low), 0.7 * spread, 0.35 * (height - low))
    center = camera.see((right, middle, ahead))
    box = canvas.box(center[0] - 1.4 * spread * scale, center[1] - 0.75 * (height - low) * scale,
                     center[0] + 1.4 * spread * scale, center[1] + 0.75 * (height - low) * scale)
    if box is None:
        return
    away: Plane = np.full(canvas.labels[box].shape, np.inf, np.float32)  # from the nearest blob's center, squared, 1 on its border
    for u, v, wide, tall in blobs:
        seen = camera.see((right + u, v, ahead))
        x, y = (canvas.column[:, box[1]] - seen[0]) / (wide * scale), (canvas.row[box[0]] - seen[1]) / (tall * scale)
        away = np.minimum(away, x * x + y * y)
    column, row = canvas.column[:, box[1]] + dice.between(0, 200), canvas.row[box[0]] + dice.between(0, 200)
    clump, detail = max(0.5 * scale, 1.0), max(0.16 * scale, 1.0)
    coarse, fine = grain(clump, column, row), grain(detail, column, row)
    inside = (0.45 - 0.5 * away + 0.22 * coarse + 0.12 * fine) * (min(wide, tall) * scale)
    lift = (center[1] - canvas.row[box[0]]) / (scale * (height - low))  # brighter above
    light = 1 + 0.35 * lift + 0.3 * coarse + 0.45 * fine
    canvas.paint(box, inside, scene.far(leaf * np.maximum(light, 0.1), ahead), VEGETATION)
