"""Images of one channel, of five, of 16 bits: from files to a trained encoder that its library loads; and what does not take them is refused."""
from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import timm
import torch
from PIL import Image
from torch import nn

from twinview import api
from twinview.analysis.export import export_encoder
from twinview.assembly import assemble
from twinview.data.dataset.open import open_shards
from twinview.data.dataset.statistics import with_measured
from twinview.data.loading.views import ViewDataset
from twinview.data.prepare.pack import pack
from twinview.data.writing.writer import Options
from twinview.errors import CheckpointError, PluginError, RecipeError
from twinview.model import LazyStep, Siamese
from twinview.recipe import read
from twinview.values import Progress

TOP = 4095
NO_COLOR = {"use": "byol.photometry", "saturation": 0.0, "hue": 0.0, "grey": 0.0}
RESNET = {"use": "timm.encoder", "name": "test_resnet"}
VIT = {"use": "timm.encoder", "name": "vit_tiny_patch16_224", "patch": 8, "width": 16, "depth": 1, "heads": 2, "img_size": 32, "positions": "sine_row"}


def picture(seed: int, channels: int) -> Any:
    """[C, H, W] uint16 of a 12-bit camera: a bright corner, left or right by the seed, noise, other channels darker."""
    rng = np.random.default_rng(seed)
    pixels = rng.random((channels, 40, 48)) * 400
    pixels[:, :20, 24 * (seed % 2) :][:, :, :24] += 3000
    return (pixels / (1 + np.arange(channels))[:, None, None]).astype(np.uint16)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Twelve images of two classes, as 16-bit grey PNGs, as .npy of five channels and as TIFFs of five pages."""
    root, found = tmp_path_factory.mktemp("channels"), {}
    for kind in ("png", "npy", "tif"):
        for n in range(12):
            path = root / kind / f"class{n % 2}" / f"{n:02}.{kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "png":
                Image.fromarray(picture(n, 1)[0]).save(path)
            elif kind == "npy":
                np.save(path, np.moveaxis(picture(n, 5), 0, 2))
            else:
                tifffile.imwrite(path, picture(n, 5), photometric="minisblack")
        found[kind] = str(pack("imagefolder", str(root / kind), root / f"shards-{kind}", Options()).out)
    return found


def table(shards: str, channels: int, encoder: dict[str, Any] = RESNET, **more: Any) -> dict[str, Any]:
    return {
        "views": {"use": "byol.crops", "size": 32}, "augment": NO_COLOR, "encoder": encoder, "loss": [{"use": "byol.image", "hidden": 8, "channels": 4}],
        "data": {"shards": shards, "channels": channels, "white": TOP, "mean": "shards", "std": "shards", "workers": 0, **more.pop("data", {})},
        "optimizer": {"use": "sgd", "lr": 0.05}, "run": {"steps": 2, "batch_size": 4, "device": "cpu", "log_every": 1}, **more,
    }


@pytest.mark.parametrize(("kind", "channels", "encoder"), [("png", 1, RESNET), ("npy", 5, VIT), ("tif", 5, RESNET), ("png", 3, RESNET)])
def test_from_files_to_an_encoder_that_its_library_loads(packed: dict[str, str], kind: str, channels: int, encoder: dict[str, Any], tmp_path: Path) -> None:
    masks = {"masks": {"use": "masks.random", "ratio": 0.5}} if encoder is VIT else {}
    knn = {"use": "probes.knn", "train": packed[kind], "val": packed[kind], "size": [32, 32], "k": 3, "baselines": ["random", "pixels"]}
    found = api.train(table(packed[kind], channels, encoder, evaluate=[knn], data={"augment_on": "device"}, **masks), run=tmp_path / "run")
    assert np.isfinite(found.loss) and found.scores["knn/pixels/top1"] == 100.0 and (tmp_path / "run" / "pictures" / "views.png").is_file()

    files = np.stack([picture(n, 5 if channels == 5 else 1) for n in range(12)]) / TOP
    resolved, about = read(tmp_path / "run" / "recipe.toml").data, json.loads((tmp_path / "run" / "manifest.json").read_text())["colours"]
    mean, std = resolved.colors()
    assert np.allclose(mean, np.broadcast_to(files.mean((0, 2, 3)), channels), atol=1e-6) and np.allclose(std, files.std((0, 2, 3)), atol=1e-6)
    assert about == {"channels": channels, "white": TOP, "mean": mean, "std": std}

    out = export_encoder(tmp_path / "run", tmp_path / "encoder.safetensors")
    assert ("in_chans=" in out.published.load) == (channels != 3) and json.loads(out.metadata.read_text())["white"] == TOP
    theirs: Any = eval(out.published.load, {"timm": timm})
    theirs.load_state_dict(out.published.tensors, strict=out.published.strict)
    images = torch.randn(2, channels, 32, 32)
    with torch.no_grad():
        own, features = api.load(tmp_path / "run")(images), theirs.eval().forward_features(images)
        assert torch.allclose(features, own.tokens if encoder is VIT else own.cells, atol=1e-5)


def test_a_resumed_run_keeps_its_numbers(packed: dict[str, str], tmp_path: Path) -> None:
    run, recipe, every = tmp_path / "run", table(packed["png"], 1), "run.checkpoint_every=2"
    whole = api.train(recipe, "run.steps=4", every, run=run)
    mean = read(run / "recipe.toml").data.mean
    shutil.rmtree(whole.checkpoint)
    for numbers in ("[0.5]", "[0.09]"):
        with pytest.raises(CheckpointError, match=re.escape(f"data.mean {json.dumps(mean)} -> {numbers}. Write these as they were")):
            api.train(recipe, "run.steps=4", every, f"data.mean={numbers}", run=run, resume=True)
    assert api.train(recipe, "run.steps=4", every, run=run, resume=True).loss == whole.loss
    assert read(run / "recipe.toml").data.mean == mean
    assert [sitting["step"] for sitting in json.loads((run / "manifest.json").read_text())["sittings"]] == [0, 2]


@pytest.mark.parametrize(("kind", "channels"), [("png", 1), ("npy", 5), ("png", 3)])
def test_photometry_in_the_worker_as_on_the_device(packed: dict[str, str], kind: str, channels: int) -> None:
    given = {"augment": {**NO_COLOR, "solarize": [0.5, 0.5]}} if channels != 3 else {"augment": {"use": "byol.photometry", "solarize": [0.5, 0.5]}}
    pixels = []
    for place in ("worker", "device"):
        shards = open_shards(packed[kind])
        recipe = with_measured(read(table(packed[kind], channels, **given, data={"augment_on": place})), shards)
        assembly = assemble(recipe)
        encoder = assembly.encoder()
        dims = assembly.dims(encoder, len(shards), shards.classes)
        assert dims.channels == channels
        batch, _ = ViewDataset(recipe, dims, shards).collate([(0, i) for i in range(12)])
        raw = [view.clone() for view in batch.images]
        assert all(view.dtype == torch.float32 and view.shape == (12, channels, 32, 32) for view in raw)
        step = LazyStep(Siamese(assembly, dims, encoder), batch, Progress(0, 1, 0, 0.0), False)
        pixels.append(torch.stack(list(step.pixels)))
        assert all(torch.equal(a, b) for a, b in zip(raw, batch.images)), "the batch is left as it was"
    assert torch.allclose(pixels[0], pixels[1], atol=1e-4)
    assert len(torch.unique(pixels[0])) > 10_000, "fractions are kept"


# ---- refusals
OTHERS = '''
from twinview.hooks import hookimpl, part
from twinview.values import Traits


@part
class Shift:
    gives: list[str] = []

    @hookimpl
    def traits(self):
        return Traits(gives=frozenset(self.gives))

    @hookimpl
    def draw_augment(self, view, size, rng):
        return {}

    @hookimpl
    def apply_augment(self, pixels, params):
        return pixels


@hookimpl
def parts():
    return {"shift": Shift}
'''


def test_parts_that_take_three_channels_of_8_bits_are_refused_at_assembly(toy: dict[str, Any], install: Callable[..., None]) -> None:
    install("others", OTHERS, "twinview_others")
    grey = {"shards": "none.tar", "channels": 1, "mean": [0.5], "std": [0.2]}
    deep = {**grey, "channels": 3, "mean": [0.5] * 3, "std": [0.2] * 3, "white": TOP}
    faults: list[tuple[dict[str, Any], str]] = [
        ({"data": grey}, "[encoder] toy.encoder: does not go with [data] channels = 1: it takes 3. Choose another part."),
        ({"data": grey, "encoder": RESNET, "augment": {"use": "others.shift", "gives": ["deep"]}}, "[augment] others.shift: does not go with [data] channels = 1: it takes 3."),
        ({"data": deep, "augment": {"use": "others.shift"}}, "[augment] others.shift: does not go with [data] white = 4095: it takes images of 8 bits."),
        ({"data": grey, "encoder": RESNET, "augment": {**NO_COLOR, "hue": 0.1}},
         "[augment] byol.photometry: does not go with [data] channels = 1: it takes 3. Write saturation = 0.0, hue = 0.0, grey = 0.0, which are of red, green and blue."),
        ({"data": {**grey, "mean": [0.5, 0.5]}}, '[data] mean: wants one number, as there is one channel ([data] channels = 1), not [0.5, 0.5]. Write them, or mean = "shards".'),
        ({"data": {"shards": "none.tar", "channels": 5}}, "[data] mean: wants a number for each channel ([data] channels = 5), not [0.485, 0.456, 0.406]."),
    ]  # fmt: skip
    for change, said in faults:
        with pytest.raises(RecipeError, match=re.escape(said)) as caught:
            assemble(read({**toy, **change}))
        assert "\n" not in str(caught.value)
    assert assemble(read({**toy, "data": grey, "encoder": RESNET, "augment": NO_COLOR})).recipe.data.channels == 1
    assert assemble(read({**toy, "data": deep, "augment": {"use": "others.shift", "gives": ["deep"]}})).recipe.data.white == TOP
    with pytest.raises(PluginError, match="Did you mean 'any_channels'"):
        assemble(read({**toy, "augment": {"use": "others.shift", "gives": ["any_chanels"]}}))


def test_an_encoder_without_photometry_needs_nothing_of_it(packed: dict[str, str]) -> None:
    recipe = {key: value for key, value in table(packed["tif"], 5, {"use": "torchvision.resnet"}).items() if key != "augment"}
    encoder: nn.Module = assemble(read(recipe)).encoder()
    assert encoder(torch.randn(2, 5, 32, 32)).pooled.shape == (2, 512)


def test_the_recipe_of_the_docs(packed: dict[str, str], tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    (block,) = [block for block in re.findall(r"```toml\n(.*?)```", text, re.S) if "white" in block]
    small = ["views.size=32", "encoder.name=test_resnet", "loss.0.hidden=8", "loss.0.channels=4", "run.batch_size=4", "run.epochs=1", "run.device=cpu", "data.workers=1"]
    (tmp_path / "plates.toml").write_text(block)
    found = api.train(tmp_path / "plates.toml", *small, f"data.shards={packed['tif']}", run=tmp_path / "run")
    assert found.step == 3 and np.isfinite(found.loss)
