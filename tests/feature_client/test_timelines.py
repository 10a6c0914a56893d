"""Pairs as numbers: they order as the pairs do, and are found again, whatever the instants are."""

import numpy as np
import pytest

from feature_client.timelines import Timelines, order_of, search


@pytest.mark.parametrize("step", [1, 2**57], ids=["instants", "ranks"])
def test_packed_pairs_order_and_are_found_as_pairs(step: int) -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        size = int(rng.integers(1, 20))
        codes, instants = rng.integers(0, 4, size), rng.integers(-15, 15, size) * step
        timelines = Timelines(codes, instants)
        packed = timelines.pack(codes, instants)
        pairs = list(zip(codes.tolist(), instants.tolist(), strict=True))
        assert [pairs[at] for at in np.argsort(packed, kind="stable")] == sorted(pairs)
        asked_codes, asked = rng.integers(0, 4, 30), rng.integers(-20, 20, 30) * step + rng.integers(-1, 2, 30)
        found = search(np.sort(packed), timelines.pack(asked_codes, asked))
        for pair, place in zip(zip(asked_codes.tolist(), asked.tolist(), strict=True), found.tolist(), strict=True):
            assert place == sum(each <= pair for each in pairs)


def test_the_order_of_equals_is_that_of_what_follows_then_their_own() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        size = int(rng.integers(0, 30))
        packed, first, second = (rng.integers(0, 5, size) for _ in range(3))
        wanted = sorted(range(size), key=lambda at: (packed[at], first[at], second[at], at))
        assert order_of(packed, first, second).tolist() == wanted
        assert order_of(packed).tolist() == sorted(range(size), key=lambda at: (packed[at], at))
    assert order_of(np.array([3, 1, 2])).tolist() == [1, 2, 0]
