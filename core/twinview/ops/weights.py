"""Weights to start from: files, timm's names, and the names that an encoder's library publishes."""
from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twinview.errors import CheckpointError, RecipeError, closest
from twinview.ops.vision import import_timm
from twinview.paths import expand
from twinview.saved import check_finite, read_meta, why_unread

State = Mapping[str, Tensor]
FILES = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".safetensors")
SAVED = (b"PK", b"\x80")  # how a file of torch.save begins: a zip, or before torch 1.6 a pickle
WRAPPERS = ("state_dict", "model", "module", "model_state_dict")  # keys under which checkpoints keep their tensors; the first that is there
DEPTH = 4  # of tables in tables that tensors are looked for in
Resize = Callable[[str, Tensor, Tensor], Tensor | None]  # name, a file's tensor, the module's -> of the module's shape; None: leave it


def load_weights(
    module: nn.Module,
    source: str,
    *,
    named: Mapping[str, Callable[[], State]] | None = None,
    renamed: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
    optional: Sequence[str] = (),
    channels: int = 3,
    key: str = "",
    resize: Resize | None = None,
    look: Callable[[State], None] | None = None,
    place: str = "[encoder] weights",
    what: str = "encoder",
) -> None:
    """Load `source` into `module`, every tensor or none.

    `source`: a file (.safetensors, or a state dict that torch reads with `weights_only`, bare or within a checkpoint), the folder of a run or
    of one of its checkpoints, `timm:NAME`, or a key of `named`.
    `renamed`: start of a name in the file -> start of the module's; where the file holds such names, all others of it are left out.
    What stands before the module's own names in a file (`online.encoder.`, `backbone.`, `module.`) is found and taken off.
    Names in the file that start with one of `ignore` are left out (a classifier); names of the module that start with one of `optional` may
    be missing from the file, all together, and stay as they are.  Kernels that see the images' `channels` are made of a file's that see three.
    `key`: a word before the encoder's names, to choose one of several (teacher, encoder_k); `resize` is asked about tensors of other shapes.
    `look` is shown all that the source holds, by the module's names, and may refuse it.
    Raises RecipeError for a source that nobody knows, CheckpointError for one that cannot be read or does not fit.
    """
    state = _renamed(_read(source, named or {}, place), renamed or {})
    own = module.state_dict()
    found = _strip(state, own, key, f"{place} = {source!r}")
    found = {k: _of_channels(v, channels) if k in own and _sees_images(v, own[k], channels) else v for k, v in found.items()}
    if look is not None:
        look(found)
    if resize is not None:
        found = {k: v if k not in own or v.shape == own[k].shape or (new := resize(k, v, own[k])) is None else new for k, v in found.items()}
    fitting = {k: v for k, v in found.items() if k in own or not k.startswith(tuple(ignore))}
    spared = tuple(p for p in optional if not any(k.startswith(p) for k in fitting))
    missing = [k for k in own if k not in fitting and not k.endswith("num_batches_tracked") and not k.startswith(spared)]
    unexpected = [k for k in fitting if k not in own]
    shapes = [f"{k} {tuple(v.shape)}, not {tuple(own[k].shape)}" for k, v in fitting.items() if k in own and v.shape != own[k].shape]
    for fault, names in (("it lacks", missing), (f"the {what} has no", unexpected), ("it has", shapes)):
        if names:
            raise CheckpointError(f"{place} = {source!r}: does not fit the {what}: {fault} {_some(names)}. Name weights of the same architecture.")
    check_finite(fitting, module, f"{place} = {source!r}")
    module.load_state_dict(fitting, strict=False)


def check_source(source: str, place: str = "[encoder] weights") -> None:
    """Raises CheckpointError for the path of a file or of a run that is not here.  Nothing is read; names are for those who know the library's."""
    path = Path() if source.startswith("timm:") else expand(source, place, RecipeError)
    if _is_path(path) and not _tensors_of(path).is_file():
        raise _not_there(source, place)


def trained_options(source: str, use: str) -> Mapping[str, Any]:
    """Options in [encoder] of the run whose folder, or whose checkpoint's, `source` is, where its part is `use`; nothing of any other source.

    For options that no tensor tells of, such as fixed positions.
    """
    path = Path(source).expanduser()
    file = next((file for folder in (path, path.parent.parent) if (file := folder / "recipe.toml").is_file()), None)
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8")) if file and path.is_dir() else {}
    except (OSError, ValueError):  # of a damaged run, whose weights are read next
        return {}
    encoder = table.get("encoder", {})
    return encoder if isinstance(encoder, Mapping) and encoder.get("use") == use else {}


def _read(source: str, named: Mapping[str, Callable[[], State]], place: str) -> State:
    if source in named:
        return _fetch(named[source], f"{place} = {source!r}")
    if source.startswith("timm:"):
        return _timm(source.removeprefix("timm:"), place)
    path = _of_a_run(expand(source, place, RecipeError))
    if not path.is_file():
        if _is_path(path):
            raise _not_there(source, place)
        raise RecipeError(f"{place}: no weights have the name {source!r}.{closest(source, named)} Or write a file, a run's folder, or timm:NAME.")
    return _file(path, f"{place} = {source!r}")


