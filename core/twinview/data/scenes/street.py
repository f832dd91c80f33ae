"""The embedded default data: street scenes seen from a vehicle, drawn by the program itself, with a label for every pixel.

Nearly every color is drawn from palettes that the classes share: structure, texture and context tell the classes apart, color hardly does.
"""
from __future__ import annotations

from collections.abc import Callable
from functools import partial

import attrs
import numpy as np
from numpy.typing import NDArray

from twinview.data.scenes.canvas import Camera, Canvas, Color, Dice, Plane, Shader, grain, pulses, rgb, unit
from twinview.data.scenes.objects import BODIES, BUILDING, CLASSES, FENCE, PAVEMENT, ROAD, SKY, VEGETATION, Scene, car, cyclist, person, sign, tree

__all__ = ["CLASSES", "VERSION", "draw_scene"]

VERSION = 5  # bump when the drawing changes: caches and digests hang on it
SMALLEST = 16  # pixels
FARTHEST = 300.0  # meters: where the ground ends

Facade = Callable[[Plane, Plane, Plane, Plane], Color]  # meters along and up it, a pixel's size in both -> color


@attrs.frozen
class Ground:
    """Where the street's strips meet, in meters right of the camera."""

    line_left: float  # of the buildings
    kerb_left: float
    kerb_right: float
    line_right: float
    lane: float  # width of one
    parked: tuple[bool, bool]  # cars along the left kerb, along the right one


