"""Corrupted copies of a labeled set, for the robustness of a classifier: kinds and strengths in the manner of CIFAR-10-C, not its files."""
from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from proof.data import read

Picture = NDArray[np.uint8]  # [H, W, 3]
SEVERITIES = (1, 3, 5)
IMAGES = 1000  # of the set, evenly spread over it


def _noise(picture: Picture, strength: float, rng: np.random.Generator) -> Picture:
    return _bytes(picture / 255 + rng.normal(0, strength, picture.shape))


def _contrast(picture: Picture, strength: float, rng: np.random.Generator) -> Picture:
    means = picture.mean((0, 1)) / 255
    return _bytes((picture / 255 - means) * strength + means)


def _blur(picture: Picture, strength: float, rng: np.random.Generator) -> Picture:
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(strength)))


def _pixelate(picture: Picture, strength: float, rng: np.random.Generator) -> Picture:
    whole = Image.fromarray(picture)
    small = whole.resize((int(whole.width * strength), int(whole.height * strength)), Image.Resampling.BOX)
    return np.asarray(small.resize(whole.size, Image.Resampling.BOX))


def _jpeg(picture: Picture, strength: float, rng: np.random.Generator) -> Picture:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=int(strength))
    return np.asarray(Image.open(file).convert("RGB"))


Corrupt = Callable[[Picture, float, np.random.Generator], Picture]
CORRUPTIONS: dict[str, tuple[Corrupt, tuple[float, float, float]]] = {  # with a strength for each of SEVERITIES
    "gaussian_noise": (_noise, (0.04, 0.08, 0.10)),
    "gaussian_blur": (_blur, (0.4, 0.7, 1.0)),
    "contrast": (_contrast, (0.75, 0.4, 0.15)),
    "pixelate": (_pixelate, (0.95, 0.85, 0.65)),
    "jpeg_compression": (_jpeg, (80, 58, 40)),
}


def corrupted(source: Path, size: tuple[int, int], out: Path) -> str:
    """Shards OUT/{corruption}/{severity} of images of `source`, without loss (PNG), made where they are missing; the path with both words in it."""
    wanted = [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]
    if all((out / name / str(severity) / "0.tar").is_file() for name, severity in wanted):
        return str(out / "{corruption}" / "{severity}")
    found = read(source, size)
    rows = np.linspace(0, len(found.keys) - 1, min(IMAGES, len(found.keys))).round().astype(int)
    for name, severity in wanted:
        corrupt, strengths = CORRUPTIONS[name]
        rng = np.random.default_rng([severity, *name.encode()])
        folder = out / name / str(severity)
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / "0.tar.partial"
        with tarfile.open(partial, "w") as tar:
            for row in rows:
                file = io.BytesIO()
                Image.fromarray(corrupt(found.images[row].permute(1, 2, 0).numpy(), strengths[SEVERITIES.index(severity)], rng)).save(file, "PNG")
                for field, content in (("png", file.getvalue()), ("cls", str(int(found.labels[row])).encode())):
                    info = tarfile.TarInfo(f"{row:06d}.{field}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        partial.rename(folder / "0.tar")
    return str(out / "{corruption}" / "{severity}")


def _bytes(values: NDArray[np.float64]) -> Picture:
    return (values.clip(0, 1) * 255).round().astype(np.uint8)
