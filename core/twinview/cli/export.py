"""`twinview export`."""
from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from twinview.cli.commands import Commands, command
from twinview.cli.sizes import size_of
from twinview.errors import TwinviewError
from twinview.paths import expand
from twinview.terminal import answer

if TYPE_CHECKING:
    from twinview.analysis.export import Export
    from twinview.analysis.exports.common import Exported
    from twinview.values import Size

NAMED = ("timm", "torchvision", "torch", "safetensors")  # a .safetensors file under names of that library
OTHERS = {  # their suffixes; "": a folder
    "huggingface": "", "onnx": ".onnx", "torchscript": ".pt", "detectron2": ".pkl", "mmdet": ".pth", "mmseg": ".pth",
}  # fmt: skip


def add(commands: Commands) -> None:
    """Add `export` to the command line."""
    made = command(commands, "export", export, "write a run's encoder as another library loads it, load it back and compare")
    made.add_argument("run", metavar="RUN", help="the folder that `twinview train` wrote")
    made.add_argument("out", metavar="OUT", help="the file (.safetensors, .onnx, .pt, .pkl, .pth), of huggingface a folder")
    made.add_argument("--to", choices=[*NAMED, *OTHERS], help="who loads it (default: the library that the encoder comes from; torch: its own names)")
    made.add_argument("--size", metavar="H|HxW", help="pixels of the images that positions are made for (default: the first view's)")
    made.add_argument("--step", metavar="N", type=int, help="the checkpoint of this step (default: the last)")
    made.add_argument("--branch", choices=["online", "target"], default="online", help="(default: online)")
    made.add_argument("--license", metavar="NAME", default="", help="of huggingface: what the model card says, for example apache-2.0")
    made.add_argument("--json", action="store_true", help="say what came of it as JSON")


def export(args: argparse.Namespace) -> None:
    """Write a run's encoder, and say how it is loaded and how far what was loaded is from it."""
    size = size_of(args.size) if args.size else None
    run, out = expand(args.run, "RUN"), expand(args.out, "OUT")
    if args.license and args.to != "huggingface":
        raise TwinviewError("--license: is of --to huggingface. Leave it out.")
    if args.to not in OTHERS:
        from twinview.analysis.export import export_encoder

        made = export_encoder(run, out, to="" if args.to in (None, "safetensors") else args.to, size=size, step=args.step, branch=args.branch)
        said = {"files": [str(made.path), str(made.metadata)], "code": loading(made)[3:], "library": made.published.library}
        answer(json.dumps(said) if args.json else "\n".join(loading(made)))
        return
    found = _other(args, run, out, size)
    check = found.checked
    if args.json:
        number = check.difference if check.by else None
        checked = {**check._asdict(), "difference": number}
        answer(json.dumps({"files": [str(p) for p in found.paths], "code": list(found.code), "checked": checked, "notes": list(found.notes)}))
        return
    lines = [*(f"{'written' if n == 0 else '':<11} {path}" for n, path in enumerate(found.paths)), f"checked     {check.text()}"]
    answer("\n".join([*lines, *(f"note        {note}" for note in found.notes), "", *found.code]))


def _other(args: argparse.Namespace, run: Path, out: Path, size: Size | None) -> Exported:
    """An export that is no plain .safetensors file."""
    if out.suffix != OTHERS[args.to] and OTHERS[args.to]:
        raise TwinviewError(f"{out}: is no name for the file. Write one that ends in {OTHERS[args.to]}.")
    if not OTHERS[args.to] and out.suffix in (*OTHERS.values(), ".safetensors") and out.suffix:
        raise TwinviewError(f"{out}: is the name of a file, and --to {args.to} writes a folder. Write its name.")
    from twinview.analysis.targets import find_target

    target = find_target(run, step=args.step, branch=args.branch)
    made_for = size or target.transform.size
    out.parent.mkdir(parents=True, exist_ok=True)
    if args.to == "huggingface":
        from twinview.analysis.exports.huggingface import to_huggingface

        return to_huggingface(target, out, made_for, args.license)
    if args.to in ("onnx", "torchscript"):
        from twinview.analysis.exports.graphs import to_onnx, to_torchscript

        return (to_onnx if args.to == "onnx" else to_torchscript)(target, out, made_for)
    from twinview.analysis.exports.detection import to_detectron2, to_mm

    return to_detectron2(target, out, made_for) if args.to == "detectron2" else to_mm(target, out, made_for, args.to)


def loading(export: Export) -> list[str]:
    """What was written, and the Python that reads it."""
    published = export.published
    lines = [f"tensors     {export.path}", f"about       {export.metadata}", ""]
    lines += ["from safetensors.torch import load_file", f"tensors = load_file({str(export.path)!r})"]
    if published.load:
        lines += [f"import {published.library}", f"model = {published.load}"]
        lines += [f"model.load_state_dict(tensors{'' if published.strict else ', strict=False'})"]
    return lines
