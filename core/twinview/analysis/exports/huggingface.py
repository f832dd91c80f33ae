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
from twinview.analysis.own_files import marked, refuse_others
from twinview.analysis.report.runs import RunInfo
from twinview.analysis.targets import Target
from twinview.errors import CheckpointError, TwinviewError
from twinview.files import files_for, write_atomic, write_text
from twinview.published import odd_options
from twinview.values import Size
from twinview.version import __version__

FILES = ("config.json", "model.safetensors", "preprocessor_config.json", "README.md")


def to_huggingface(target: Target, out: Path, size: Size, license: str = "") -> Exported:
    """Write `config.json`, `model.safetensors`, `preprocessor_config.json` and a model card to the folder `out`.

    The network is named as timm names it, whose folders transformers reads too (TimmWrapperModel).  Raises CheckpointError where timm builds none,
    or loads another one back.
    """
    from safetensors.torch import save

    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out}: is a file, and a folder is written. Name another place.")
    _refuse_others(out)
    name, arguments, tensors = timm_network(target, size)
    transform, spec = target.transform, cast(Any, target.encoder.spec)
    form = {
        "input_size": [transform.channels, *size], "mean": list(transform.mean), "std": list(transform.std), "interpolation": "bilinear",
        "crop_pct": 1.0, "crop_mode": "center", "fixed_input_size": False, "num_classes": 0, "pool_size": None, "first_conv": None,
        "classifier": None,
    }  # fmt: skip
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items() if key != "num_classes"}
    config = {
        "architecture": name, "num_classes": 0, "num_features": spec.pooled, "global_pool": arguments.get("global_pool", "avg"),
        "model_args": plain, "pretrained_cfg": form,
    }  # fmt: skip
    if not config["model_args"]:
        del config["model_args"]
    metadata = {"format": "pt", "twinview": __version__}
    with files_for(out) as place:
        with write_atomic(place / "model.safetensors") as file:
            file.write(save({key: value.detach().contiguous().clone() for key, value in tensors.items()}, metadata=metadata))
        write_text(place / "config.json", json.dumps(config, indent=2) + "\n")
        write_text(place / "preprocessor_config.json", json.dumps(preprocessor(target, size), indent=2) + "\n")
        write_text(place / "README.md", card(target, name, license))
        checked, notes = _check(target, place, size)
    code = (
        "import timm, transformers", f"model = transformers.AutoModel.from_pretrained({str(out)!r})",
        f"model = timm.create_model('local-dir:{out}', pretrained=True)",
    )  # fmt: skip
    return Exported(paths=tuple(out / file for file in FILES), code=code, checked=checked, notes=notes)


def timm_network(target: Target, size: Size) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """timm's name of the encoder, the arguments that it is made with, and its tensors.  Raises CheckpointError where timm has none."""
    found = published(target, size)
    named = re.fullmatch(r"(?:timm\.create_model\('(\w+)'(?:, )?(.*)\)|torchvision\.models\.(\w+)\(()\))", found.load) if found else None
    if found is None or not named:
        what = f"timm has no network that is this encoder, {target.use}{odd_options(target.encoder)}"
        raise CheckpointError(f"to=huggingface: {what}. Write to=onnx or safetensors.")
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


def _refuse_others(out: Path) -> None:
    """Raises CheckpointError where the folder holds such files of somebody else's: the model card tells, or the tensors where there is none."""
    tells = next((out / name for name in ("README.md", "model.safetensors") if (out / name).exists()), out)
    own = marked(tells)
    refuse_others("twinview export", sorted([out / name for name in FILES], key=lambda path: path != tells), lambda _: own, CheckpointError)


def _refused(why: str) -> CheckpointError:
    return CheckpointError(f"to=huggingface: {why}. Nothing is kept. Write to=onnx or safetensors.")


def _check(target: Target, out: Path, size: Size) -> tuple[Checked, tuple[str, ...]]:
    """Load the folder by timm, and by transformers where it is installed, offline.  Raises CheckpointError where they give other features."""
    import timm

    shown, said = trials(target, [size])
    images, own = shown[0].images, shown[0].own.at("pooled")
    with torch.no_grad():
        by = installed("timm")
        try:
            model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
            theirs = model(images)
        except Exception as e:  # whatever timm raises for options and tensors that are not its own
            raise _refused(f"{by} does not load this {target.use}: {' '.join(str(e).split())[:200].rstrip('.')}") from None
        try:
            worst, scale = difference([(own, theirs)])
        except ValueError as e:
            raise _refused(f"{by} loads it back with {e}") from None
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
    return Checked(by, worst, scale, said).judged("huggingface"), notes
