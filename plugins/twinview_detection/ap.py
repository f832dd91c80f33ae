"""Average precision of a trained detector, by pycocotools."""
from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from attrs import field
from attrs.validators import gt
from numpy.typing import NDArray
from torch import Tensor

from twinview.branch import Branches
from twinview.errors import DataError, RecipeError
from twinview.hooks import hookimpl, part
from twinview.ops.checks import pixels
from twinview.ops.ranks import gather_rows
from twinview.values import DataFactory, Dims, Features, Traits
from twinview_detection.objects import targets
from twinview_detection.rcnn import last_stage

MEASURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")  # the first six numbers of COCOeval


@part
class AP:
    """COCO's average precision of boxes, and of masks where the detector gives them: `box/ap`, `box/ap50`, ..., `mask/ap`; percent.

    Areas of small, medium and large objects are in pixels of `size`.
    """

    val: str | list[str]  # shards with the labels that the detector learned from
    size: tuple[int, int] = field(validator=pixels)  # height, width of the whole image in pixels
    loss: str = "detection.rcnn"  # the loss, by its name in the recipe
    images: int = field(default=4, validator=gt(0))  # that the encoder sees at once
    masks: bool = True  # score masks too

    @hookimpl
    def traits(self) -> Traits:
        """`box/...` and `mask/...`."""
        kinds = ("box", "mask") if self.masks else ("box",)
        return Traits(scores=frozenset(f"{kind}/{measure}" for kind in kinds for measure in MEASURES))

    @hookimpl
    def check(self, dims: Dims, data: DataFactory) -> None:
        """Without pycocotools, or shards that are there, the training is refused before it begins."""
        _pycocotools()
        data.require(self.val)

    @hookimpl
    def evaluate(self, branches: Branches, data: DataFactory) -> dict[str, float]:
        """The numbers of COCOeval; NaN where no object has such an area.  Equal on every rank."""
        detector: Any = branches.online.find(branches.online.key(self.loss, "detector")).eval()
        encoder = branches.online.encoder.eval()
        device = next(branches.online.parameters()).device
        given, real = Table(self.size, device), Table(self.size, device)
        masks = self.masks and detector.with_masks
        for batch in data.plain(self.val, size=self.size, labels=("map",) if detector.kinds.maps else ("objects",), batch_size=self.images):
            with torch.no_grad():
                features: Features = encoder(batch.images.to(device))
                stage = last_stage(branches.online, detector.neck_kind)
                found = detector([features.at(level).float() for level in detector.levels], self.size, None, stage)
            for i, one, truth in zip(batch.ids.tolist(), found, targets(batch.labels, "", detector.kinds, "[[evaluate]] detection.ap")):
                given.add(i, one["boxes"], one["labels"], one["scores"], one.get("masks") if masks else None)
                real.add(i, truth["boxes"], truth["labels"], truth["crowd"].float(), truth["masks"] if masks else None)
        given.gather()
        real.gather()
        if not len(real.rows):
            raise DataError(f"[[evaluate]] detection.ap: {self.val} holds no object of the classes that are detected.")
        scores = average_precision(real, given, detector.classes, "bbox", "box")
        return scores | (average_precision(real, given, detector.classes, "segm", "mask") if masks else {})


class Table:
    """Boxes of many images, a row each: image, x0, y0, x1, y1, class from 1 on, and a score (of the real ones: 1 for a crowd); masks as bits."""

    def __init__(self, size: tuple[int, int], device: torch.device) -> None:
        self.size = size
        self.rows = torch.empty(0, 7, dtype=torch.float64, device=device)
        self.bits = torch.empty(0, -(-size[0] * size[1] // 8), dtype=torch.uint8, device=device)
        self._rows, self._bits = [self.rows], [self.bits]

    def add(self, image: int, boxes: Tensor, classes: Tensor, scores: Tensor, masks: Tensor | None) -> None:
        """Of one image."""
        device = self.rows.device
        columns = [torch.full((len(boxes), 1), float(image)), boxes.double().cpu(), classes.double().cpu()[:, None], scores.double().cpu()[:, None]]
        self._rows.append(torch.cat(columns, 1).to(device))
        if masks is not None and len(masks):
            self._bits.append(torch.from_numpy(np.packbits(masks.cpu().numpy().astype(bool).reshape(len(masks), -1), axis=1)).to(device))

    def gather(self) -> None:
        """The rows of all ranks."""
        self.rows, self.bits = gather_rows(torch.cat(self._rows)).cpu(), gather_rows(torch.cat(self._bits)).cpu()

    def mask(self, row: int) -> NDArray[np.uint8]:
        """[h, w] of 0 and 1."""
        height, width = self.size
        return np.unpackbits(self.bits[row].numpy())[: height * width].reshape(height, width)


def average_precision(real: Table, given: Table, classes: int, kind: str, name: str) -> dict[str, float]:
    """COCOeval's numbers in percent; `kind`: bbox or segm."""
    coco, evaluation = _pycocotools()
    images = sorted({*real.rows[:, 0].long().tolist(), *given.rows[:, 0].long().tolist()})
    truth, found = coco(), coco()
    pictures = [{"id": i, "height": real.size[0], "width": real.size[1]} for i in images]
    shared = {"images": pictures, "categories": [{"id": n} for n in range(1, classes + 1)], "info": {}, "licenses": []}
    with contextlib.redirect_stdout(io.StringIO()):
        for index, table, is_real in ((truth, real, True), (found, given, False)):
            index.dataset = {**shared, "annotations": as_annotations(table, is_real, kind == "segm")}
            index.createIndex()
        measured = evaluation(truth, found, kind)
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
    numbers: Sequence[float] = measured.stats[: len(MEASURES)].tolist()
    return {f"{name}/{measure}": 100 * number if number >= 0 else float("nan") for measure, number in zip(MEASURES, numbers)}


def as_annotations(table: Table, is_real: bool, masks: bool) -> list[dict[str, Any]]:
    """Rows as COCO's annotations, ids from 1 on."""
    from pycocotools import mask

    found = []
    for row, (image, x0, y0, x1, y1, label, score) in enumerate(table.rows.tolist()):
        one: dict[str, Any] = {"id": row + 1, "image_id": int(image), "category_id": int(label), "bbox": [x0, y0, x1 - x0, y1 - y0]}
        one |= {"iscrowd": int(score)} if is_real else {"iscrowd": 0, "score": score}
        one["area"] = (x1 - x0) * (y1 - y0)
        if masks:
            one["segmentation"] = mask.encode(np.asfortranarray(table.mask(row)))
            one["area"] = float(mask.area(one["segmentation"]))
        found.append(one)
    return found


def _pycocotools() -> tuple[Any, Any]:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise RecipeError("[[evaluate]] detection.ap: wants pycocotools. Install it: pip install 'twinview[detection]'.") from None
    return COCO, COCOeval
