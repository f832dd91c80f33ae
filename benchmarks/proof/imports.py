"""What every training imports, for the process that trainings are forked from."""
from twinview.engine.distributed.process import quiet_deepspeed

quiet_deepspeed("cpu")

import timm  # noqa: E402, F401
import torch._dynamo  # noqa: E402, F401  an optimizer's first step imports it
import torchvision  # noqa: E402, F401

import twinview.analysis.figures  # noqa: E402
import twinview.engine.train  # noqa: E402, F401
import twinview_byol.compiled  # noqa: E402, F401
