from __future__ import annotations

from twinview.engine.collapse import CollapseWatch, collapses


def test_signs_are_said_in_words() -> None:
    assert collapses({"loss": 0.1, "spread/online": 0.3, "score/cluster/collapsed": 0.0, "score/cluster/random/collapsed": 1.0}) == []
    assert collapses({"score/cluster/collapsed": 1.0}) == ["cluster: fewer than two clusters are left"]
    assert collapses({"spread/online": 0.001}) == ["features of different images are all but equal (spread 0.001)"]
    assert collapses({"spread/online": None, "score/cluster/collapsed": None}) == []


def test_rows_without_features_are_passed_over() -> None:
    """An evaluation between two logged steps writes a row of its own."""
    watch, said = CollapseWatch(), []
    for step in range(1, 7):
        said.append(watch.see({"step": step, **({"spread/online": 0.0} if step % 2 else {"score/knn/top1": 3.0})}))
    assert [bool(line) for line in said] == [False] * 4 + [True, False] and said[4].startswith("WARNING step 5")