def draw_scene(seed: int, size: tuple[int, int] = (160, 240)) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One street scene: its image [h, w, 3] and its labels [h, w], indices into CLASSES.

    The same (seed, size) gives the same bytes on every machine.  Raises ValueError for a seed outside 0..2**64 - 1 or a side under 16 pixels.
    """
    height, width = size
    if not 0 <= seed < 2**64 or min(size) < SMALLEST:
        raise ValueError(f"draw_scene(seed={seed}, size={size}): the seed must be 0 or more, under 2**64, and both sides {SMALLEST} pixels or more")
    dice = Dice(seed, 0)
    camera = Camera(focal=dice.between(0.85, 1.4) * height, x=dice.between(0.35, 0.65) * width, y=dice.between(0.38, 0.55) * height,
                    above=dice.between(1.3, 2.4), roll=dice.between(-0.04, 0.04))
    canvas = Canvas(height, width, camera)
    sun, front = dice.between(-0.3, 0.3), dice.between(-0.2, 0.15)
    scene = Scene(canvas, camera, dice, haze=dice.color((0, 0.3), (0.4, 1.0)), murk=dice.between(0.1, 0.7),
                  sides=(1 - sun, 1 + front, 1 + sun), shadow=dice.between(0.3, 0.65))
    ground = lay_out(dice)
    draw_sky(scene)
    draw_ground(scene, ground)
    draw_sides(scene, ground)
    for thing in back_to_front(populate(scene, ground)):
        thing.draw()
    return develop(scene, Dice(seed, 1)), canvas.labels


def lay_out(dice: Dice) -> Ground:
    """One or two lanes each way, parked cars, pavements."""
    lane, parked = dice.between(2.7, 3.5), (dice.chance(0.5), dice.chance(0.5))
    kerb_left = -dice.pick((0.5, 0.5, 1.5)) * lane - dice.between(0, 1) - 2.2 * parked[0]
    kerb_right = dice.pick((0.5, 0.5, 1.5)) * lane + dice.between(0, 1) + 2.2 * parked[1]
    return Ground(kerb_left - dice.between(3, 7), kerb_left, kerb_right, kerb_right + dice.between(3, 7), lane, parked)


def draw_sky(scene: Scene) -> None:
    """A gradient and clouds."""
    dice, canvas = scene.dice, scene.canvas
    high = dice.pick((dice.color((0.1, 0.7), (0.4, 1.0), (0.5, 0.66)), dice.color((0, 0.15), (0.3, 1.0)), dice.color((0.1, 0.55), (0.25, 0.95))))
    cloud = dice.color((0, 0.15), (0.4, 1.0))
    height = canvas.labels.shape[0]
    share = unit(canvas.row / max(scene.camera.y, 1.0))
    offset, size = dice.between(0, 200), 160 / height
    puffs = grain(32, size * canvas.column + offset, 2 * size * canvas.row + offset) + 0.4 * grain(8, size * canvas.column, 2 * size * canvas.row)
    cover = unit(puffs * 1.5 + dice.between(-1.2, 0.6)) * dice.between(0.3, 0.9)
    canvas.pixels[:] = high + share * (scene.haze - high)
    canvas.pixels += cover * (cloud - canvas.pixels)
    canvas.labels[:] = SKY


@attrs.frozen
class Floor:
    """The ground under each pixel [h, w]: meters to the right and ahead, and how many of them a pixel spans."""

    x: Plane
    z: Plane
    dx: Plane
    dz: Plane

    def speckle(self) -> Plane:
        """Grit, that fades where a pixel spans much of it."""
        return grain(1, 40 * self.x, 40 * self.z) / (1 + 12 * self.dx)


def draw_ground(scene: Scene, ground: Ground) -> None:
    """Road, kerbs, tiled pavement; behind it a verge of grass or more pavement."""
    dice, canvas, camera = scene.dice, scene.canvas, scene.camera
    rows = slice(max(int(camera.y - abs(camera.roll) * canvas.labels.shape[1]) - 1, 0), None)
    across, down = canvas.across[rows], canvas.down[rows]
    lowest = camera.above / FARTHEST
    below, z = down > lowest, camera.above / np.maximum(down, lowest)
    floor = Floor(across * z, z, z / camera.focal, z * z / (camera.focal * camera.above))
    on_road = (floor.x > ground.kerb_left) & (floor.x < ground.kerb_right)
    color = np.where(on_road, tarmac(dice, ground, floor), paving(dice, ground, floor))
    label = np.where(on_road, ROAD, PAVEMENT)
    if dice.chance(0.6):
        paved = (floor.x > ground.line_left) & (floor.x < ground.line_right)
        grass = dice.color((0.15, 0.6), (0.2, 0.7), (0.08, 0.42))
        blades = grain(1, 25 * floor.x, 12 * z) / (1 + 8 * floor.dx) + grain(4, 12 * floor.x, 6 * z)
        color, label = np.where(paved, color, grass * (1 + 0.3 * blades)), np.where(paved, label, VEGETATION)
    canvas.pixels[:, rows] = np.where(below, scene.far(color, z), canvas.pixels[:, rows])
    canvas.labels[rows][below] = label[below]


def tarmac(dice: Dice, ground: Ground, floor: Floor) -> Color:
    """The road's surface: grit, blotches, lines between the lanes, a zebra crossing."""
    x, z, dx, dz, lane = floor.x, floor.z, floor.dx, floor.dz, ground.lane
    tar = dice.color((0, 0.2), (0.18, 0.7))
    road = tar * (1 + dice.between(0.08, 0.25) * floor.speckle() + dice.between(0.05, 0.2) * grain(16, 8 * x, 4 * z))
    paint = rgb(0.9, 0.9, 0.86) if dice.chance(0.7) else dice.color((0.3, 0.7), (0.7, 0.95), (0.1, 0.16))
    if dice.chance(0.85):
        dash, middle = dice.pick((0.4, 0.55, 1.0)), ground.kerb_left + 0.5 * ((ground.kerb_right - ground.kerb_left) % lane)
        marks = pulses((x - middle) / lane + 0.02, 0.045, dx / lane) * pulses(z / 6, dash, dz / 6)
        marks *= (x > ground.kerb_left + 1) & (x < ground.kerb_right - 1)
        road += marks * 0.8 * (paint - road)
    if dice.chance(0.4):
        near = dice.between(5, 14)
        zebra = pulses(x / 1.1, 0.5, dx / 1.1) * unit((1.5 - abs(z - near)) / dz + 0.5)
        road += zebra * 0.85 * (paint - road)
    return road


def paving(dice: Dice, ground: Ground, floor: Floor) -> Color:
    """The pavement's surface: slabs and their joints, a kerb lighter or darker than they are."""
    x, z, dx, dz = floor.x, floor.z, floor.dx, floor.dz
    stone = dice.color((0, 0.3), (0.22, 0.85), (0.0, 0.2) if dice.chance(0.6) else (0.0, 1.0))
    long, wide = dice.between(0.5, 1.6), dice.between(0.4, 1.2)
    joints = 1 - (1 - pulses(x / wide, 0.1, dx / wide)) * (1 - pulses(z / long, 0.08, dz / long))
    slabs = grain(1, x / wide + 200, z / long) / (1 + dz)
    pavement = stone * (1 - dice.between(0.2, 0.55) * joints + dice.between(0.03, 0.14) * slabs + 0.06 * floor.speckle())
    kerb = unit((0.2 - np.minimum(abs(x - ground.kerb_left), abs(x - ground.kerb_right))) / dx + 0.5)
    return pavement * (1 + 0.35 * dice.sign() * kerb)


