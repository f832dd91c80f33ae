"""The trained encoder of a run."""
from __future__ import annotations

from pathlib import Path

from torch import nn

from twinview.engine.checkpoint import find_checkpoint
from twinview.errors import CheckpointError


def load_encoder(run: Path, step: int | None = None) -> nn.Module:
    """The online branch's encoder of a run, in eval mode, on the CPU: of its newest checkpoint, or that of `step`.

    Needs the methods that the run's recipe names, and no DeepSpeed.  Raises CheckpointError.
    """
    from twinview.assembly import assemble
    from twinview.recipe import read

    if not (run / "recipe.toml").is_file():
        raise CheckpointError(f"{run}: is no run's folder: it holds no recipe.toml.")
    checkpoint = find_checkpoint(run / "checkpoints", step)
    encoder = assemble(read(run / "recipe.toml")).encoder(random=True)
    start = "online.encoder."
    weights = {k.removeprefix(start): v for k, v in checkpoint.load("model.pt").items() if k.startswith(start)}
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as e:
        raise CheckpointError(f"{checkpoint.path}: does not fit the run's recipe.toml: {' '.join(str(e).split())}") from None
    return encoder.eval()
