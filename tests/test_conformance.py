"""What holds for every installed part, every recipe and the house itself."""
from __future__ import annotations

import pickle
import re
import tomllib
from pathlib import Path

import attrs
import pytest

from twinview.api import check, checked
from twinview.assembly import assemble, installed
from twinview.assembly.comments import option_comments
from twinview.recipe import PartConfig, find, names, read

ROOT = Path(__file__).resolve().parents[1]
PARTS = {f"{method}.{name}": cls for method, who, parts in installed() if who.startswith("twinview ") and isinstance(parts, dict) for name, cls in parts.items()}


@pytest.mark.parametrize("name", names())
def test_a_recipe_assembles_and_survives_its_own_table(name: str) -> None:
    check(name, "evaluate=[]", 'run.keep_best=""')  # whose shards are not here
    assembly = checked(read(name))
    assert assemble(read(assembly.table())).table() == assembly.table()
    assert all(use.weight_at(1.0) > 0 for use in assembly.recipe.loss)


@pytest.mark.parametrize("name", [n for n in names() if re.search(r"_(r50|vit[bslh]1[46]|alexnet)$|/coco_stuff_", n)])
def test_a_published_recipe_says_what_it_promises(name: str) -> None:
    head = "".join(line for line in find(name).read_text().splitlines(keepends=True) if line.startswith("#"))
    for word in ("Paper:", "Expected", "Hardware:", "Command:", "not"):
        assert word in head, word
    assert f"twinview -- train {name}" in head


@pytest.mark.parametrize("name", names())
def test_a_recipe_does_not_inherit_and_starts_with_what_it_is(name: str) -> None:
    text = find(name).read_text()
    assert text.startswith("# ") and len(text.splitlines()[0]) < 100
    assert list(tomllib.loads(text)) == [t for t in ("views", "augment", "masks", "encoder", "align", "head", "loss", "extra", "target", "data",
                                                      "optimizer", "schedule", "run", "evaluate", "deepspeed") if t in tomllib.loads(text)]


@pytest.mark.parametrize("label", PARTS)
def test_a_part_is_documented_and_its_options_too(label: str) -> None:
    cls = PARTS[label]
    assert cls.__doc__ and len(cls.__doc__.splitlines()[0]) > 20
    for f in attrs.fields(cls):
        assert f.type is not None and f.kw_only
    hooks = [value for name in dir(cls) if hasattr(value := getattr(cls, name), "twinview_impl")]  # a part may inherit its answers
    assert hooks and all(h.__doc__ for h in hooks)
    undocumented = [f.name for f in attrs.fields(cls) if f.name not in option_comments(cls)]
    assert len(undocumented) <= len(attrs.fields(cls)) // 2, undocumented  # a name may say it all; not most of them


@pytest.mark.parametrize("label", [label for label, cls in PARTS.items() if all(f.default is not attrs.NOTHING for f in attrs.fields(cls))])
def test_a_part_is_a_small_value(label: str) -> None:
    part = PARTS[label]()
    assert len(pickle.dumps(part)) < 4096 and part != PARTS[label]()  # it goes to workers; it is compared by identity
    options = attrs.asdict(part)
    assert read({"views": {"use": label, **{k: list(v) if isinstance(v, tuple) else v for k, v in options.items() if v is not None}},
                 "encoder": {"use": "a.b"}, "loss": [{"use": "a.b"}], "data": {"shards": "x"}, "optimizer": {"use": "sgd", "lr": 1}, "run": {"steps": 1}}).views == PartConfig(
        use=label, options={k: list(v) if isinstance(v, tuple) else v for k, v in options.items() if v is not None})


def test_the_readme_has_the_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert "twinview train multisiam/quickstart" in text and re.search(r"<!-- tests -->\n```bash\n.*pytest -n 2 --dist loadfile\n```", text)
    for link in re.findall(r"\]\((docs/[^)#]+)", text):
        assert (ROOT / link).is_file(), link