def _renamed(state: State, starts: Mapping[str, str]) -> State:
    """The tensors whose names have one of the `starts`, by the module's names; all of them as they are where none has."""
    bare = {name.removeprefix(f"{first}.") if (first := name.partition(".")[0]) in WRAPPERS else name: value for name, value in state.items()}
    found = {ours + name.removeprefix(start): value for name, value in bare.items() for start, ours in starts.items() if name.startswith(start)}
    return found or state


def _is_path(path: Path) -> bool:
    """Whether no library publishes weights of such a name."""
    return path.suffix in FILES or len(path.parts) > 1


def _not_there(source: str, place: str) -> CheckpointError:
    return CheckpointError(f"{place} = {source!r}: there is no such file. Write a run's folder, or a file that ends in {', '.join(FILES)}.")


def _tensors_of(path: Path) -> Path:
    """The tensors of a run's folder (its newest checkpoint) or of a checkpoint's; any other path as it is."""
    newest = path / "checkpoints" / "latest"
    if newest.is_file():
        path = newest.parent / newest.read_text(encoding="utf-8", errors="replace").strip()
    return path / "model.pt" if path.is_dir() else path


def _of_a_run(path: Path) -> Path:
    """The same, of a checkpoint whose files are whole.  Raises CheckpointError."""
    found = _tensors_of(path)
    if found != path and (found.parent / "meta.json").is_file():
        read_meta(found.parent)
    return found


def _file(path: Path, place: str) -> State:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with path.open("rb") as file:
            if not file.read(2).startswith(SAVED):
                raise CheckpointError(f"{place}: is no file of weights. Give one that torch.save wrote, or a .safetensors file.")
        tree: Any = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as e:  # safetensors, zipfile and torch each raise their own for a damaged file
        why = why_unread(e)
        instead = "Save its state dict alone" if why.startswith("holds") else f"Is it a whole {path.suffix} file?"
        raise CheckpointError(f"{place}: {why}. {instead}{'' if instead.endswith('?') else '.'}") from None
    state = dict(_flat(tree)) if isinstance(tree, Mapping) else {}
    if not state:
        raise CheckpointError(f"{place}: holds no tensors by name. Save the state dict of a module, bare or under one of {', '.join(WRAPPERS)}.")
    return state


def _flat(tree: Mapping[Any, Any], prefix: str = "", depth: int = DEPTH) -> Iterator[tuple[str, Tensor]]:
    """Tensors by dotted name: `teacher.backbone.cls_token` of tables in tables."""
    for name, value in tree.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(name, str) and isinstance(value, Mapping) and depth:
            yield from _flat(value, f"{prefix}{name}.", depth - 1)


def _timm(name: str, place: str) -> State:
    timm = import_timm()

    known = timm.list_models(pretrained=True)
    if name not in known and name not in timm.list_models():
        raise RecipeError(f"{place}: timm has no weights {name!r}.{closest(name, difflib.get_close_matches(name, known, n=5))}")
    with torch.random.fork_rng(devices=[]):  # building it draws random numbers; the heads' start must not depend on that
        return _fetch(lambda: timm.create_model(name, pretrained=True).state_dict(), f"{place} = 'timm:{name}'")


def _fetch(get: Callable[[], State], place: str) -> State:
    try:
        return get()
    except Exception as e:  # whatever the library's downloader raises
        raise CheckpointError(f"{place}: cannot be fetched: {_line(e)}. Is there a network? A file on this machine works without.") from None


def _strip(state: State, own: State, key: str, place: str) -> State:
    """The tensors of one encoder in `state`, by the names of `own`: of several that which `key` chooses, or online before target."""
    anchor = next(iter(own))
    prefixes = [k.removesuffix(anchor) for k in state if k == anchor or k.endswith("." + anchor)]
    count = {p: sum(p + k in state for k in own) for p in prefixes}
    best = [p for p in prefixes if count[p] == max(count.values())]
    if key:
        chosen = [p for p in best if f".{key}." in f".{p}"]
        if not chosen:
            there = ", ".join(p.rstrip(".") or "one without a name" for p in best) or "none"
            raise CheckpointError(f"{place}: holds no encoder under {key!r}. There is: {there}.")
        best = chosen
    for wanted in ("online", *WRAPPERS):
        best = [p for p in best if (p.partition(".")[0] == wanted if wanted in WRAPPERS else wanted in p.split("."))] or best
    if len(best) > 1:
        several = ", ".join(p.rstrip(".") or "one without a name" for p in best)
        words = [p.split(".") for p in best]
        apart = [next((w for w in mine if all(w not in other for other in words if other is not mine)), "") for mine in words]
        choices = " or ".join(f"weights_key = {word!r}" for word in apart if word)
        raise CheckpointError(f"{place}: holds several encoders: {several}. Choose one: {choices or 'save the one that you mean alone'}.")
    prefix = best[0] if best else ""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _sees_images(kernel: Tensor, own: Tensor, channels: int) -> bool:
    """Whether a kernel of three channels [O, 3, h, w] stands where the module has one of `channels`."""
    return channels != 3 and kernel.ndim == 4 and kernel.shape[1] == 3 and own.shape == (len(kernel), channels, *kernel.shape[2:])


def _of_channels(kernel: Tensor, channels: int) -> Tensor:
    """[O, 3, h, w] -> [O, channels, h, w], as timm does: the sum for one channel; else red, green, blue, red, ... scaled by 3 / channels."""
    if channels == 1:
        return kernel.sum(1, keepdim=True)
    return kernel.repeat(1, -(-channels // 3), 1, 1)[:, :channels] * (3 / channels)


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
