"""What twinview has saved is read only as it was written: files of a checkpoint by their checksums, tensors only where they are finite numbers.
"""
from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinview.errors import CheckpointError
from twinview.recipe.tables import FORMAT

if TYPE_CHECKING:
    from torch import Tensor, nn


def checksum(path: Path) -> int:
    """CRC-32 of a file; torch.load would not notice a wrong byte."""
    found = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            found = zlib.crc32(block, found)
    return found


def read_meta(path: Path) -> dict[str, Any]:
    """The meta.json of a checkpoint's folder whose files are all whole.  Raises CheckpointError where one is missing, damaged or not ours."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: is missing.")
    try:
        meta: dict[str, Any] = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        files = dict(meta["files"])
        int(meta["step"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{path}: is no checkpoint of twinview, or a damaged one (meta.json).") from None
    if meta.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is of format {meta.get('format')!r}, this twinview reads {FORMAT}. Install the twinview that wrote it.")
    for name, written in files.items():
        if Path(name).name != name or not (path / name).is_file():
            raise CheckpointError(f"{path}: is damaged: {name} is missing.")
        if checksum(path / name) != written:
            raise CheckpointError(f"{path}: is damaged: {name} is not as it was written.")
    return meta


def check_finite(tensors: Mapping[str, Tensor], module: nn.Module, place: str) -> None:
    """Raises CheckpointError where a weight of `module`, or a BatchNorm statistic, is NaN or infinite in `tensors`.

    Other buffers may hold what they like: attention masks are made of -inf.
    """
    wanted = {name for name, _ in module.named_parameters()}
    wanted |= {name for name in tensors if name.endswith(("running_mean", "running_var"))}
    bad = [name for name, tensor in tensors.items() if name in wanted and tensor.is_floating_point() and not bool(tensor.isfinite().all())]
    if bad:
        some = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        raise CheckpointError(f"{place}: holds weights that are not finite: {some}. Name weights of a training that went well.")


def why_unread(error: Exception) -> str:
    """Why a file of tensors was not read, in our own words: torch's advise to switch off what keeps files from running programs."""
    text = str(error).strip()
    if "weights_only" in text or "Weights only load failed" in text or type(error).__name__ == "UnpicklingError":
        return "holds more than tensors and is not read, since it could run programs"
    line = text.splitlines()[0].rstrip(".") if text else type(error).__name__
    return f"cannot be read: {line}"
