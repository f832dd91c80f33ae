"""The embedded scenes: the same everywhere, every class in most of them, well labeled, and not to be solved by color."""
from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from twinview.data.scenes.street import CLASSES, VERSION, Thing, back_to_front, draw_scene

DIGESTS = {5: "ebb2665d6f51969a"}  # by VERSION: a drawing that changes needs a new one, or caches go stale
SEEDS = 50


@pytest.fixture(scope="module")
def scenes() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    drawn = [draw_scene(seed) for seed in range(SEEDS)]
    return np.stack([image for image, _ in drawn]), np.stack([labels for _, labels in drawn])


def digest(seed: int, size: tuple[int, int]) -> str:
    image, labels = draw_scene(seed, size)
    return hashlib.sha256(image.tobytes() + labels.tobytes()).hexdigest()


def test_same_seed_same_bytes() -> None:
    assert digest(11, (80, 120)) == digest(11, (80, 120))
    assert len({digest(seed, (80, 120)) for seed in range(20)}) == 20


def test_drawing_is_the_versions() -> None:
    assert digest(7, (80, 120))[:16] == DIGESTS[VERSION]


def test_largest_seed_is_a_scene_of_its_own() -> None:
    assert len({digest(seed, (32, 48)) for seed in (0, 1, 2**63, 2**64 - 1)}) == 4


@pytest.mark.parametrize("size", [(160, 240), (97, 131), (16, 16), (33, 200), (201, 64)])
def test_size_is_honoured(size: tuple[int, int]) -> None:
    image, labels = draw_scene(3, size)
    assert image.shape == (*size, 3) and labels.shape == size
    assert image.dtype == labels.dtype == np.uint8
    assert labels.max() < len(CLASSES)
    assert image.flags.c_contiguous and labels.flags.c_contiguous


@pytest.mark.parametrize(("seed", "size"), [(-1, (160, 240)), (2**64, (160, 240)), (0, (15, 240)), (0, (160, 0))])
def test_what_cannot_be_drawn_is_refused(seed: int, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="draw_scene"):
        draw_scene(seed, size)


