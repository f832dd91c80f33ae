"""Other libraries on the work of `loader_speed.py`: decode a JPEG, two crops of 224 px with BYOL's photometry, a batch of arrays.

augrs, albumentations and dali are put together by hand to do BYOL's photometry as nearly as each can; lightly and lightly_train are what they ship.
"""
from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

SIDE, BATCH = 224, 32
Make = Callable[[Sequence[int]], Any]
BLUR, SOLARIZE = (1.0, 0.1), (0.0, 0.2)  # chances, by view


def jpeg(data: bytes) -> Tensor:
    decoded: Tensor = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    return decoded


def interleaved(data: bytes) -> Any:
    """[H, W, 3], by simplejpeg where it is installed."""
    try:
        return import_module("simplejpeg").decode_jpeg(data)
    except ImportError:
        return jpeg(data).permute(1, 2, 0).numpy()


def decode_batches(files: list[bytes]) -> Make:
    return lambda places: [jpeg(files[i]) for i in places]


def simplejpeg_batches(files: list[bytes]) -> Make:
    decode = import_module("simplejpeg").decode_jpeg
    return lambda places: [decode(files[i]) for i in places]


def by_image(files: list[bytes], views: Sequence[Callable[..., Any]]) -> Make:
    """Of transforms that are called as albumentations' are; planes at the end, as a network takes them."""

    def make(places: Sequence[int]) -> Any:
        images = [interleaved(files[i]) for i in places]
        return [torch.from_numpy(np.stack([view(image=image)["image"] for image in images])).permute(0, 3, 1, 2).contiguous() for view in views]

    return make


def augrs_batches(files: list[bytes]) -> Make:
    """Without solarisation, which it does not have."""
    a = import_module("augrs")

    def view(v: int) -> Callable[..., Any]:
        made: Callable[..., Any] = a.Compose([
            a.RandomResizedCrop(size=(SIDE, SIDE), scale=(0.08, 1.0)), a.HorizontalFlip(p=0.5),
            a.ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8), a.ToGray(p=0.2), a.GaussianBlur(blur_limit=(3, 15), sigma_limit=(0.1, 2.0), p=BLUR[v]),
        ])
        return made

    return by_image(files, [view(0), view(1)])


def albumentations_batches(files: list[bytes]) -> Make:
    """Its resize is not antialiased, and its blur has a kernel of 15 pixels."""
    a = import_module("albumentations")
    import_module("cv2").setNumThreads(0)

    def view(v: int) -> Callable[..., Any]:
        crop = a.RandomResizedCrop(SIDE, SIDE, scale=(0.08, 1.0)) if a.__version__ < "1.4" else a.RandomResizedCrop(size=(SIDE, SIDE))
        made: Callable[..., Any] = a.Compose([
            crop, a.HorizontalFlip(p=0.5), a.ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8), a.ToGray(p=0.2),
            a.GaussianBlur(blur_limit=(15, 15), sigma_limit=(0.1, 2.0), p=BLUR[v]), a.Solarize(p=SOLARIZE[v]),
        ])
        return made

    return by_image(files, [view(0), view(1)])


def dali_batches(files: list[bytes]) -> Make:
    """On the CPU, one thread; its clock is the process's, which counts its threads."""
    fn, types = import_module("nvidia.dali.fn"), import_module("nvidia.dali.types")
    pipeline = import_module("nvidia.dali").pipeline_def
    wanted: list[int] = []

    def source() -> list[Any]:
        return [np.frombuffer(files[i], np.uint8) for i in wanted]

    @pipeline(  # type: ignore[untyped-decorator, unused-ignore]
        batch_size=BATCH, num_threads=1, device_id=None, prefetch_queue_depth=1, exec_async=False, exec_pipelined=False
    )
    def graph() -> Any:
        decoded = fn.decoders.image(fn.external_source(source=source, batch=True), device="cpu", output_type=types.RGB)
        out = []
        for v in range(2):
            x = fn.random_resized_crop(decoded, size=(SIDE, SIDE), random_area=(0.08, 1.0), antialias=True)
            jitter, grey = fn.random.coin_flip(probability=0.8), fn.random.coin_flip(probability=0.2)
            x = fn.color_twist(
                x, brightness=1 + jitter * fn.random.uniform(range=(-0.4, 0.4)), contrast=1 + jitter * fn.random.uniform(range=(-0.4, 0.4)),
                saturation=(1 - grey) * (1 + jitter * fn.random.uniform(range=(-0.2, 0.2))), hue=jitter * fn.random.uniform(range=(-36.0, 36.0)),
            )
            blur = fn.random.coin_flip(probability=BLUR[v])
            x = fn.gaussian_blur(x, sigma=blur * fn.random.uniform(range=(0.1, 2.0)) + (1 - blur) * 0.05, window_size=15)
            x = fn.crop_mirror_normalize(x, dtype=types.UINT8, output_layout="CHW", mirror=fn.random.coin_flip(), mean=[0.0] * 3, std=[1.0] * 3)
            out.append(x)
        return tuple(out)

    built = graph()
    built.build()

    def make(places: Sequence[int]) -> Any:
        wanted[:] = places
        return [np.array(view.as_array()) for view in built.run()]

    make(list(range(BATCH)))
    return make


def lightly_batches(files: list[bytes]) -> Make:
    transform = import_module("lightly.transforms").BYOLTransform()

    def make(places: Sequence[int]) -> Any:
        made = [transform(Image.open(io.BytesIO(files[i])).convert("RGB")) for i in places]
        return [torch.stack([pair[v] for pair in made]) for v in range(2)]

    return make


def lightly_train_batches(files: list[bytes]) -> Make:
    simclr = import_module("lightly_train._methods.simclr.simclr_transform")
    args = simclr.SimCLRTransformArgs()
    args.resolve_auto()
    args.resolve_incompatible()
    transform = simclr.SimCLRTransform(args)

    def make(places: Sequence[int]) -> Any:
        made = [transform({"image": jpeg(files[i]).permute(1, 2, 0).numpy()}) for i in places]
        return [torch.stack([pair[v]["image"] for pair in made]) for v in range(2)]

    return make


RIVALS: dict[str, Callable[[list[bytes]], Make]] = {
    "decode_jpeg": decode_batches, "simplejpeg": simplejpeg_batches, "augrs": augrs_batches, "albumentations": albumentations_batches,
    "dali": dali_batches, "lightly_train": lightly_train_batches, "lightly": lightly_batches,
}
DISTRIBUTIONS = {  # of each
    "simplejpeg": "simplejpeg", "augrs": "augrs-py", "albumentations": "albumentations", "dali": "nvidia-dali-cuda130",
    "lightly_train": "lightly-train", "lightly": "lightly",
}
