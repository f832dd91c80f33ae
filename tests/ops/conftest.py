"""timm and torchvision are imported before any test file asks for them: without torch's compiler."""
from twinview.ops.vision import import_timm

import_timm()
