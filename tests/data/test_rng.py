"""Draws depend on (seed, epoch, key, purpose), each of which matters."""
from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from twinview.data.rng import Rekeyed, key_hash, rng

arguments = st.tuples(st.integers(0, 2**70), st.integers(0, 2**40), st.text(), st.sampled_from(["views", "augment/0", "augment/1", "masks"]))


@given(arguments, arguments)
def test_equal_where_the_arguments_are_and_only_there(one: tuple[int, int, str, str], other: tuple[int, int, str, str]) -> None:
    first = rng(*one).integers(2**63, size=4)
    assert np.array_equal(first, rng(*one).integers(2**63, size=4))
    assert np.array_equal(first, rng(*other).integers(2**63, size=4)) == (one == other)


def test_arguments_do_not_run_into_each_other() -> None:
    assert rng(1, 11, "a", "v").random() != rng(11, 1, "a", "v").random()
    assert rng(1, 1, "1", "v").random() != rng(1, 11, "", "v").random()
    assert rng(1, 1, "a\0b", "v").random() != rng(1, 1, "b", "a").random()


def test_draws_are_uniform_over_keys() -> None:
    values = np.array([rng(0, 0, f"{n:06}", "views").random() for n in range(4000)])
    assert abs(values.mean() - 0.5) < 0.02 and abs(values.var() - 1 / 12) < 0.005 and abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 0.06


def test_the_numbers_are_the_same_in_every_version() -> None:
    assert int(rng(0, 1, "street/000", "views").bit_generator.random_raw()) == 18119773700752679702
    assert key_hash("street/000") == -6801251543298318449


def test_keys_may_be_any_bytes() -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert -(2**63) <= key_hash(name) < 2**63 and rng(0, 0, name, "views").random() < 1


def test_rekeyed_gives_the_numbers_of_rng() -> None:
    rekeyed = Rekeyed()
    for n, key in enumerate(("a", "b", "a", "caf\udce9")):
        one, other = rekeyed(3, n, key, "views"), rng(3, n, key, "views")
        for _ in range(2):
            assert one.random(3).tolist() == other.random(3).tolist() and one.integers(1000) == other.integers(1000)  # half a word is left over
            assert one.permutation(7).tolist() == other.permutation(7).tolist() and one.standard_normal() == other.standard_normal()