def wall(scene: Scene, light: float) -> Facade:
    """A facade: bricks, panels or plaster, rows of windows, perhaps shops below them."""
    dice = scene.dice
    face = dice.color((0, 0.55), (0.22, 0.95), (0.0, 0.18) if dice.chance(0.6) else (0.0, 1.0))
    frame, glass = dice.color((0, 0.3), (0.3, 1.0)), dice.color((0, 0.45), (0.05, 0.85), (0.4, 0.75))
    bay, storey = dice.between(1.6, 3.6), dice.between(2.7, 3.6)
    wide, tall, lit = dice.between(0.3, 0.7), dice.between(0.4, 0.7), dice.between(0.2, 0.7)
    long, high = dice.pick(((0.5, 0.25), (0.9, 0.4), (1.2, 1.5), (100.0, 100.0)))
    mortar, rough = dice.between(-0.35, 0.25), dice.between(0.05, 0.16)
    shop = dice.chance(0.5)

    def paint(u: Plane, v: Plane, du: Plane, dv: Plane) -> Color:
        course, run = v / high, u / long
        run = run + 0.5 * np.floor(course)
        joints = np.maximum(pulses(course, 0.16, dv / high), pulses(run, 0.1, du / long))
        color = face * (1 + mortar * joints + rough * grain(1, 8 * u, 8 * v))
        ground_floor = shop & (v < storey)
        duty_u, duty_v = np.where(ground_floor, np.float32(0.86), np.float32(wide)), np.where(ground_floor, np.float32(0.75), np.float32(tall))
        s, t = u / bay - (1 - duty_u) / 2, v / storey - (1 - duty_v) * 0.6
        panes = pulses(s, duty_u, du / bay) * pulses(t, duty_v, dv / storey)
        frames = pulses(s + 0.04, duty_u + 0.08, du / bay) * pulses(t + 0.035, duty_v + 0.07, dv / storey)
        color = color + 0.8 * frames * (frame - color)
        reflection = 1 + lit * grain(1, np.floor(s) * 7, np.floor(t) * 3) + 0.25 * (t - np.floor(t))
        color = color + panes * (glass * reflection - color)
        return np.clip(color * light, 0, 1.2)

    return paint


def along(scene: Scene, right: float, near: float, far: float, paint: Facade) -> Shader:
    """A facade's pixels on the plane that lies `right` of the camera and runs along the street."""
    camera = scene.camera

    def shader(across: Plane, down: Plane) -> tuple[Color, float]:
        z = np.clip(abs(right) / np.maximum(across * (1 if right > 0 else -1), 1e-4), near, far)
        pixel = z / camera.focal
        return scene.far(paint(z - near, camera.above - down * z, pixel * z / abs(right), pixel), z), 1.0

    return shader


def facing(scene: Scene, left: float, ahead: float, paint: Facade) -> Shader:
    """A facade's pixels on the plane that faces the camera."""
    camera, z = scene.camera, ahead

    def shader(across: Plane, down: Plane) -> tuple[Color, float]:
        pixel = np.full((1, 1), z / np.float32(camera.focal), np.float32)
        return scene.far(paint(across * z - left, camera.above - down * z, pixel, pixel), ahead), 1.0

    return shader


def upright(scene: Scene, right: float, near: float, far: float, top: float, fill: Shader, label: int) -> None:
    """A wall of any kind along the street."""
    places = ((right, 0.0, near), (right, 0.0, far), (right, top, far), (right, top, near))
    scene.canvas.polygon([scene.camera.see(place) for place in places], fill, label)


