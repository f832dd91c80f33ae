"""Training with labels from weights that are there: fine-tuning and linear probes of whole images, segmentation with FCN and UperNet."""
from __future__ import annotations

from twinview.hooks import hookimpl
from twinview_finetune.accuracy import Accuracy
from twinview_finetune.classes import Classes
from twinview_finetune.crops import ScaledCrops
from twinview_finetune.layers import Layers
from twinview_finetune.miou import MIoU
from twinview_finetune.randaugment import RandAugment
from twinview_finetune.segmentation import FCN, UperNet


@hookimpl
def parts() -> dict[str, type]:
    """Losses `classes`, `fcn`, `upernet`; `layers` (rates by depth), `randaugment`, `scaled_crops`; evaluations `accuracy`, `miou`."""
    return {
        **{"classes": Classes, "fcn": FCN, "upernet": UperNet, "layers": Layers, "randaugment": RandAugment},
        **{"scaled_crops": ScaledCrops, "accuracy": Accuracy, "miou": MIoU},
    }
