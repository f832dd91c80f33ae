"""Every fault of composition is refused before data or device is touched, with one line that names the place and the right word."""
from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest

from twinview.assembly import Assembly, assemble, installed
from twinview.assembly.checks import naming_evaluations
from twinview.errors import DataError, PluginError, RecipeError, TwinviewError
from twinview.recipe import read


def test_a_recipe_assembles(toy: dict[str, Any]) -> None:
    assembly = assemble(read({**toy, "masks": {"use": "toy.masks"}, "align": {"use": "toy.align"}, "loss": [{"use": "toy.cells", "weight": 2.0}]}))
    assert list(assembly.parts) == ["toy.views", "toy.masks", "toy.encoder", "toy.align", "toy.cells"]
    assert assembly.answers("loss") == ["toy.cells"] and assembly.weight("toy.cells", 0.5) == 2.0
    assert assembly.has("make_masks") and not assembly.has("apply_augment") and not assembly.has("encode")
    assert assembly.distributions() == {"toy": "twinview_toy 1.0"}


def test_the_resolved_table_writes_every_option_and_reads_back(toy: dict[str, Any]) -> None:
    assembly = assemble(read(toy))
    table = assembly.table()
    assert table["views"] == {"use": "toy.views", "size": 32}
    assert table["loss"][0] == {"use": "toy.pooled", "weight": 1.0, "channels": 4, "needs": ["pooled"], "term": "pooled"}
    assert assemble(read(table)).table() == table


FAULTS: list[tuple[str, dict[str, Any], str]] = [
    ("no such method", {"views": {"use": "tyo.views"}}, "[views] tyo.views: no method 'tyo' is installed. Did you mean 'toy'?"),
    ("no such part", {"views": {"use": "toy.vews"}}, "[views] toy.vews: toy has no part 'vews'. Did you mean 'views'?"),
    ("unknown option", {"views": {"use": "toy.views", "sise": 3}}, "[views] toy.views: nothing takes 'sise'. Did you mean 'size'? There is: size."),
    ("wrong type", {"views": {"use": "toy.views", "size": "big"}}, "[views] toy.views.size: wants a whole number, not 'big'"),
    ("part in a slot whose hook it does not answer", {"masks": {"use": "toy.align"}}, "[masks] toy.align: does not answer make_masks, which [masks] calls; it answers align, traits."),
    ("two answers", {"extra": [{"use": "toy.views", "name": "again"}]}, "sample_views: takes one part, the recipe has 2: [views] toy.views and [[extra]] toy.views"),
    ("clashing names", {"loss": [{"use": "toy.pooled"}, {"use": "toy.pooled"}]}, "[[loss]] toy.pooled (loss.1): the name 'toy.pooled' is taken. Give one of the two a `name"),
    ("masks, and an encoder that cannot hide", {"masks": {"use": "toy.masks"}, "encoder": {"use": "toy.encoder", "gives": ["cells", "pooled"]}}, "[masks] toy.masks: [encoder] toy.encoder cannot hide cells"),
    ("a loss that needs what the encoder lacks", {"loss": [{"use": "toy.pooled", "needs": ["tokens"]}]}, "[[loss]] toy.pooled: needs tokens, and [encoder] toy.encoder gives cells, levels, pooled."),
    ("an unknown option of the second of two", {"loss": [{"use": "toy.pooled"}, {"use": "toy.pooled", "name": "small", "chanels": 3}]}, "[[loss]] toy.pooled (small): nothing takes 'chanels'. Did you mean 'channels'?"),
    ("levels, where cells would do", {"encoder": {"use": "toy.encoder", "gives": ["cells", "pooled"]}, "evaluate": [{"use": "probes.segment", "val": "x", "size": [8, 8]}]}, '[[evaluate]] probes.segment: needs levels, and [encoder] toy.encoder gives cells, pooled. Write levels=["cells"].'),
    ("a level, where cells would do", {"encoder": {"use": "toy.encoder", "gives": ["cells", "pooled"]}, "evaluate": [{"use": "probes.knn", "val": "x", "train": "x", "size": [8, 8], "on": "c4"}]}, 'Write on="cells".'),
    ("levels, and no cells either", {"encoder": {"use": "toy.encoder", "gives": ["pooled"]}, "evaluate": [{"use": "probes.segment", "val": "x", "size": [8, 8]}]}, "gives pooled. Choose another encoder."),
    ("needs masks", {"loss": [{"use": "toy.pooled", "needs": ["masks"]}]}, "[[loss]] toy.pooled: needs masked views. Add a [masks] table."),
    ("needs a target", {"loss": [{"use": "toy.pooled", "needs": ["averaged_target"]}], "target": {"momentum": 0}}, "needs an averaged target. Set [target] momentum above 0."),
    ("a trait that is no word", {"loss": [{"use": "toy.pooled", "needs": ["pooledd"]}]}, "[[loss]] toy.pooled: traits() says 'pooledd'. Did you mean 'pooled'?"),
    ("no alignment", {"loss": [{"use": "toy.cells"}]}, "[[loss]] toy.cells: needs an alignment. Add an [align] table."),
    ("an alignment that no loss uses", {"align": {"use": "toy.align"}}, "[align] toy.align: no loss uses it. Leave it out"),
    ("an unknown alignment", {"align": {"a": {"use": "toy.align"}}, "loss": [{"use": "toy.cells", "align": "b"}]}, "[[loss]] toy.cells.align: no alignment has the name 'b'. There is: a."),
    ("which alignment", {"align": {"a": {"use": "toy.align"}}, "loss": [{"use": "toy.cells"}]}, "the recipe names its alignments; say which with align = \"NAME\". There is: a."),
    ("the alignment has no name", {"align": {"use": "toy.align"}, "loss": [{"use": "toy.cells", "align": "b"}]}, "the recipe's one alignment, [align], has no name"),
    ("a head that no loss uses", {"head": [{"use": "densesiam.projector", "name": "clusters"}]}, '[[head]] densesiam.projector: no loss uses it. Leave it out, or say head = "clusters" in a loss.'),
    ("a loss that ignores extra", {"align": {"use": "toy.align", "extra": 2}, "loss": [{"use": "toy.cells"}]}, "[[loss]] toy.cells: does not use what [align] toy.align tells a predictor"),
    ("an alignment elsewhere", {"extra": [{"use": "toy.align"}]}, "[[extra]] toy.align: answers align. Put it in [align]"),
]


