"""A wrapper: one loss of a recipe begins small."""
from __future__ import annotations

from collections.abc import Generator

from attrs import field
from attrs.validators import gt, le
from torch import Tensor

from twinview import hookimpl, part
from twinview.values import Step

Terms = list[dict[str, Tensor]]


@part
class Ramp:
    """Raises the weight of a loss linearly over the first part of the run, whichever method it is of."""

    of: str = ""  # the loss by its name in the recipe; "": every loss
    share: float = field(default=0.1, validator=[gt(0), le(1)])  # of the run, after which the weight is whole

    @hookimpl(wrapper=True)
    def loss(self, step: Step) -> Generator[None, Terms, Terms]:
        """The terms of that loss times how far the ramp is; of others as they come."""
        answers = yield
        if self.of and step.label != self.of:
            return answers
        ramp = min(1.0, (step.progress.step + 1) / max(1.0, self.share * step.progress.steps))
        return [{name: value * ramp for name, value in terms.items()} for terms in answers]
