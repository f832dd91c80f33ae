"""A linear classifier on frozen features of whole images."""
from __future__ import annotations

from typing import Literal

import torch
from attrs import field
from attrs.validators import ge
from torch.nn import functional as F

from twinview.hooks import part
from twinview_probes import tables
from twinview_probes.features import Cells
from twinview_probes.images import Embedded
from twinview_probes.linear import fit
from twinview_probes.regression import logistic, ridge
from twinview_probes.whole_images import Classes, Classify

Solver = Literal["adamw", "lbfgs", "ridge", "mae", "moco", "simsiam", "moco_v3", "dino"]
STEPS, BATCH, LR = 1000, 1024, 0.01  # of adamw
OF_STEPS = {"adamw": ("steps", "batch", "lr", "weight_decay"), "lbfgs": (), "ridge": (), **dict.fromkeys(tables.TABLES, ("epochs", "batch", "lr"))}


@part
class Linear(Classes):
    """A linear classifier, fitted on the features of all of `train` without augmentation.

    `solver`: "adamw" on standardized features; "lbfgs", a logistic regression, and "ridge", least squares in closed form, both of which choose
    their decay on `train` by themselves; or the layer, optimizer and schedule of a paper's table: "mae" (BatchNorm without affine, LARS; SiameseIM
    too), "moco" (SGD, lr 30; DenseCL too), "simsiam" (LARC), "moco_v3", "dino" (iBOT too).  The tables' own augmentation is in the recipes
    linear/*; scores are those after the last epoch.
    """

    score = "linear"
    solver: Solver = "adamw"
    steps: int = field(default=0, validator=ge(0))  # adamw; 0: 1000
    epochs: int = field(default=0, validator=ge(0))  # of a table; 0: its own
    batch: int = field(default=0, validator=ge(0))  # images a step, of adamw (0: 1024, drawn with replacement) and of tables (0: their own)
    lr: float = field(default=0.0, validator=ge(0))  # at the peak, of adamw (0: 0.01; cosine to 0) and of tables (0: their own, by batch)
    weight_decay: float = field(default=0.0, validator=ge(0))  # adamw
    seed: int = field(default=0, validator=ge(0))  # of the layer's start, of the images drawn, of those held out for the decay

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        for option in ("steps", "epochs", "batch", "lr", "weight_decay"):
            if getattr(self, option) and option not in OF_STEPS[self.solver]:
                takes = ", ".join(OF_STEPS[self.solver]) or "nothing to tune"
                raise ValueError(f"{option} is none of solver = {self.solver!r}, which takes {takes}. Leave it out")

    def fit_numbered(self, train: Embedded, classes: int) -> Classify:
        """The classifier, its standardization in it."""
        x, y = train.x, train.y
        if self.solver == "adamw":
            cells = Cells(x.clone(), y, torch.arange(len(y), device=y.device))
            found = fit(
                cells, classes, steps=self.steps or STEPS, batch=self.batch or BATCH, lr=self.lr or LR, weight_decay=self.weight_decay, seed=self.seed
            )
            return lambda rows: {"": F.linear(rows, found.weight, found.bias)}
        if self.solver == "lbfgs":
            fitted = logistic(x, y, classes, seed=self.seed)
            return lambda rows: {"": fitted(rows)}
        if self.solver == "ridge":
            solved = ridge(x, y, classes)
            return lambda rows: {"": solved(rows)}
        probe = tables.train(tables.TABLES[self.solver], x, y, classes, epochs=self.epochs, batch=self.batch, lr=self.lr, seed=self.seed)
        return lambda rows: {"": probe(rows)}

