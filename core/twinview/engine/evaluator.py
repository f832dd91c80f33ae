"""Evaluations within a run: which are due, and their scores."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from twinview.assembly.checks import naming_evaluations
from twinview.data.loading.factory import Factory
from twinview.engine.checkpoint import random_states, set_random_states
from twinview.engine.compiled import uncompiled
from twinview.engine.setup import TrainSetup
from twinview.engine.zero import gathered_weights
from twinview.progress import waiting
from twinview.values import Progress


class Evaluator:
    """Runs the evaluations of a recipe on the model that is being trained; every rank calls it."""

    def __init__(self, setup: TrainSetup, engine: Any, data: Factory) -> None:
        self.setup, self.engine, self.data = setup, engine, data
        self.labels = setup.assembly.answers("evaluate")

    def due(self, step: int, share: float) -> list[str]:
        """Evaluations that run after `step` steps: every N where they say so, and at the end of the run (`share` 1)."""
        every = {label: self.setup.assembly.uses[label][2].every for label in self.labels}
        return [label for label in self.labels if share >= 1 or (every[label] and step % every[label] == 0)]

    def scores(self, due: list[str], progress: Progress) -> dict[str, float]:
        """`score/NAME` -> number, of the evaluations that are due."""
        scores: dict[str, float] = {}
        if not due:
            return scores
        assembly = self.setup.assembly
        with self.at_rest():
            for label in due:
                name = assembly.uses[label][2].name
                self.data.doing = f"evaluate {label}"
                with naming_evaluations(assembly, label), waiting(self.data.doing):
                    for answer in assembly.only("evaluate", label)(branches=self.setup.model.branches, data=self.data, progress=progress):
                        scores |= {f"score/{name}.{k}" if name else f"score/{k}": float(v) for k, v in answer.items()}
        return scores

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """The model in eval mode, whole on every rank, without gradient; afterwards train mode and all random states are restored."""
        states = random_states(self.setup.ranks.device)
        self.setup.model.eval()
        try:
            with torch.no_grad(), gathered_weights(self.engine), uncompiled(self.setup.recipe):
                yield
        finally:
            self.setup.model.train()
            set_random_states(states, self.setup.ranks.device)
