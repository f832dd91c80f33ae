"""What a part gives is checked on the first batch: each mistake gets one line that names part and hook, what it gave and what to give; exit code 2."""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tomli_w

from twinview.cli import main


class Mistake(NamedTuple):
    part: str  # the body of a class that is registered as `wrong.part`
    slot: str  # where the recipe puts it
    says: str  # pattern of the one line
    more: dict[str, Any] = {}  # noqa: RUF012  other tables of the recipe


VIEWS = "class Part(toy.Views):\n    @hookimpl\n    def sample_views(self, size, rng):\n        g = toy.Views.sample_views(self, size, rng)\n        return "
LOSS = "class Part(toy.Pooled):\n    @hookimpl\n    def loss(self, step):\n        found = toy.Pooled.loss(self, step)\n        return "
HEADS = "class Part(toy.Pooled):\n    @hookimpl\n    def heads(self, dims):\n        found = toy.Pooled.heads(self, dims)\n        return "
ENCODER = """class Part(toy.Encoder):
    @hookimpl
    def make_encoder(self):
        class Net(toy.Net):
            def forward(self, images, hidden=None):
                f = toy.Net.forward(self, images, hidden)
                return {}

        return Net(self.width)
"""
MASKS = "class Part:\n    @hookimpl\n    def make_masks(self, geometry, grids, rng):\n        mask = torch.zeros(grids[0][0] * grids[0][1], dtype=torch.bool)\n        mask[:3] = True\n        return "
PHOTO = "class Part:\n    @hookimpl\n    def draw_augment(self, view, size, rng):\n        return {}\n\n    @hookimpl\n    def apply_augment(self, pixels, params):\n        return {}\n"
ALIGN = "class Part(toy.Align):\n    @hookimpl\n    def align(self, step, online, target):\n        n = len(step.batch.keys)\n        return "
CELLS = {"loss": [{"use": "toy.cells"}]}
EVALUATE = "class Part:\n    @hookimpl\n    def evaluate(self, branches, data, progress):\n        return "

