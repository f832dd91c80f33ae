"""A folder as the Hugging Face hub has them: `AutoModel` of transformers and `timm.create_model("local-dir:...")` both load it."""
from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from twinview.analysis.exports.common import Checked, Exported, difference, installed, published, trials
from twinview.analysis.report.runs import RunInfo
from twinview.analysis.targets import Target
from twinview.errors import CheckpointError, TwinviewError
from twinview.files import write_atomic, write_text
from twinview.values import Size
from twinview.version import __version__


def to_huggingface(target: Target, out: Path, size: Size, license: str = "") -> Exported:
    """Write `config.json`, `model.safetensors`, `preprocessor_config.json` and a model card to the folder `out`.

    The network is named as timm names it, whose folders transformers reads too (TimmWrapperModel).  Raises CheckpointError where timm builds none.
    """
    from safetensors.torch import save

    name, arguments, tensors = timm_network(target, size)
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out}: is a file, and a folder is written. Name another place.")
    out.mkdir(parents=True, exist_ok=True)
    transform, spec = target.transform, cast(Any, target.encoder.spec)
    form = {
        "input_size": [transform.channels, *size], "mean": list(transform.mean), "std": list(transform.std), "interpolation": "bilinear",
        "crop_pct": 1.0, "crop_mode": "center", "fixed_input_size": False, "num_classes": 0, "pool_size": None, "first_conv": None,
        "classifier": None,
    }  # fmt: skip
    pool = arguments.pop("global_pool", "avg")
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items() if key != "num_classes"}
    config = {
        "architecture": name, "num_classes": 0, "num_features": spec.pooled, "global_pool": pool, "model_args": plain, "pretrained_cfg": form,
    }  # fmt: skip
    if not config["model_args"]:
        del config["model_args"]
    with write_atomic(out / "model.safetensors") as file:
        file.write(save({key: value.detach().contiguous().clone() for key, value in tensors.items()}, metadata={"format": "pt"}))
    write_text(out / "config.json", json.dumps(config, indent=2) + "\n")
    write_text(out / "preprocessor_config.json", json.dumps(preprocessor(target, size), indent=2) + "\n")
    write_text(out / "README.md", card(target, name, license))
    checked, notes = _check(target, out, size)
    code = (
        "import timm, transformers", f"model = transformers.AutoModel.from_pretrained({str(out)!r})",
        f"model = timm.create_model('local-dir:{out}', pretrained=True)",
    )  # fmt: skip
    paths = tuple(out / file for file in ("config.json", "model.safetensors", "preprocessor_config.json", "README.md"))
    return Exported(paths=paths, code=code, checked=checked, notes=notes)


def timm_network(target: Target, size: Size) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """timm's name of the encoder, the arguments that it is made with, and its tensors.  Raises CheckpointError where timm has none."""
    found = published(target, size)
    named = re.fullmatch(r"(?:timm\.create_model\('(\w+)'(?:, )?(.*)\)|torchvision\.models\.(\w+)\(()\))", found.load) if found else None
    if found is None or not named:
        raise CheckpointError(f"to=huggingface: timm has no network that is this encoder, {target.use}. Write to=onnx or safetensors.")
    call = ast.parse(f"f({named[2] or ''})", mode="eval").body
    assert isinstance(call, ast.Call)
    arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}
    return named[1] or named[3], arguments, dict(found.tensors)


def preprocessor(target: Target, size: Size) -> dict[str, Any]:
    """As `AutoImageProcessor` reads it."""
    return {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": size[0], "width": size[1]}, "resample": 2,
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": list(target.transform.mean), "image_std": list(target.transform.std),
    }  # fmt: skip


def card(target: Target, name: str, license: str) -> str:
    """The model card: what it is, what it was trained on and how, what it scored."""
    tags = ["tags:", "- image-feature-extraction", "- timm", "- self-supervised"]
    head = ["---", "library_name: timm", *([f"license: {license}"] if license else []), *tags, "---"]
    lines = [*head, "", f"# {name}, pre-trained with twinview {__version__}", ""]
    if target.run is not None:
        run = RunInfo(target.run)
        data = run.manifest.get("data", {})
        versions = run.sittings[-1].get("versions", {}) if run.sittings else {}
        methods = run.manifest.get("methods", {})
        lines += [
            f"- recipe: `{run.recipe}`, seed {run.seed}, step {target.described.get('step', '?')} of {run.steps or '?'}",
            f"- data: {data.get('images', '?')} images, checksum `{data.get('checksum', '?')}`",
            f"- made with: {', '.join(f'{k} {v}' for k, v in versions.items()) or '?'}",
            f"- methods: {', '.join(f'{k} ({v})' for k, v in methods.items()) or '?'}",
        ]
        if run.scores:
            lines += ["", "| score | |", "|---|---|", *(f"| {k} | {v:.2f} |" for k, v in run.scores.items())]
        import tomli_w

        lines += ["", "## Recipe", "", "```toml", tomli_w.dumps(run.table).rstrip(), "```"]
    size, mean, std = target.transform.size, list(target.transform.mean), list(target.transform.std)
    lines += ["", "## Use", "", f"Images of {size[0]}x{size[1]} pixels, scaled to 0..1, mean {mean}, deviation {std}."]
    lines += ["", "License: " + (license or "not said; ask whoever trained it, and mind the terms of the images.")]
    return "\n".join(lines) + "\n"


def _check(target: Target, out: Path, size: Size) -> tuple[Checked, tuple[str, ...]]:
    """Load the folder by timm, and by transformers where it is installed, offline."""
    import timm

    shown, said = trials(target, [size])
    images, own = shown[0].images, shown[0].own.at("pooled")
    with torch.no_grad():
        model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
        worst, scale = difference([(own, model(images))])
        by = installed("timm")
        notes: tuple[str, ...] = ("transformers is not installed: its AutoModel was not asked",)
        if installed("transformers"):
            try:
                from transformers import AutoModel

                theirs = AutoModel.from_pretrained(str(out), local_files_only=True).eval()(pixel_values=images).pooler_output
                worst, by, notes = max(worst, difference([(own, theirs)])[0]), f"{by} and {installed('transformers')}", ()
            except TwinviewError:
                raise
            except Exception as e:  # of transformers, whose own words say it best
                notes = (f"{installed('transformers')} does not load it: {' '.join(str(e).split())[:200]}",)
    return Checked(by, worst, scale, said), notes
