"""The cache of rows: never more bytes than allowed, never an old row as a fresh one."""

from hypothesis import given, settings
from hypothesis import strategies as st

from feature_client.aggregation import count
from feature_client.cache import ENTRY_BYTES, RowCache
from feature_client.schema import Entity, EventLog, Feature, hours
from feature_client.view import View

LOG = EventLog("log", {"id": "int64", "event_us": "int64"})
LARGE = 2**20


def view_of(max_age_us: int, *feature_ages_us: int) -> View:
    features = tuple(
        Feature(f"f{index}", "int64", 0, max_age_us=age_us) for index, age_us in enumerate(feature_ages_us or (0,))
    )
    inputs = {"n": count(hours(1))}
    return View("v", 1, "stored", inputs, features, dict, Entity("user", {"id": "int64"}), LOG, max_age_us=max_age_us)


def test_a_row_is_fresh_until_its_time_is_over() -> None:
    cache = RowCache(LARGE)
    cache.remember([(b"a", b"row")], 10.0)
    assert cache.fresh([b"a", b"b"], 10.0, 1.0) == {b"a": b"row"}
    assert cache.fresh([b"a"], 10.99, 1.0) == {b"a": b"row"}
    assert cache.fresh([b"a"], 11.0, 1.0) == {}
    assert cache.fresh([b"a"], 10.2, 0.1) == {}


def test_a_stale_row_may_stand_in_for_a_while() -> None:
    cache = RowCache(LARGE, max_stale_s=60.0)
    cache.remember([(b"a", b"row"), (b"none", None)], 10.0)
    assert cache.stale([b"a", b"b", b"none"], 70.0) == {b"a": b"row"}
    assert cache.stale([b"a"], 70.1) == {}


def test_that_there_is_no_row_is_known_for_a_quarter_of_a_second() -> None:
    cache = RowCache(LARGE)
    cache.remember([(b"a", None)], 0.0)
    assert cache.fresh([b"a"], 0.24, 1.0) == {b"a": None}
    assert cache.fresh([b"a"], 0.25, 1.0) == {}
    # nor for longer than a row of that view would be: what has just begun must not be overlooked for most of its age
    assert cache.fresh([b"a"], 0.1, 0.05) == {}
    brief = RowCache(LARGE, ttl_s=0.1)
    brief.remember([(b"a", None)], 0.0)
    assert brief.fresh([b"a"], 0.1, 1.0) == {}


def test_a_later_answer_replaces_and_an_overtaken_one_does_not() -> None:
    cache = RowCache(LARGE)
    cache.remember([(b"a", b"first")], 1.0)
    cache.remember([(b"a", b"second, longer")], 2.0)
    cache.remember([(b"a", b"late")], 1.5)
    assert cache.fresh([b"a"], 2.0, 1.0) == {b"a": b"second, longer"}
    assert cache.bytes == ENTRY_BYTES + 1 + 14
    cache.remember([(b"a", None)], 3.0)
    assert cache.fresh([b"a"], 3.0, 1.0) == {b"a": None}
    assert (cache.bytes, len(cache)) == (ENTRY_BYTES + 1, 1)


def test_what_was_used_longest_ago_goes_first() -> None:
    cache = RowCache(3 * (ENTRY_BYTES + 4))
    cache.remember([(b"a", b"row"), (b"b", b"row"), (b"c", b"row")], 0.0)
    cache.fresh([b"a"], 0.5, 1.0)
    cache.remember([(b"b", b"new")], 0.5)
    cache.remember([(b"d", b"row")], 0.6)
    assert cache.fresh([b"a", b"b", b"c", b"d"], 0.6, 1.0) == {b"a": b"row", b"b": b"new", b"d": b"row"}


def test_what_is_cleared_is_unknown() -> None:
    cache = RowCache(LARGE)
    cache.remember([(b"a", b"row")], 1.0)
    cache.clear()
    assert cache.stale([b"a"], 1.0) == {}
    assert (cache.bytes, len(cache)) == (0, 0)


def test_nothing_fits_into_nothing() -> None:
    cache = RowCache(0)
    cache.remember([(b"a", b"row"), (b"b", None)], 0.0)
    assert (len(cache), cache.bytes) == (0, 0)


def test_a_row_is_fresh_for_a_twentieth_of_the_shortest_age() -> None:
    cache = RowCache(LARGE, ttl_s=1.0)
    assert cache.ttl_s(view_of(0)) == 1.0
    assert cache.ttl_s(view_of(hours(1))) == 1.0
    assert cache.ttl_s(view_of(4_000_000)) == 0.2
    assert cache.ttl_s(view_of(0, 0, 10_000_000, 2_000_000)) == 0.1
    assert cache.ttl_s(view_of(1_000_000, 0, 2_000_000)) == 0.05


KEYS = st.sampled_from([b"a", b"bb", b"ccc", b"dddd"])
ROWS = st.none() | st.binary(min_size=1, max_size=300)


@given(st.integers(0, 2000), st.lists(st.tuples(KEYS, ROWS, st.integers(0, 20)), max_size=30))
@settings(deadline=None)
def test_the_bound_holds_and_bytes_are_those_of_the_entries(
    max_bytes: int, puts: list[tuple[bytes, bytes | None, int]]
) -> None:
    cache = RowCache(max_bytes, ttl_s=1e9, absent_ttl_s=1e9)
    last: dict[bytes, tuple[bytes | None, int]] = {}
    for key, row, read_s in puts:
        held = cache.fresh(last, 20.0, 1e9)
        if key not in held or last[key][1] <= read_s:
            last[key] = (row, read_s)
        cache.remember([(key, row)], read_s)
        held = cache.fresh(last, 20.0, 1e9)
        assert cache.bytes == sum(ENTRY_BYTES + len(each) + len(value or b"") for each, value in held.items()) <= max_bytes
        assert len(held) == len(cache)
        assert all(value == last[each][0] for each, value in held.items())