@pytest.mark.parametrize(("tables", "said"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_fault_is_refused(toy: dict[str, Any], tables: dict[str, Any], said: str) -> None:
    with pytest.raises(TwinviewError, match=re.escape(said)) as caught:
        assemble(read({**toy, **tables}))
    assert "\n" not in str(caught.value)


def test_strings_are_no_lists(toy: dict[str, Any]) -> None:
    for given, said in (("c3", "wants a list, not 'c3'"), (3, "wants a list, not 3")):
        with pytest.raises(RecipeError, match=re.escape(f"[[loss]] toy.pooled.needs: {said}")):
            assemble(read({**toy, "loss": [{"use": "toy.pooled", "needs": given}]}))


READ: list[tuple[str | list[str] | None, bool, str]] = [
    ("", False, "x.tar: no map. train is empty, and so it reads the run's own shards. Write evaluate.1.train=PATHS, or evaluate=[] to evaluate nothing."),
    ("", True, "x.tar: no map. train is empty, and so it reads the run's own shards. Write train=PATHS."),
    ("val.tar", False, "x.tar: no map. Write evaluate.1.val=PATHS, or evaluate=[] to evaluate nothing."),
    ("sketch.tar", True, "x.tar: no map. Write sets.sketch=PATHS."),
    ("elsewhere.tar", False, "x.tar: no map. Write other options of evaluate.1, or evaluate=[] to evaluate nothing."),
    (None, False, "x.tar: no map. Write evaluate.1.val=PATHS, or evaluate=[] to evaluate nothing."),
]


@pytest.mark.parametrize(("shards", "alone", "said"), READ)
def test_a_fault_of_an_evaluations_images_names_the_option_that_names_them(toy: dict[str, Any], shards: Any, alone: bool, said: str) -> None:
    first = {"use": "probes.robustness", "name": "first", "val": "other.tar", "size": [8, 8]}
    second = {"use": "probes.robustness", "val": "val.tar", "size": [8, 8], "sets": {"sketch": "sketch.tar"}}
    recipe = read({**toy, "evaluate": [first, second]})
    made = assemble(recipe).under(recipe, alone=alone)
    fault = DataError("x.tar: no map.")
    fault.shards = shards
    with pytest.raises(DataError) as caught, naming_evaluations(made, "probes.robustness"):
        raise fault
    assert str(caught.value) == f"[[evaluate]] probes.robustness (evaluate.1): {said}"
    with pytest.raises(DataError, match=r"^\[\[evaluate\]\] probes.robustness \(first\): val holds no image\.$"), naming_evaluations(made, "first"):
        raise DataError("[[evaluate]] probes.robustness: val holds no image.")


BROKEN: list[tuple[str, str, str]] = [
    ("cannot be imported", "import no_such_module", "method 'odd' (twinview_odd, twinview_odd 1.0) cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"),
    ("answers nothing", "x = 1", "method 'odd' (twinview_odd, twinview_odd 1.0) answers nothing. A method answers parts() alone"),
    ("answers more than parts", "{head}@hookimpl\ndef evaluate(): ...\n{tail}", "answers evaluate, parts. A method answers parts() alone; other hooks belong in a part."),
    ("a misspelt hook", "{head}    @hookimpl\n    def aline(self, step): ...\n{tail}", "[[extra]] odd.odd: answers an unknown hook 'aline' (twinview_odd 1.0). Did you mean 'align'?"),
    ("a misspelt argument", "{head}    @hookimpl\n    def loss(self, stop): ...\n{tail}", "[[extra]] odd.odd: "),
    ("no hook at all", "{head}    x: int = 0\n{tail}", "[[extra]] odd.odd: answers no hook. There is: parts, traits, sample_views"),
    ("no attrs class", "from twinview import hookimpl\n@hookimpl\ndef parts(): return {{'odd': int}}", "odd offers something for 'odd' that is no part. Make it a class with @twinview.part."),
    ("traits that are none", "{head}    @hookimpl\n    def traits(self): return 3\n{tail}", "[[extra]] odd.odd: traits() gives a int. Give a twinview.values.Traits."),
    ("half an augmentation", "{head}    @hookimpl\n    def apply_augment(self, pixels): ...\n{tail}", "[[extra]] odd.odd: answers one of draw_augment and apply_augment"),
]
HEAD = "from twinview import hookimpl, part\n@part\nclass Odd:\n"
TAIL = "@hookimpl\ndef parts(): return {'odd': Odd}\n"


@pytest.mark.parametrize(("code", "said"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_a_broken_method_is_named(toy: dict[str, Any], install: Callable[..., None], code: str, said: str) -> None:
    head = HEAD + ("    y: int = 0\n" if "def evaluate" in code else "")
    install("odd", code.format(head=head, tail=TAIL))
    assert assemble(read(toy))  # no recipe names it: it does no harm
    with pytest.raises(PluginError, match=re.escape(said)) as caught:
        assemble(read({**toy, "extra": [{"use": "odd.odd"}]}))
    assert "\n" not in str(caught.value)
    assert any(name == "odd" for name, _, _ in installed())


def test_a_method_offered_twice_is_refused(toy: dict[str, Any], install: Callable[..., None]) -> None:
    install("toy", "x = 1", dist="acme")
    with pytest.raises(RecipeError, match=re.escape("method 'toy' is offered by acme 1.0 and by twinview_toy 1.0. Uninstall all but one.")):
        assemble(read(toy))


def test_needed_labels_are_refused_when_the_shards_hold_none(toy: dict[str, Any]) -> None:
    toy["loss"][0]["needs"] = ["pooled", "labels"]
    assembly = assemble(read(toy))
    encoder = assembly.encoder()
    with pytest.raises(RecipeError, match="toy.pooled: needs labels, and the shards"):
        assembly.dims(encoder, 10)
    assert assembly.dims(encoder, 10, classes=3).classes == 3


def test_dims(toy: dict[str, Any]) -> None:
    assembly = assemble(read({**toy, "align": {"a": {"use": "toy.align"}}, "loss": [{"use": "toy.cells", "align": "a"}]}))
    dims = assembly.dims(assembly.encoder(), 10)
    assert dims.grids == ((4, 4), (4, 4)) and dims.pairs == ((0, 1), (1, 0))
    assert dims.aligned_widths == {"a": (8,)} and dims.extras == {"a": 0}
    pickle.loads(pickle.dumps(dims))  # it goes to the workers


def test_every_process_can_make_its_own(toy: dict[str, Any]) -> None:
    recipe = pickle.loads(pickle.dumps(read(toy)))
    assert list(Assembly(recipe).parts) == list(Assembly(recipe).parts)
    assert Assembly(recipe).parts["toy.views"] is not Assembly(recipe).parts["toy.views"]


def test_a_wrapper_goes_around_whichever_alignment_is_asked(toy: dict[str, Any], install: Callable[..., None]) -> None:
    install("acme", """
        from twinview import hookimpl, part
        @part
        class Half:
            @hookimpl(wrapper=True)
            def align(self):
                found = yield
                return found._replace(weight=found.weight / 2)
        @hookimpl
        def parts(): return {"half": Half}
        """)
    recipe = read({**toy, "align": {"a": {"use": "toy.align"}, "b": {"use": "toy.align"}},
                   "loss": [{"use": "toy.cells", "align": "a"}, {"use": "toy.cells", "name": "x", "align": "b"}], "extra": [{"use": "acme.half"}]})
    assembly = assemble(recipe)
    assert assembly.wrappers("align") == ["acme.half"]

    class Step:
        class batch:
            keys = ("a",)

    for name in ("a", "b"):
        assert float(assembly.align(name)(step=Step(), online=0, target=1).weight.max()) == 0.5


def test_the_encoder_starts_alike_whatever_else_the_recipe_holds(toy: dict[str, Any]) -> None:
    one, two = assemble(read(toy)), assemble(read({**toy, "loss": [{"use": "toy.pooled", "channels": 7}]}))
    a, b = one.encoder().state_dict(), two.encoder().state_dict()
    assert all((a[k] == b[k]).all() for k in a)
    other = assemble(read({**toy, "run": {**toy["run"], "seed": 1}})).encoder().state_dict()
    assert any((a[k] != other[k]).any() for k in a)


def test_an_option_that_is_missing_is_said_with_what_to_write(toy: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"^\[\[evaluate\]\] signals\.rankme\.size: is missing\. Write a list of 2 whole numbers\.$"):
        assemble(read({**toy, "evaluate": [{"use": "signals.rankme"}]}))