def house(scene: Scene, side: int, line: float, near: float, far: float, deep: float = 14.0) -> None:
    """A building on one side of the street: the facade along it, the end that faces us, a cornice or a pitched roof."""
    dice, camera = scene.dice, scene.camera
    top, right = dice.count(2, 5) * 3.1, line + side * dice.between(0, 0.6)
    out = right + side * deep
    left = min(right, out)
    roof = dice.color((0, 0.6), (0.15, 0.7))
    pitched = dice.chance(0.5)
    end = wall(scene, scene.facing(0))
    if pitched:
        scene.polygon([(right, top, near), (out, top, near), (right + side * deep / 2, top + 3.5, near)], roof, BUILDING, scene.facing(0))
    places = ((right, 0.0, near), (out, 0.0, near), (out, top, near), (right, top, near))
    scene.canvas.polygon([camera.see(place) for place in places], facing(scene, left, near, end), BUILDING)
    if pitched:
        scene.polygon([(right, top, near), (right, top, far), (right + side * deep / 2, top + 3.5, far), (right + side * deep / 2, top + 3.5, near)],
                      roof, BUILDING, scene.facing(-side))
    upright(scene, right, near, far, top, along(scene, right, near, far, wall(scene, scene.facing(-side))), BUILDING)
    eaves = ((right, top - 0.35, near), (right, top - 0.35, far), (right, top, far), (right, top, near))
    scene.polygon(eaves, roof, BUILDING, 0.8)


def pickets(scene: Scene, right: float, near: float, far: float, top: float) -> Shader:
    """A fence's pixels: upright pickets with rails, bars, or a mesh."""
    dice, camera = scene.dice, scene.camera
    bar, pitch, duty = dice.color((0, 0.6), (0.1, 0.95)), dice.between(0.12, 0.4), dice.between(0.3, 0.75)
    rail, mesh = dice.between(0.08, 0.2), dice.chance(0.3)
    outward, light = (1 if right > 0 else -1), scene.facing(-1 if right > 0 else 1)

    def shader(across: Plane, down: Plane) -> tuple[Color, Plane]:
        z = np.clip(abs(right) / np.maximum(across * outward, 1e-4), near, far)
        v, pixel = camera.above - down * z, z / camera.focal
        wide = pixel * z / abs(right)
        if mesh:
            bars = np.maximum(pulses((z + v) / pitch, 0.3, wide / pitch), pulses((z - v) / pitch, 0.3, wide / pitch))
        else:
            bars = pulses(z / pitch, duty, wide / pitch)
        rails = pulses(v / (top * 0.45) + 0.3, rail, pixel / (top * 0.45))
        posts = pulses(z / 2, 0.07, wide / 2)
        cover = np.maximum(np.maximum(bars, rails), posts)
        return scene.far(bar * light * (1 - 0.2 * rails), z), cover

    return shader


def draw_sides(scene: Scene, ground: Ground) -> None:
    """What bounds the street, far to near: perhaps a building across its end, then houses, gardens and fences on both sides."""
    dice = scene.dice
    end = dice.between(50, 110)
    if dice.chance(0.6):
        house(scene, 1, -dice.between(8, 25), end, end + 5, deep=dice.between(25, 45))
    for _ in range(3):
        tree(scene, dice.between(-25, 25), end - 1, dice.between(5, 10), dice.pick((0.0, 0.3)))
    for side, line in ((-1, ground.line_left), (1, ground.line_right)):
        plots = []
        near = dice.between(1.5, 6)
        while near < end:
            far = near + dice.between(7, 16) * (1 + near / 60)
            plots.append((near, min(far, end)))
            near = far
        fenced, bare = dice.chance(0.75), dice.between(0.2, 0.5)
        for near, far in reversed(plots):
            if dice.chance(bare):
                for _ in range(dice.count(1, 3)):
                    tree(scene, line + side * dice.between(2, 9), dice.between(near + 1, far + 1), dice.between(3, 8), dice.pick((0.0, 0.3)))
                fence = True
            else:
                house(scene, side, line + side * dice.pick((0.0, 0.0, 3.0)), near, far)
                fence = fenced
            if fence:
                top = dice.between(1.0, 1.9)
                upright(scene, line, near, far, top, pickets(scene, line, near, far, top), FENCE)


@attrs.frozen
class Thing:
    """Something in the street: the ground that it takes, in meters, and what draws it."""

    right: float
    half: float  # of its width
    near: float
    far: float
    draw: Callable[[], None]

    def hits(self, other: Thing) -> bool:
        """Whether the two would stand in each other's place."""
        return abs(self.right - other.right) < self.half + other.half and self.near < other.far + 0.3 and other.near < self.far + 0.3


def back_to_front(things: list[Thing]) -> list[Thing]:
    """The order to draw in: by the near ends, but what stands beside a longer thing, on the camera's side of it, comes after it."""
    outward = sorted(things, key=lambda thing: -abs(thing.right))
    depths: list[float] = []
    for i, thing in enumerate(outward):
        beside = [depths[j] for j in range(i) if outward[j].near < thing.near < outward[j].far and outward[j].right * thing.right > 0]
        depths.append(min([thing.near, *beside]))
    return [outward[i] for i in sorted(range(len(outward)), key=lambda i: -depths[i])]


