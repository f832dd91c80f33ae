"""The trained encoder of a run."""
from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import nn

from twinview.assembly import Assembly, assemble
from twinview.engine.checkpoint import find_checkpoint
from twinview.engine.run_recipe import run_recipe
from twinview.errors import CheckpointError
from twinview.saved import check_finite


class TrainedEncoder(NamedTuple):
    """A run's encoder, and where it comes from."""

    encoder: nn.Module  # of the online branch, or the target one where it was asked for; in eval mode, on the CPU
    assembly: Assembly  # of the run's recipe
    step: int  # of the checkpoint


def read_encoder(run: Path, step: int | None = None, branch: str = "online") -> TrainedEncoder:
    """The encoder of a run's newest checkpoint, or of that of `step`; of the target branch where `branch` is "target".

    Needs the methods that the run's recipe names, and no DeepSpeed.  Raises CheckpointError.
    """
    recipe = run_recipe(run)
    checkpoint = find_checkpoint(run / "checkpoints", step)
    assembly = assemble(recipe)
    encoder = assembly.encoder(random=True)
    start = f"{branch}.encoder."
    weights = {k.removeprefix(start): v for k, v in checkpoint.load("model.pt").items() if k.startswith(start)}
    if not weights and branch == "target":
        why = "with [target] momentum = 0, or where no loss asks for it, there is the online one alone"
        raise CheckpointError(f"{checkpoint.path}: has no target branch: {why}.")
    check_finite(weights, encoder, str(checkpoint.path))
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as e:
        raise CheckpointError(f"{checkpoint.path}: does not fit the run's recipe.toml: {' '.join(str(e).split())}") from None
    return TrainedEncoder(encoder.eval(), assembly, checkpoint.step)


def load_encoder(run: Path, step: int | None = None) -> nn.Module:
    """The online branch's encoder of a run, in eval mode, on the CPU; see `read_encoder`."""
    return read_encoder(run, step).encoder
