"""Which fields of a sample are its image and its label map."""
from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

T = TypeVar("T")

IMAGE_FIELDS = (
    *("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "npy"),
    *("jpe", "jfif", "mpo", "gif", "avif", "jp2", "j2k", "jpx", "jpf", "heic", "heif"),
)
MAP_FIELD = "seg.png"  # `png` too, where the image is another field


def image_field(names: Collection[str]) -> str | None:
    """Which of a sample's fields is the image."""
    return next((field for field in IMAGE_FIELDS if field in names), None)


def map_field(names: Collection[str]) -> str | None:
    """Which of a sample's fields is the label map."""
    field = MAP_FIELD if MAP_FIELD in names else "png"
    return field if field in names and field != image_field(names) else None
