from __future__ import annotations

from twinview.engine.collapse import collapses


def test_signs_are_said_in_words() -> None:
    assert collapses({"loss": 0.1, "spread/online": 0.3, "score/cluster/collapsed": 0.0, "score/cluster/random/collapsed": 1.0}) == []
    assert collapses({"score/cluster/collapsed": 1.0}) == ["cluster: fewer than two clusters are left"]
    assert collapses({"spread/online": 0.001}) == ["features of different images are all but equal (spread 0.001)"]
    assert collapses({"spread/online": None, "score/cluster/collapsed": None}) == []
