"""What evaluations compute of frozen weights, kept on disk: each set of images goes through an encoder once, for all of them."""
from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twinview.errors import RecipeError
from twinview.files import write_atomic
from twinview.ops.ranks import rank, summed, world
from twinview.paths import cache
from twinview.version import __version__

log = logging.getLogger(__name__)

LIMIT = "TWINVIEW_FEATURES_GB"  # how much is kept; 0: nothing
GB = 10.0


def stored(key: Sequence[Any], modules: Sequence[nn.Module], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What `make` gives, from disk where it lies there for every rank; else made by all, and kept by the first.

    `key`: plain values that it depends on, besides the weights and the code of `modules`.  Files lie in `features` of the cache folder; the
    longest unused go beyond the limit.  A file that cannot be read is made again.
    """
    limit = _limit()
    device = next((p.device.type for module in modules for p in module.parameters()), "cpu")
    path = cache() / "features" / f"{_hash([*key, device, torch.__version__, __version__], modules)}.safetensors"
    found = _read(path)
    if int(summed(torch.tensor(int(found is not None), device=_meeting_place(modules)))) == world() and found is not None:
        return found
    made = {name: value.detach().cpu().contiguous() for name, value in make().items()}
    if rank() == 0 and limit:
        _write(path, made, limit)
    return made


def weights_hash(modules: Iterable[nn.Module]) -> str:
    """Of every tensor of the modules, names, types and shapes included, and of the code that their classes are written in."""
    found = hashlib.blake2b(digest_size=16)
    for module in modules:
        found.update(_code(type(module)))
        for name, value in module.state_dict().items():
            plain = value.detach().cpu().contiguous()
            found.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
            found.update(plain.view(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    return found.hexdigest()


def _hash(key: Sequence[Any], modules: Sequence[nn.Module]) -> str:
    text = json.dumps(key, sort_keys=True, default=str)
    return hashlib.blake2b(f"{text} {weights_hash(modules)}".encode(), digest_size=20).hexdigest()


def _code(cls: type) -> bytes:
    """The files in which a class and those that it inherits from are written, torch's own left out."""
    files = set[str]()
    for one in cls.__mro__:
        if not one.__module__.startswith(("torch.", "builtins")):
            with suppress(TypeError, OSError):
                files.add(inspect.getfile(one))
    return b"".join(Path(file).read_bytes() for file in sorted(files) if os.path.isfile(file))


def _meeting_place(modules: Sequence[nn.Module]) -> torch.device:
    """A device on which ranks can add up a number."""
    import torch.distributed as dist

    if world() > 1 and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _read(path: Path) -> dict[str, Tensor] | None:
    from safetensors.torch import load_file

    try:
        found: dict[str, Tensor] = load_file(path)
        os.utime(path)
    except Exception:  # missing, cut short, or unreadable in whatever way: it is made again
        return None
    return found


def _write(path: Path, tensors: dict[str, Tensor], limit: float) -> None:
    from safetensors.torch import save

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomic(path) as file:
            file.write(save(tensors))
        _drop_oldest(path.parent, limit * 1e9)
    except OSError as e:
        log.warning("%s: features cannot be kept there: %s. The next evaluation computes them again.", path.parent, e.strerror)


def _drop_oldest(folder: Path, limit: float) -> None:
    files = sorted(folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime, reverse=True)
    total = 0
    for file in files:
        total += file.stat().st_size
        if total > limit and file != files[0]:
            with suppress(FileNotFoundError):  # another process drops too
                file.unlink()


def _limit() -> float:
    text = os.environ.get(LIMIT, "") or str(GB)
    try:
        return max(float(text), 0.0)
    except ValueError:
        raise RecipeError(f"{LIMIT}: wants a number of gigabytes, not {text!r}.") from None