MISTAKES = {
    "loss without gradient": Mistake(LOSS + "{k: v.detach() for k, v in found.items()}", "loss", r"\[\[loss\]\] wrong.part: loss\(\) gives 'pooled' without gradient"),
    "loss gives None": Mistake(LOSS + "None", "loss", r"loss\(\) gives None. Give \{term: scalar tensor\}"),
    "loss gives nothing": Mistake(LOSS + "{}", "loss", r"loss\(\) gives an empty dict"),
    "loss gives a float": Mistake(LOSS + "{'x': 1.0}", "loss", r"loss\(\) gives a float for the term 'x'. Give a scalar tensor"),
    "loss gives a vector": Mistake(LOSS + "{'x': found['pooled'].expand(3)}", "loss", r"loss\(\) gives a Tensor \[3\] float32 for the term 'x'"),
    "loss gives a tensor": Mistake(LOSS + "found['pooled']", "loss", r"loss\(\) gives a Tensor \[\] float32. Give \{term"),
    "undeclared head": Mistake(LOSS + "{'x': step.apply(step.head(self, 'projectr'), 0, 'online', 'pooled').sum()}", "loss", r"wrong.part: loss\(\) asks for a head 'wrong/part/projectr' that this branch does not have. Did you mean 'wrong/part/projector'"),
    "unknown role": Mistake(LOSS + "{'x': step.apply(step.head(self, 'projector'), 0, 'teacher', 'pooled').sum()}", "loss", r"loss\(\) asks for the branch 'teacher'. There is: online, target"),
    "unknown map": Mistake(LOSS + "{'x': step.apply(step.head(self, 'projector'), 0, 'online', 'c9').sum()}", "loss", r"loss\(\) asks for 'c9', and the encoder gives: cells, pooled, c1"),
    "raises": Mistake(LOSS + "{'x': torch.ones(3) @ torch.ones(4)}", "loss", r"\[\[loss\]\] wrong.part: loss\(\) raises RuntimeError: .*\(.*twinview_wrong.py, line \d+\)"),
    "head of an unknown kind": Mistake(HEADS + "{k: h._replace(kind='teacher') for k, h in found.items()}", "loss", r"heads\(\) gives 'projector' the kind 'teacher'. Give one of averaged, online_only, state"),
    "state with parameters": Mistake(HEADS + "{**found, 'queue': Head(torch.nn.Linear(2, 2), 'state')}", "loss", r"heads\(\) gives the state 'queue' a parameter 'weight'.*register_buffer"),
    "head nobody uses": Mistake(HEADS + "{**found, 'extra': Head(torch.nn.Linear(2, 2))}", "loss", r"heads\(\) declares 'extra', and no hook asked for it in the first step"),
    "no Head": Mistake(HEADS + "{'projector': torch.nn.Linear(2, 2)}", "loss", r"heads\(\) gives a Linear for 'projector'. Give a twinview.values.Head"),
    "rule": Mistake("class Part(toy.Pooled):\n    @hookimpl\n    def param_groups(self, name, parameter):\n        return {'lr': 0}", "loss", r"param_groups\(\) gives a dict for '.*'. Give a twinview.values.ParamRule"),
    "boxes in pixels": Mistake(VIEWS + "g._replace(boxes=g.boxes * size[0])", "views", r"\[views\] wrong.part: sample_views\(\) gives boxes from 0 to .*not pixels"),
    "boxes turned round": Mistake(VIEWS + "g._replace(boxes=g.boxes[:, [2, 3, 0, 1]])", "views", r"sample_views\(\) gives a box that ends before it begins"),
    "a view too few": Mistake(VIEWS + "g._replace(boxes=g.boxes[:1])", "views", r"sample_views\(\) gives a Tensor \[1, 4\] float32 as boxes. Give \[2, 4\]"),
    "a pair of no view": Mistake(VIEWS + "g._replace(pairs=((0, 2),))", "views", r"sample_views\(\) gives the pair \(0, 2\), and there are views 0 to 1"),
    "a generator of its own": Mistake(VIEWS + "g._replace(boxes=g.boxes * (0.5 + np.random.rand() / 2))", "views", r"sample_views\(\) gives other boxes when the same image is drawn again. Draw from `rng` alone"),
    "masks of int": Mistake(MASKS + "(mask.int(), None)", "masks", r"\[masks\] wrong.part: make_masks\(\) gives a Tensor \[16\] int32 as view 0. Give \[16\] bool"),
    "masks in two dimensions": Mistake(MASKS + "(mask.view(grids[0]), None)", "masks", r"make_masks\(\) gives a Tensor \[4, 4\] bool as view 0. Give \[16\] bool"),
    "masks of a generator of its own": Mistake(MASKS + "(mask[torch.randperm(16)], None)", "masks", r"make_masks\(\) gives another mask when the same image is drawn again"),
    "photometry changes the shape": Mistake(PHOTO.format("{'x': torch.zeros(1)}", "pixels[..., :4]"), "augment", r"apply_augment\(\) gives a Tensor \[4, 3, 32, 4\] uint8 for a Tensor \[4, 3, 32, 32\] uint8"),
    "photometry changes the type": Mistake(PHOTO.format("{'x': torch.zeros(1)}", "pixels.float()"), "augment", r"apply_augment\(\) gives a Tensor \[4, 3, 32, 32\] float32 for"),
    "draws are no tensors": Mistake(PHOTO.format("{'x': 1.0}", "pixels"), "augment", r"draw_augment\(\) gives a float for 'x'. Give a tensor"),
    "draws vary": Mistake(PHOTO.format("{'x': torch.zeros(1 + int(rng.integers(9)))}", "pixels"), "augment", r"\[augment\] wrong.part: draw_augment\(\) gives 'x' in several shapes: .* Give the same shape for every image"),
    "widths": Mistake(ENCODER.format("f._replace(pooled=f.pooled[:, :4])"), "encoder", r"\[encoder\] wrong.part: .*gives a Tensor \[4, 4\] float32 as pooled. Give \[4, 8\] of floats: as `spec` says"),
    "strides": Mistake(ENCODER.format("f._replace(cells=f.cells[..., :2])"), "encoder", r"as cells. Give \[4, 8, 4, 4\] of floats: 8 channels at stride 8, as `spec` says"),
    "promises": Mistake(ENCODER.format("f._replace(levels={})"), "encoder", r"gives no level 'c1', and `spec` promises it"),
    "no features": Mistake(ENCODER.format("f.cells"), "encoder", r"gives a Tensor \[4, 8, 4, 4\] float32. Give twinview.values.Features"),
    "alignment": Mistake(ALIGN + "torch.ones(n, 4, 4)", "align", r"\[align\] wrong.part: align\(\) gives a Tensor .*Give a twinview.values.Alignment", CELLS),
    "weight of an alignment": Mistake(ALIGN + "toy.Alignment(lambda m: m, lambda m: m, torch.ones(n, 16))", "align", r"align\(\) gives a Tensor \[4, 16\] float32 as weight. Give \[4, h, w\]", CELLS),
    "scores": Mistake(EVALUATE + "{'x': torch.ones(())}", "evaluate", r"\[\[evaluate\]\] wrong.part: evaluate\(\) gives a Tensor \[\] float32 for 'x'. Give a plain number"),
    "no scores": Mistake(EVALUATE + "0.5", "evaluate", r"evaluate\(\) gives a float. Give \{score: number\}"),
    "option without a type": Mistake("class Part(toy.Pooled):\n    size = __import__('attrs').field(default=3)", "loss", r"wrong.part: its option 'size' has no type"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_line(name: str, toy: dict[str, Any], install: Any, photo_shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mistake = MISTAKES[name]
    install("wrong", "import numpy as np\nimport torch\nimport twinview_toy as toy\nfrom twinview.hooks import hookimpl, part\nfrom twinview.values import Head\n\n\n@part\n"
            + mistake.part + "\n\n\n@hookimpl\ndef parts():\n    return {'part': Part}\n")
    use = {"use": "wrong.part"}
    recipe = {**toy, **mistake.more, mistake.slot: [use] if mistake.slot in ("loss", "evaluate") else use}
    recipe["data"] = {"shards": photo_shards, "workers": 0}
    (tmp_path / "wrong.toml").write_text(tomli_w.dumps(recipe))
    real = ["--run", str(tmp_path / "run")]
    for how in [real] if mistake.slot == "evaluate" else [["--dry-run"], real]:
        assert main(["train", str(tmp_path / "wrong.toml"), *how]) == 2
        err = capsys.readouterr().err
        last = err.rstrip().splitlines()[-1]
        assert re.search(mistake.says, last), last
        assert last.startswith("twinview: ") and "twinview's own" not in err
        assert ("Traceback" in err) == (name == "raises")


def test_the_page_of_mistakes_has_them_all() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "mistakes.md").read_text()
    said = dict(line.strip("| ").split(" | ", 1) for line in page.splitlines() if line.startswith("| ") and " | " in line)
    for name, mistake in MISTAKES.items():
        line = said[name].replace("\\|", "|").replace("acme", "wrong").replace("(twinview_", "(/site/twinview_")
        assert re.search(mistake.says, line), name
