"""Files that detectron2, mmdet and mmseg take as the weights of a backbone."""
from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinview.analysis.exports.common import Checked, Exported, installed, published, refuse_others_at, resnet_of
from twinview.analysis.targets import Target
from twinview.errors import CheckpointError
from twinview.files import write_atomic
from twinview.values import Size

BLOCK = re.compile(r"layer(\d)\.(\d+)\.(.*)")
NOT_RUN = "keys and shapes follow the library's own layout, and no forward pass was compared: {} is not installed here"


def to_detectron2(target: Target, out: Path, size: Size) -> Exported:
    """A .pkl file for `cfg.MODEL.WEIGHTS`, of a ResNet: its keys are detectron2's own, arrays are NumPy's.  Raises CheckpointError."""
    refuse_others_at(out)
    name, tensors, dilated = resnet_of(target, size, "detectron2")
    depth, (groups, width) = _depth(name), _groups(name)
    if depth < 50 and any(dilated):
        raise CheckpointError(f"to=detectron2: its ResNet-{depth} has no dilation. Write to=safetensors, or train with encoder.stride = 32.")
    model = {detectron2_key(key): value.numpy() for key, value in tensors.items() if not key.endswith("num_batches_tracked")}
    checked = _same_tensors(model, tensors, detectron2_key, "detectron2")
    with write_atomic(out) as file:
        pickle.dump({"model": model, "__author__": "twinview", "matching_heuristics": True}, file, protocol=2)
    mean, std = ([round(255 * x, 3) for x in numbers] for numbers in (target.transform.mean, target.transform.std))
    code = (
        f"cfg.MODEL.WEIGHTS = {str(out)!r}", f"cfg.MODEL.RESNETS.DEPTH = {depth}", "cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False",
        'cfg.INPUT.FORMAT = "RGB"', f"cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = {mean}, {std}",
        *(["cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64"] if depth < 50 else []),
        *([f"cfg.MODEL.RESNETS.NUM_GROUPS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = {groups}, {width}"] if (groups, width) != (1, 64) else []),
        *([f"cfg.MODEL.RESNETS.RES5_DILATION = 2  # of the stages 3 to 5 {dilated} are dilated"] if any(dilated) else []),
    )  # fmt: skip
    return Exported(paths=(out,), code=code, checked=checked)


def detectron2_key(key: str) -> str:
    """torchvision's name of a ResNet's tensor -> detectron2's: `layer2.0.bn1.weight` -> `res3.0.conv1.norm.weight`."""
    found = BLOCK.fullmatch(key)
    head, rest = (f"res{int(found[1]) + 1}.{found[2]}.", found[3]) if found else ("stem.", key)
    rest = re.sub(r"^bn(\d)\.", r"conv\1.norm.", rest)
    rest = rest.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
    return head + rest


def to_mm(target: Target, out: Path, size: Size, to: str) -> Exported:
    """A .pth file for `init_cfg` of mmdet's and mmseg's ResNet, and of mmseg's VisionTransformer.  Raises CheckpointError."""
    refuse_others_at(out)
    found = published(target, size)
    key: Callable[[str], str]
    if to == "mmseg" and found is not None and found.library == "timm" and "blocks.0.attn.qkv.weight" in found.tensors:
        tensors: Mapping[str, Tensor] = found.tensors
        key, kind, more = mmseg_vit_key, "VisionTransformer", _vit_options(tensors, size)
    else:
        name, tensors, dilated = resnet_of(target, size, to)
        strides = ", ".join("1" if d else "2" for d in dilated)
        more = f", depth={_depth(name)}, style='pytorch'" + (f", strides=(1, {strides})" if any(dilated) else "")
        key, kind, (groups, width) = str, "ResNet", _groups(name)
        if groups > 1:
            kind, more = "ResNeXt", f"{more}, groups={groups}, base_width={width}"
        elif width != 64:
            raise CheckpointError(f"to={to}: its ResNet has no wide form, as {name} is one. Write to=safetensors or onnx.")
    state = {f"backbone.{key(name)}": value.detach().clone() for name, value in tensors.items()}
    checked = _same_tensors(state, tensors, lambda k: f"backbone.{key(k)}", "mmdet" if to == "mmdet" else "mmsegmentation")
    with write_atomic(out) as file:
        torch.save({"meta": {"twinview": target.described["encoder"]}, "state_dict": state}, file)
    mean, std = ([round(255 * x, 3) for x in numbers] for numbers in (target.transform.mean, target.transform.std))
    code = (
        f"backbone=dict(type={kind!r}{more}, init_cfg=dict(type='Pretrained', checkpoint={str(out)!r}, prefix='backbone.'))",
        f"data_preprocessor=dict(mean={mean}, std={std}, bgr_to_rgb=True)",
    )
    return Exported(paths=(out,), code=code, checked=checked)


def mmseg_vit_key(key: str) -> str:
    """timm's name of a plain vision transformer's tensor -> that of mmseg's VisionTransformer."""
    key = re.sub(r"^blocks\.", "layers.", key).replace("patch_embed.proj.", "patch_embed.projection.")
    key = re.sub(r"\.norm(\d)\.", r".ln\1.", key)
    key = re.sub(r"\.attn\.qkv\.(weight|bias)$", r".attn.attn.in_proj_\1", key).replace(".attn.proj.", ".attn.attn.out_proj.")
    key = key.replace(".mlp.fc1.", ".ffn.layers.0.0.").replace(".mlp.fc2.", ".ffn.layers.1.")
    return re.sub(r"^norm\.", "ln1.", key)


def _vit_options(tensors: Mapping[str, Tensor], size: Size) -> str:
    odd = next((name for name in tensors if re.search(r"\.ls\d\.|reg_token|q_norm|norm_pre", name)), "")
    if odd or "cls_token" not in tensors:
        raise CheckpointError(f"to=mmseg: its VisionTransformer has no {odd or 'network without cls_token'}. Write to=timm.")
    width, depth = tensors["patch_embed.proj.weight"].shape[0], len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    patch, ratio = tensors["patch_embed.proj.weight"].shape[-1], tensors["blocks.0.mlp.fc1.weight"].shape[0] / width
    final = "norm.weight" in tensors
    return f", img_size={size}, patch_size={patch}, embed_dims={width}, num_layers={depth}, mlp_ratio={ratio:g}, final_norm={final}, num_heads=..."


def _same_tensors(written: Mapping[str, Any], tensors: Mapping[str, Tensor], key: Any, package: str) -> Checked:
    """Every number to be written is the encoder's; the library itself is not run.  Raises CheckpointError."""
    for name, value in tensors.items():
        if key(name) in written and not torch.equal(torch.as_tensor(written[key(name)]), value):
            raise CheckpointError(f"{key(name)}: has other numbers than the encoder's {name}. Nothing is kept. Write to=safetensors.")
    said = NOT_RUN.format(package) if not installed(package) else f"{installed(package)} is installed, and was not asked: build the model to be sure"
    return Checked("", float("nan"), 0.0, said)


def _depth(name: str) -> int:
    found = re.search(r"\d+", name)
    return int(found[0]) if found else 0


def _groups(name: str) -> tuple[int, int]:
    """Groups of the middle convolutions and the width of each at 64 channels: of resnext50_32x4d 32 and 4, of wide_resnet50_2 1 and 128."""
    grouped, wide = re.search(r"_(\d+)x(\d+)d$", name), name.startswith("wide_resnet")
    return (int(grouped[1]), int(grouped[2])) if grouped else (1, 128 if wide else 64)
