"""Pending predictions: the linked lists against a dict, whatever comes and is forgotten."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core.hashing import id_hash
from server.monitoring.pending import NO_ID, Pending, key_of, keys_of

NONE = np.zeros(0)


def add(pending: Pending, keys: list[int], now_us: int = 0) -> int:
    count = len(keys)
    scores = np.tile(np.array(keys, np.float64)[:, None], (1, pending.columns))
    return len(pending.add(np.array(keys, np.uint64), scores, np.arange(count) + now_us, now_us))


# few different numbers, some of which are in one list and some of which are the largest there are
KEYS = st.lists(
    st.one_of(st.integers(0, 12), st.integers(0, 6).map(lambda number: number << 40), st.integers(2**64 - 3, 2**64 - 1)),
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 20), st.lists(KEYS, max_size=12))
def test_the_newest_are_known_and_the_oldest_forgotten(limit: int, batches: list[list[int]]) -> None:
    pending = Pending(2, limit, 0)
    model: dict[int, int] = {}
    number = repeated = forgotten = 0
    for batch in batches:
        new = [key for key in dict.fromkeys(batch) if key not in model]
        assert add(pending, batch) == len(new)
        repeated += len(batch) - len(new)
        for key in new:
            model[key] = number
            number += 1
            if len(model) > limit:
                del model[next(iter(model))]
                forgotten += 1
        everything = sorted({*model, *range(14), *batch})
        assert {key: pending.find(key) for key in everything} == {key: model.get(key, -1) for key in everything}
        assert pending.found(np.array(everything, np.uint64)).tolist() == [key in model for key in everything]
        assert (len(pending), pending.repeated, pending.forgotten) == (len(model), repeated, forgotten)
        copy = Pending(2, limit, 0)
        copy.restore(pending.arrays())
        assert [copy.find(key) for key in everything] == [pending.find(key) for key in everything]
        copied, kept = ({name: array.tobytes() for name, array in each.arrays().items()} for each in (copy, pending))
        assert copied == kept


@pytest.mark.parametrize("limit", [3000, 5000, 100_000])
def test_it_grows_to_its_limit_and_no_further(limit: int) -> None:
    pending = Pending(1, limit, 0)
    generator = np.random.default_rng(7)
    keys = generator.integers(0, 2**64, 20_000, dtype=np.uint64)
    for start in range(0, len(keys), 700):
        part = keys[start : start + 700]
        pending.add(part, part.astype(np.float64)[:, None], np.zeros(len(part), np.int64), 0)
    known = pending.found(keys)
    assert known.sum() == len(pending) == min(limit, len(keys))
    assert known[-len(pending) :].all()
    assert pending.forgotten == len(keys) - len(pending)
    # rows and both ends of the lists; half as much again where room was doubled
    assert pending.nbytes <= min(limit, 32_768) * (5 * 8 + 8 + 4 * 8)


def test_a_batch_that_is_larger_than_the_room_leaves_its_last_rows() -> None:
    pending = Pending(1, 10, 5)
    assert add(pending, list(range(35))) == 35
    assert [key for key in range(35) if pending.find(key) >= 0] == list(range(25, 35))
    assert pending.forgotten == 25
    settled = pending.settle(5)
    assert settled.scores[:, 0].tolist() == list(range(25, 35))


def test_rows_of_one_request_are_told_apart() -> None:
    hashes = np.array([id_hash("a"), id_hash("a"), id_hash("b"), 2**64 - 1], np.uint64)
    rows = np.array([0, 1, 0, 2**31 - 1], np.int32)
    keys = keys_of(hashes, rows)
    assert len(set(keys.tolist())) == 4
    assert keys.tolist() == [key_of(int(one), int(row)) for one, row in zip(hashes, rows, strict=True)]
    assert id_hash("") == NO_ID


def test_without_a_horizon_a_row_is_counted_when_its_label_comes() -> None:
    pending = Pending(1, 100, 0)
    add(pending, [5, 6, 7])
    assert len(pending.settle(10**18).labels) == 0
    for key in (7, 5):
        number = pending.find(key)
        assert np.isnan(pending.label_of(number))
        assert not pending.is_closed(number, 10**18)
        pending.label(number, key / 2)
        assert pending.is_closed(number, 0)
    settled = pending.settle(0)
    assert (settled.scores[:, 0].tolist(), settled.labels.tolist(), settled.time_us.tolist()) == ([7, 5], [3.5, 2.5], [2, 0])
    assert len(pending.settle(10**18).labels) == 0


def test_what_was_pushed_out_before_it_was_settled_is_not_another_row() -> None:
    pending = Pending(1, 2, 0)
    add(pending, [5, 6])
    pending.label(pending.find(5), 1.0)
    pending.label(pending.find(6), 1.0)
    add(pending, [7])
    assert pending.settle(0).scores[:, 0].tolist() == [6]
    assert pending.forgotten == 0


def test_with_a_horizon_rows_are_counted_in_their_order_labelled_or_not() -> None:
    pending = Pending(1, 100, 1000)
    add(pending, [5, 6], 0)
    add(pending, [7], 500)
    # the clock was set back: the order is kept
    add(pending, [8], 100)
    pending.label(pending.find(8), 1.0)
    pending.label(pending.find(6), 0.0)
    assert len(pending.settle(999).labels) == 0
    assert not pending.is_closed(pending.find(5), 999)
    assert pending.is_closed(pending.find(5), 1000)
    settled = pending.settle(1000)
    assert (settled.scores[:, 0].tolist(), np.isnan(settled.labels).tolist()) == ([5, 6], [True, False])
    assert pending.is_closed(pending.find(5), 0)
    copy = Pending(1, 100, 1000)
    copy.restore(pending.arrays())
    for each in (pending, copy):
        assert len(each.settle(1499).labels) == 0
        assert each.settle(1500).scores[:, 0].tolist() == [7, 8]
        assert len(each.settle(10**18).labels) == 0


def changed(arrays: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    return {**arrays, name: value}


def test_what_does_not_fit_together_is_refused() -> None:
    pending = Pending(1, 10, 0)
    add(pending, [1, 2, 3])
    arrays = pending.arrays()
    for broken in (
        changed(arrays, "keys", np.zeros(2, np.uint64)),
        changed(arrays, "scores", np.zeros((3, 2))),
        changed(arrays, "counters", np.array([5, 2, 0, 0, 0])),
        changed(arrays, "counters", np.array([0, 3])),
    ):
        with pytest.raises(ValueError, match=r"fit together|not enough values"):
            Pending(1, 10, 0).restore(broken)
    with pytest.raises(ValueError, match="fit together"):
        Pending(1, 2, 0).restore(arrays)
    del arrays["labels"]
    with pytest.raises(KeyError):
        Pending(1, 10, 0).restore(arrays)
