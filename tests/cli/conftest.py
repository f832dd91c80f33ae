"""torchvision is imported before any test file asks for it: without torch's compiler."""
from twinview.ops.vision import import_torchvision

import_torchvision()
