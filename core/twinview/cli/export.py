"""`twinview export`."""
from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from twinview.cli.commands import Commands, command
from twinview.errors import TwinviewError
from twinview.paths import expand
from twinview.terminal import answer

if TYPE_CHECKING:
    from twinview.analysis.export import Export
    from twinview.values import Size


def add(commands: Commands) -> None:
    """Add `export` to the command line."""
    made = command(commands, "export", export, "write a run's encoder to a file that timm or torchvision loads")
    made.add_argument("run", metavar="RUN", help="the folder that `twinview train` wrote")
    made.add_argument("out", metavar="OUT", help="the file, .safetensors; a .json beside it says how to load and feed it")
    made.add_argument("--to", choices=["timm", "torchvision", "torch"], help="whose names the tensors have (torch: the encoder's own)")
    made.add_argument("--size", metavar="H|HxW", help="pixels of the images that positions are made for (default: the first view's)")
    made.add_argument("--step", metavar="N", type=int, help="the checkpoint of this step (default: the last)")


def export(args: argparse.Namespace) -> None:
    """Write a run's encoder to a file, and say how it is loaded."""
    size = size_of(args.size) if args.size else None
    from twinview.analysis.export import export_encoder

    answer("\n".join(loading(export_encoder(expand(args.run, "RUN"), expand(args.out, "OUT"), to=args.to or "", size=size, step=args.step))))


def size_of(text: str) -> Size:
    """`224` or `160x240` -> height, width."""
    found = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if not found:
        raise TwinviewError(f"--size: wants HEIGHTxWIDTH in pixels, or one number for both, not {text!r}.")
    return int(found[1]), int(found[2] or found[1])


def loading(export: Export) -> list[str]:
    """What was written, and the Python that reads it."""
    published = export.published
    lines = [f"tensors     {export.path}", f"about       {export.metadata}", ""]
    lines += ["from safetensors.torch import load_file", f"tensors = load_file({str(export.path)!r})"]
    if published.load:
        lines += [f"import {published.library}", f"model = {published.load}"]
        lines += [f"model.load_state_dict(tensors{'' if published.strict else ', strict=False'})"]
    return lines
