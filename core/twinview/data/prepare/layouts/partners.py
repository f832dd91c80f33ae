"""What of a data set meets no partner: annotations without an image, images that no annotation file lists, label maps without an image."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from twinview.errors import DataError


class Catalog:
    """The images of a folder beside an annotation file of COCO's format, as COCO and as other tools write it.

    Files are found by `file_name`, also where it is absolute, has folders above the images' own, or backslashes.  Ids may be numbers or words:
    1, 1.0, "1" and "0001" are the same.
    """

    def __init__(self, pictures: Path, files: Iterable[Path], said: Mapping[str, Any], annotations: Path) -> None:
        """`files`: the images under `pictures`; `said`: the content of the file `annotations`.  Raises DataError where it is not of the format."""
        self.pictures, self.place = pictures, annotations
        there = {path.relative_to(pictures).as_posix() for path in files}
        self.unmatched = Counter[str]()
        self.images: dict[Path, dict[str, Any]] = {}  # by file; of one that is listed twice, what was said first
        owners: dict[str, Path] = {}  # id -> file
        for n, one in enumerate(self._tables(said, "images")):
            path = pictures / _found(self._text(one, "file_name", f"images[{n}]"), there)
            self.unmatched["images listed twice, whose annotations are joined"] += path in self.images
            self.images.setdefault(path, one)
            name = _id(one.get("id"))
            if owners.setdefault(name, path) != path and name:
                raise DataError(f"{annotations}: two images have the id {one['id']!r}: {owners[name]} and {path}. Give one of them another.")
        self.categories = self._names(said)
        self.annotations: dict[Path, list[dict[str, Any]]] = {path: [] for path in self.images}
        for one in self._tables(said, "annotations"):
            owner = owners.get(_id(one.get("image_id"))) if _id(one.get("image_id")) else None
            if owner is None:
                self.unmatched["annotations of images that the file does not list"] += 1
                continue
            self.annotations[owner].append(one)
            self.unmatched["annotations of a category that the file does not name"] += _id(one.get("category_id")) not in self.categories
        listed = {path.relative_to(pictures).as_posix() for path in self.images if path.is_relative_to(pictures)}
        self.unmatched["images that the annotation file does not list, and which are not packed"] += len(there - listed)

    def _names(self, said: Mapping[str, Any]) -> dict[str, str]:
        """Categories {id: name}: numbers in their order, then words."""
        found: dict[str, str] = {}
        for one in self._tables(said, "categories"):
            name, word = str(one.get("name", one.get("id"))), _id(one.get("id"))
            if found.setdefault(word, name) != name:
                raise DataError(f"{self.place}: two categories have the id {one['id']!r}: {found[word]!r} and {name!r}. Give one of them another.")
        return dict(sorted(found.items(), key=lambda item: (not item[0].isdecimal(), int(item[0]) if item[0].isdecimal() else 0, item[0])))

    def _tables(self, said: Mapping[str, Any], key: str) -> Sequence[dict[str, Any]]:
        tables = said.get(key) or []
        wrong = tables if not isinstance(tables, list) else next((one for one in tables if not isinstance(one, dict)), None)
        if wrong is not None:
            raise DataError(f"{self.place}: is not of COCO's format: {key} is a list of tables, and holds {str(wrong)[:40]!r}.")
        return tables

    def _text(self, one: Mapping[str, Any], key: str, place: str) -> str:
        if not isinstance(one.get(key), str) or not one[key].strip("/\\. "):
            raise DataError(f"{self.place}: is not of COCO's format: {place} has no {key}.")
        return str(one[key])


def _found(name: str, there: set[str]) -> str:
    """The file that a `file_name` means, below the images' folder and never outside of it: the longest end of it that is there, if one is."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    ends = ["/".join(parts[n:]) for n in range(len(parts))]
    return next((end for end in ends if end in there), ends[0])


def _id(value: Any) -> str:
    """An id as a word: 1, 1.0, "1" and "0001" are one; empty where there is none."""
    if value is None or isinstance(value, (bool, list, dict)):
        return ""
    word = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
    return str(int(word)) if word.isascii() and word.isdecimal() and len(word) < 4000 else word  # Python refuses longer numbers


def spare_maps(folder: Path, pattern: str, used: Iterable[Path]) -> Counter[str]:
    """How many label maps of a folder, by the pattern of their names, belong to no image: they are not among those `used`."""
    return Counter({"label maps without an image": len({*visible(folder.glob(pattern))} - {*used})})


def visible(paths: Iterable[Path]) -> Iterator[Path]:
    """Without what begins with a dot: notes of file systems and of editors beside the files (._x.png, .ipynb_checkpoints)."""
    return (path for path in paths if not PurePath(path).name.startswith("."))
