"""Every hook is documented with its exact signature, typed for the core as it is specified, and asked by a real run."""
from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from twinview import api
from twinview.hooks import HOOKS, Calls

DOCS = Path(__file__).resolve().parents[1] / "docs" / "hooks.md"


def signature(hook: str) -> str:
    return hook + str(inspect.signature(HOOKS[hook])).replace("(self, ", "(").replace("(self)", "()").replace("'", "")


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_with_its_exact_signature(hook: str) -> None:
    section = DOCS.read_text().partition(f"\n## {hook}\n")[2].partition("\n## ")[0]
    assert f"```python\n{signature(hook)}\n```" in section
    assert " ".join(inspect.cleandoc(HOOKS[hook].__doc__ or "").split()) in " ".join(section.split())


@pytest.mark.parametrize("hook", [h for h in HOOKS if h != "parts"])
def test_the_core_calls_a_hook_with_what_it_specifies(hook: str) -> None:
    spec, call = inspect.signature(HOOKS[hook]), inspect.signature(getattr(Calls, hook))
    assert list(spec.parameters) == list(call.parameters)
    assert all(p.kind is p.KEYWORD_ONLY for name, p in call.parameters.items() if name != "self")


EVERY_HOOK = '''
import os
import torch
from twinview.hooks import HOOKS, hookimpl, part
from twinview.values import Alignment, Features, Head, ParamRule, Traits
import twinview_toy as toy


def saw(name):
    if "TWINVIEW_TEST_LOG" in os.environ:
        with open(os.environ["TWINVIEW_TEST_LOG"], "a") as f:
            f.write(name + "\\n")


@part
class Views(toy.Views):
    @hookimpl
    def sample_views(self, size, rng):
        saw("sample_views")
        return toy.Views.sample_views(self, size, rng)

    @hookimpl
    def sample_views_batch(self, sizes, keys):
        assert sizes.shape == keys.shape and sizes.shape[1] == 2
        saw("sample_views_batch")


@part
class Colors:
    @hookimpl
    def draw_augment(self, view, size, rng):
        saw("draw_augment")
        return {"shift": torch.tensor(int(rng.integers(10)))}

    @hookimpl
    def draw_augment_batch(self, view, size, keys):
        saw("draw_augment_batch")

    @hookimpl
    def apply_augment(self, pixels, params):
        saw("apply_augment")
        return (pixels.int() + params["shift"].view(-1, 1, 1, 1)).clamp(0, 255).byte()


@part
class Masks(toy.Masks):
    @hookimpl
    def make_masks(self, geometry, grids, rng):
        saw("make_masks")
        return toy.Masks.make_masks(self, geometry, grids, rng)


@part
class Encoder(toy.Encoder):
    @hookimpl
    def make_encoder(self):
        saw("make_encoder")
        return toy.Net(self.width)

    @hookimpl
    def encode(self, branch, images, hidden, view, role, views, step, rng):
        assert views == (view,) and 0 <= rng.random() < 1 and len(step.batch.keys) == len(images)
        saw("encode")
        return branch.encoder(images, hidden)


@part
class Align(toy.Align):
    @hookimpl
    def align(self, step, online, target):
        saw("align")
        return toy.Align.align(self, step, online, target)


@part
class Loss(toy.Pooled):
    align: str = ""

    @hookimpl
    def traits(self):
        saw("traits")
        return Traits(needs=frozenset({"pooled", "alignment"}))

    @hookimpl
    def aligned_widths(self, dims):
        saw("aligned_widths")
        return (8,)

    @hookimpl
    def heads(self, dims):
        saw("heads")
        assert dims.extras == {"": 0}
        return toy.Pooled.heads(self, dims)

    @hookimpl
    def loss(self, step):
        saw("loss")
        step.alignment(0, 1)
        return toy.Pooled.loss(self, step)

    @hookimpl
    def param_groups(self, name, parameter):
        saw("param_groups")
        return ParamRule(lr_scale=0.5) if name.startswith("heads.") else None

    @hookimpl
    def check(self, dims, data):
        assert dims.pairs == ((0, 1), (1, 0)) and not dims.aligned_widths[""][1:]
        data.require("scenes:train")
        saw("check")

    @hookimpl
    def sample_weights(self, data, progress, rng):
        saw("sample_weights")
        return rng.random(12)

    @hookimpl
    def after_micro_batch(self, step, progress):
        assert not step.online[0].pooled.requires_grad and progress.micro == 0
        saw("after_micro_batch")

    @hookimpl
    def before_epoch(self, branches, data, progress, rng):
        assert next(iter(data.plain(size=(32, 32)))).images.shape[1:] == (3, 32, 32)
        assert next(iter(data.views(progress.epoch))).epoch == progress.epoch
        saw("before_epoch")

    @hookimpl
    def after_step(self, branches, step, progress):
        assert not step.online[0].pooled.requires_grad
        saw("after_step")

    @hookimpl
    def evaluate(self, branches, data, progress):
        assert not branches.online.training and not torch.is_grad_enabled()
        saw("evaluate")
        return {"toy/share": progress.share}

    @hookimpl
    def pictures(self, step):
        saw("pictures")
        return {"grey": torch.full((3, 8, 8), 128, dtype=torch.uint8)}


@hookimpl
def parts():
    saw("parts")
    return {"views": Views, "colors": Colors, "masks": Masks, "encoder": Encoder, "align": Align, "loss": Loss}
'''


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, install_module: Callable[..., None], photo_shards: str) -> tuple[list[str], Path]:
    """Which hooks a whole run asked, in order, and the run's folder."""
    folder = tmp_path_factory.mktemp("hooks")
    install_module("toy")
    install_module("every", EVERY_HOOK)
    os.environ["TWINVIEW_TEST_LOG"] = str(folder / "log")
    try:
        api.train({
            "views": {"use": "every.views"}, "augment": {"use": "every.colors"}, "masks": {"use": "every.masks"}, "encoder": {"use": "every.encoder"},
            "align": {"use": "every.align"}, "loss": [{"use": "every.loss"}], "optimizer": {"use": "sgd", "lr": 0.1},
            "data": {"shards": photo_shards, "workers": 0}, "run": {"steps": 2, "batch_size": 3, "log_every": 1, "device": "cpu"},
        }, run=folder / "run")
    finally:
        del os.environ["TWINVIEW_TEST_LOG"]
    return (folder / "log").read_text().split(), folder / "run"


@pytest.mark.parametrize("hook", HOOKS)
def test_a_run_asks_every_hook(asked: tuple[list[str], Path], hook: str) -> None:
    assert hook in asked[0]


def test_what_a_run_leaves(asked: tuple[list[str], Path]) -> None:
    rows = [json.loads(line) for line in (asked[1] / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2] and rows[-1]["score/toy/share"] == 1.0
    assert (asked[1] / "pictures" / "views.png").is_file() and (asked[1] / "pictures" / "grey.png").is_file()
    encoder: Any = api.load(asked[1])
    assert encoder.spec.pooled == 8 and not encoder.training