def test_every_class_has_its_share(scenes: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    _, labels = scenes
    for index, name in enumerate(CLASSES):
        here = labels == index
        assert here.mean() >= 0.015, f"{name}: {here.mean():.2%} of all pixels"
        assert (here.sum((1, 2)) >= 100).mean() >= 0.8, f"{name}: in too few scenes"
    assert max((labels == index).mean() for index in range(len(CLASSES))) < 0.4


def test_objects_come_near_and_far(scenes: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    _, labels = scenes
    for name in ("car", "person", "cyclist", "sign"):
        areas = (labels == CLASSES.index(name)).sum((1, 2))
        assert np.quantile(areas, 0.9) > 3 * np.quantile(areas, 0.1), name


def test_light_varies(scenes: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    images, _ = scenes
    brightness = images.mean((1, 2, 3))
    assert brightness.std() > 20 and brightness.min() < 80 and brightness.max() > 150
    cast = images.mean((1, 2)) / brightness[:, None]
    assert cast.std(0).min() > 0.02
    contrast = images.mean(3).std((1, 2))
    assert contrast.max() > 2 * contrast.min()


def thing(right: float, near: float, far: float, half: float = 0.4) -> Thing:
    return Thing(right, half, near, far, lambda: None)


def test_back_to_front() -> None:
    """A parked bus spans 5..14 m: who walks behind it on the pavement comes before it, who walks on the road beside it after it."""
    bus, walker, rider, ahead, other_side = thing(3, 5, 14, 1.25), thing(5, 9, 9.5), thing(1, 9, 9.5), thing(1, 4, 4.5), thing(-1, 9.2, 9.7)
    for things in ([bus, walker, rider, ahead, other_side], [other_side, ahead, rider, walker, bus]):
        order = back_to_front(things)
        assert sorted(order, key=id) == sorted(things, key=id)
        assert order.index(walker) < order.index(bus) < order.index(rider) < order.index(ahead)
        assert order[0] is other_side


def test_things_take_their_ground() -> None:
    bus = thing(3, 5, 14, 1.25)
    assert bus.hits(thing(2, 13, 13.5)) and thing(2, 13, 13.5).hits(bus) and bus.hits(bus)
    assert not bus.hits(thing(1, 9, 9.5)) and not bus.hits(thing(3, 15, 16))


def test_labels_follow_the_picture(scenes: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    """The picture's edges lie on the labels' borders: moving the labels away by two pixels, any way, weakens them."""
    images, labels = scenes
    grey = images.mean(3)
    edges = np.abs(np.diff(grey, axis=2))[:, :-1] + np.abs(np.diff(grey, axis=1))[:, :, :-1]

    def strength(labels: NDArray[np.uint8]) -> float:
        border = (np.diff(labels.astype(int), axis=2) != 0)[:, :-1] | (np.diff(labels.astype(int), axis=1) != 0)[:, :, :-1]
        return float(edges[border].mean())

    aligned = strength(labels)
    assert aligned > 1.8 * edges.mean()
    for shift, axis in ((2, 1), (-2, 1), (2, 2), (-2, 2)):
        assert aligned > 1.3 * strength(np.roll(labels, shift, axis))


def cells(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The class of most pixels in each 8 x 8 cell."""
    n, h, w = labels.shape
    blocks = labels.reshape(n, h // 8, 8, w // 8, 8)
    counts = np.stack([(blocks == index).sum((2, 4)) for index in range(len(CLASSES))], -1)
    classes: NDArray[np.int64] = counts.argmax(-1).reshape(-1)
    return classes


def probe(features: NDArray[np.float64], classes: NDArray[np.int64]) -> float:
    """Mean IoU of a least-squares linear classifier, every class weighing the same, fitted on the first 4/5 and scored on the rest."""
    features = np.concatenate([(features - features.mean(0)) / (features.std(0) + 1e-6), np.ones((len(features), 1))], 1)
    cut = len(features) * 4 // 5
    weight = 1 / np.sqrt(np.bincount(classes[:cut], minlength=len(CLASSES)))[classes[:cut], None]
    solution, *_ = np.linalg.lstsq(features[:cut] * weight, np.eye(len(CLASSES))[classes[:cut]] * weight, rcond=None)
    found, truth = (features[cut:] @ solution).argmax(1), classes[cut:]
    both = [((found == index) & (truth == index)).sum() / max(((found == index) | (truth == index)).sum(), 1) for index in range(len(CLASSES))]
    return float(np.mean(both))


def test_color_does_not_solve_them_but_structure_helps(scenes: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    images, labels = scenes
    n, h, w, _ = images.shape
    pixels = images.astype(np.float64) / 255
    patches = pixels.reshape(n, h // 8, 8, w // 8, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 192)
    classes = cells(labels)
    raw, mean = probe(patches, classes), probe(patches.reshape(-1, 64, 3).mean(1), classes)
    grey = patches.reshape(-1, 8, 8, 3).mean(-1)
    texture = np.stack([np.log(0.01 + np.abs(np.diff(grey, step, axis)).mean((1, 2))) for axis in (1, 2) for step in (1, 2)]
                       + [np.log(0.01 + grey.std((1, 2))), np.log(0.01 + np.ptp(grey, (1, 2)))], 1)
    both = probe(np.concatenate([patches.reshape(-1, 64, 3).mean(1), texture], 1), classes)
    assert mean < 0.12 and raw < 0.15, f"color alone: {mean:.3f}, raw pixels: {raw:.3f}"
    assert both > 1.6 * mean, f"texture adds little: {both:.3f} against {mean:.3f}"


def test_no_class_owns_a_color(scenes: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    """Any two classes overlap in every channel: their means lie within 2 of their pooled standard deviations."""
    images, labels = scenes
    pixels = [images[labels == index] / 255.0 for index in range(len(CLASSES))]
    means, variances = np.stack([p.mean(0) for p in pixels]), np.stack([p.var(0) for p in pixels])
    apart = np.abs(means[:, None] - means[None]) / np.sqrt((variances[:, None] + variances[None]) / 2)
    assert variances.min() > 0.01 and apart.max() < 2


def test_drawing_needs_no_torch() -> None:
    code = "import sys, twinview.data.scenes.street as s; s.draw_scene(0, (32, 48)); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