def populate(scene: Scene, ground: Ground) -> list[Thing]:
    """What stands and moves between the building lines; what would stand in another's place is left out."""
    dice = scene.dice
    things: list[Thing] = []

    def add(draw: Callable[..., None], right: float, ahead: float, *rest: object, half: float = 0.35, length: float = 0.5) -> None:
        thing = Thing(right, half, ahead, ahead + length, partial(draw, scene, right, ahead, *rest))
        if not any(thing.hits(other) for other in things):
            things.append(thing)

    def add_car(right: float, ahead: float, along: bool) -> None:
        body = BODIES[dice.pick(("saloon", "saloon", "hatch", "hatch", "estate", "van", "bus"))]
        length, width = (body.length, body.width) if along else (body.width, body.length)
        add(car, right, ahead, body, along, half=width / 2, length=length)

    def road() -> float:
        return dice.between(ground.kerb_left + (2.6 if ground.parked[0] else 0.6), ground.kerb_right - (2.6 if ground.parked[1] else 0.6))

    def pavement(ahead: float, margin: float = 10.0) -> float:
        """A place on a pavement, at most `margin` meters from its kerb, where the camera sees it; else one on the road."""
        left, right = scene.seen(ahead)
        strips = ((max(ground.line_left + 0.5, ground.kerb_left - margin, left), ground.kerb_left - 0.4),
                  (ground.kerb_right + 0.4, min(ground.line_right - 0.5, ground.kerb_right + margin, right)))
        seen = [strip for strip in strips if strip[0] < strip[1]]
        return dice.between(*dice.pick(seen)) if seen else road()

    for side, kerb, parked in ((-1, ground.kerb_left, ground.parked[0]), (1, ground.kerb_right, ground.parked[1])):
        if parked:
            ahead = dice.between(4.5, 11)
            while ahead < 45:
                add_car(kerb - side * 1.3, ahead, True)
                ahead += dice.between(5.5, 15)
        if dice.chance(0.6):
            ahead, gap, height = dice.between(5, 14), dice.between(7, 14), dice.between(4, 8)
            while ahead < 50:
                add(tree, kerb + side * 0.7, ahead, height * dice.between(0.85, 1.15), dice.between(0.3, 0.45))
                ahead += gap
    for _ in range(dice.count(0, 3)):
        add_car(road(), dice.between(8, 40), dice.chance(0.7))
    for _ in range(dice.count(1, 3)):
        along = dice.chance(0.45)
        add(cyclist, road(), dice.between(4.5, 11), along, half=0.35 if along else 0.9)
    for _ in range(dice.count(2, 5)):
        ahead = dice.between(5.5, 15)
        add(sign, pavement(ahead, margin=1.0), ahead)
    for _ in range(dice.count(0, 2)):
        add(person, road(), dice.between(5.5, 12))
    for _ in range(dice.count(3, 7)):
        ahead = dice.between(4.5, 13)
        add(person, pavement(ahead), ahead)
    return things


def develop(scene: Scene, dice: Dice) -> NDArray[np.uint8]:
    """The camera's part: brightness, a color cast, contrast, vignette, softness, noise; [h, w, 3]."""
    pixels: Color = scene.canvas.pixels
    _, height, width = pixels.shape
    light = dice.color((0, 0.2), (0.95, 1.0)) * dice.between(0.65, 1.4)
    contrast, middle = dice.between(0.8, 1.25), 0.45
    x, y = scene.canvas.column / width - 0.5, scene.canvas.row / height - 0.5
    vignette = 1 - dice.between(0, 0.5) * (x * x + y * y)
    pixels = ((pixels - middle) * contrast + middle) * (light * vignette)
    soft = dice.between(0, 0.25)
    pixels[:, :, 1:-1] += soft * (pixels[:, :, :-2] + pixels[:, :, 2:] - 2 * pixels[:, :, 1:-1])
    pixels[:, 1:-1] += soft * (pixels[:, :-2] + pixels[:, 2:] - 2 * pixels[:, 1:-1])
    noise = dice.generator.random((height, width), np.float32) + dice.generator.random((height, width), np.float32) - 1
    pixels += dice.between(0.005, 0.04) * noise
    return np.ascontiguousarray((unit(pixels) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0))
