"""Pushing events one batch after the other leaves the store as if all had been known at once."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_client.aggregation import count, last, total
from feature_client.errors import ContractError, EntityError, EventError, StoreError
from feature_client.keys import row_keys
from feature_client.memory_store import MemoryStore
from feature_client.point_in_time import find, history_of
from feature_client.retained import available_us
from feature_client.row import unpack
from feature_client.schema import Array, Columns, Entity, EventLog, Feature, Status, days, hours, minutes
from feature_client.store import Key, Row
from feature_client.stream import Push, expire_s, key_columns, wall_clock_us
from feature_client.view import View, feature_view
from tests.feature_client.views import FLIGHTS, VIEWS, aircraft, bytes_column, flights, route

PRINTS = {view.ref: view.ref.encode().ljust(32, b"p") for view in VIEWS}
STORED = (aircraft, route)
END_US = 1_800_000_000_000_000


class FailingStore(MemoryStore):
    """Takes half of what it is given, and fails, as often as it is told."""

    failures = 0

    def write(self, rows: Sequence[tuple[Key, Row]], expire_s: int) -> int:
        if self.failures:
            self.failures -= 1
            super().write(rows[::2], expire_s)
            raise StoreError("half of it")
        return super().write(rows, expire_s)


def part(events: Columns, chosen: Any) -> dict[str, Array]:
    return {name: column[chosen] for name, column in events.items()}


def as_known(events: Columns, source: EventLog = FLIGHTS) -> dict[str, Array]:
    """In the order of becoming known."""
    return part(events, np.argsort(available_us(source, events), kind="stable"))


def entities_of(view: View, events: Columns) -> Columns:
    assert view.entity is not None
    return key_columns(view, sorted(set(zip(*(events[key].tolist() for key in view.entity.keys), strict=True))))


def assert_as_built(store: MemoryStore, view: View, events: Columns, fingerprints: dict[str, bytes] = PRINTS) -> None:
    """The store holds, of every entity, what the training path finds at the end: all bytes, nulls and times."""
    keys = entities_of(view, events)
    held = unpack(view, int.from_bytes(fingerprints[view.ref][:8], "little"), store.read(row_keys("t", view, keys), 1.0))
    built = find(history_of(view, events), keys, np.full(len(held.row_status), END_US))
    assert held.row_status.tolist() == built.row_status.tolist()
    np.testing.assert_array_equal(held.nulls, built.nulls)
    np.testing.assert_array_equal(held.event_us, built.event_us)
    np.testing.assert_array_equal(held.available_us, built.available_us)
    there = held.row_status == Status.PRESENT
    for name in view.names:
        ours, theirs = held.values[name][there], built.values[name][there]
        assert ours.tolist() == theirs.tolist() if ours.dtype == object else ours.tobytes() == theirs.tobytes()


def push_to(store: MemoryStore, views: Sequence[View] = STORED, **settings: int) -> Push:
    return Push(store, "t", views, PRINTS, now_us=lambda: END_US, **settings)


@pytest.mark.parametrize("batch", [1, 7, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_batches_end_as_if_all_had_been_known_at_once(batch: int, seed: int) -> None:
    store = MemoryStore()
    push = push_to(store)
    events = as_known(flights(300, seed))
    for at in range(0, 300, batch):
        push.push("flights", part(events, slice(at, at + batch)))
        if at % 50 == 0:
            for view in STORED:
                assert_as_built(store, view, part(events, slice(0, at + batch)))
    for view in STORED:
        assert_as_built(store, view, events)
    assert push.too_late == {"aircraft@2": 0, "route@1": 0}


LOG = EventLog(
    "taps", {"card": "int64", "event_us": "int64", "known_us": "int64", "tap": "int64"}, "event_us", "known_us", "tap"
)


@feature_view(
    entity=Entity("card", {"card": "int64"}),
    source=LOG,
    inputs={"n": count(10), "s": total("tap", 4), "newest": last("tap")},
    features=[Feature("n", "int64", 0), Feature("s", "float64", 0.0), Feature("newest", "int64", 0)],
)
def taps(n: Array, s: Array, newest: Array) -> dict[str, Array]:
    return {"n": n, "s": s, "newest": newest}


@feature_view(
    entity=Entity("card", {"card": "int64"}),
    source=LOG,
    inputs={"newest": last("tap")},
    features=[Feature("newest_tap", "int64", 0)],
)
def newest_tap(newest: Array) -> dict[str, Array]:
    """Without a window: an event that is not the newest changes nothing."""
    return {"newest_tap": newest}


TAP = st.tuples(st.integers(0, 2), st.integers(0, 40), st.integers(0, 15), st.integers(0, 25))
PRINTS |= {"taps@1": b"a" * 32, "newest_tap@1": b"b" * 32}


@settings(deadline=None, max_examples=150)
@given(st.lists(TAP, min_size=1, max_size=40), st.lists(st.integers(0, 40), max_size=5))
def test_any_history_in_any_batches(rows: list[tuple[int, int, int, int]], cuts: list[int]) -> None:
    columns = np.array(rows, dtype=np.int64).T
    events = {"card": columns[0], "event_us": columns[1], "known_us": columns[1] + columns[2], "tap": columns[3]}
    events = as_known({name: np.ascontiguousarray(column) for name, column in events.items()}, LOG)
    store = MemoryStore()
    push = push_to(store, [taps, newest_tap])
    bounds = sorted({0, len(rows), *(cut for cut in cuts if cut < len(rows))})
    for begin, end in pairwise(bounds):
        push.push("taps", part(events, slice(begin, end)))
        for view in (taps, newest_tap):
            assert_as_built(store, view, part(events, slice(0, end)))


def test_what_is_pushed_out_of_order_is_in_the_final_row() -> None:
    events = {name: np.array(column, np.int64) for name, column in {
        "card": [1, 1, 1], "event_us": [100, 95, 99], "known_us": [105, 104, 101], "tap": [1, 2, 3],
    }.items()}  # fmt: skip
    store = MemoryStore()
    push = push_to(store, [taps])
    assert [push.push("taps", part(events, slice(at, at + 1))) for at in range(3)] == [1, 1, 1]
    assert_as_built(store, taps, events)


def test_the_same_batch_again_changes_nothing() -> None:
    store = MemoryStore()
    push = push_to(store)
    events = as_known(flights(100))
    assert push.push("flights", events) > 0
    before = [push.retained[view.ref].events for view in STORED]
    assert push.push("flights", events) == 0
    assert push.push("flights", part(events, slice(0, 0))) == 0
    assert [push.retained[view.ref].events for view in STORED] == before


def test_after_a_failure_the_same_events_are_pushed_again() -> None:
    store, events = FailingStore(), as_known(flights(200))
    push = push_to(store)
    for at in range(0, 200, 20):
        store.failures = at // 20 % 3
        while True:
            try:
                push.push("flights", part(events, slice(at, at + 20)))
                break
            except StoreError:
                continue
    for view in STORED:
        assert_as_built(store, view, events)


def test_a_new_process_begins_with_the_tail() -> None:
    store, events = MemoryStore(), as_known(flights(400))
    push_to(store).push("flights", part(events, slice(0, 200)))
    begin = int(np.searchsorted(available_us(FLIGHTS, events), available_us(FLIGHTS, events)[199] - days(9)))
    second = push_to(store)
    assert 0 < begin < 200
    second.seed("flights", part(events, slice(begin, 200)))
    for at in range(200, 400, 10):
        second.push("flights", part(events, slice(at, at + 10)))
    for view in STORED:
        assert_as_built(store, view, events)


def idle_events(cards: int, each: int) -> dict[str, Array]:
    """Cards one after the other, far apart, `each` events of every one within its window."""
    event_us = np.repeat(np.arange(cards) * 1000, each) + np.tile(np.arange(each), cards)
    return {
        "card": np.repeat(np.arange(cards), each),
        "event_us": event_us,
        "known_us": event_us,
        "tap": np.arange(cards * each),
    }


def test_what_is_idle_is_cut_down_to_its_newest_event() -> None:
    store, events = MemoryStore(), part(idle_events(3000, 5), slice(4, None))
    push = push_to(store, [taps], lateness_us=100)
    most = 0
    for at in range(0, 15000, 500):
        push.push("taps", part(events, slice(at, at + 500)))
        most = max(most, push.retained["taps@1"].events)
    assert most < 4096 + 3000 + 500
    assert_as_built(store, taps, events)
    kept = push.retained["taps@1"].events
    # to a card that was cut down, an event that would ask for what is forgotten comes too late; one behind its window does not
    late = {name: np.array(column, np.int64) for name, column in {
        "card": [1, 2], "event_us": [1005, 2014], "known_us": [2_999_100, 2_999_100], "tap": [-1, -2],
    }.items()}  # fmt: skip
    assert push.push("taps", late) == 1
    assert push.too_late == {"taps@1": 1}
    assert push.retained["taps@1"].events == kept
    again = {name: np.array(column, np.int64) for name, column in {
        "card": [2], "event_us": [2010], "known_us": [2_999_200], "tap": [-3],
    }.items()}  # fmt: skip
    assert push.push("taps", again) == 1  # it is whole again
    expected = {name: np.concatenate([events[name], late[name][1:], again[name]]) for name in events}
    assert_as_built(store, taps, expected)


def test_ids_are_forgotten_after_the_lateness() -> None:
    push = push_to(MemoryStore(), [newest_tap], lateness_us=100)

    def told(tap: int, instant_us: int) -> int:
        instants = np.array([instant_us])
        return push.push("taps", {"card": np.array([1]), "event_us": instants, "known_us": instants, "tap": np.array([tap])})

    assert told(7, 50) == 1
    assert told(7, 149) == 0
    assert told(8, 160) == 1
    assert told(7, 200) == 0  # for up to twice the lateness
    assert told(9, 270) == 1
    assert told(7, 280) == 1


def test_a_log_that_is_told_again_from_far_back_counts_nothing_twice() -> None:
    """Further back than events may be late, but within a window: as when a consumer is reset."""
    instants = np.arange(0, 30)
    events = {"card": instants % 2, "event_us": instants, "known_us": instants, "tap": instants}
    store = MemoryStore()
    push = push_to(store, [taps, newest_tap], lateness_us=3)
    for at in range(0, 30, 2):
        push.push("taps", part(events, slice(at, at + 2)))
    assert push.push("taps", part(events, slice(18, 30))) == 0
    push.push("taps", part(events, slice(0, 30)))
    for view in (taps, newest_tap):
        assert_as_built(store, view, events)


def test_events_about_nobody_make_no_row() -> None:
    store = MemoryStore()
    events = as_known(flights(60))
    events["origin"] = bytes_column(*(None if index % 3 else value for index, value in enumerate(events["origin"].tolist())))
    push_to(store).push("flights", events)
    some = np.flatnonzero(np.array([value is not None for value in events["origin"].tolist()]))
    assert_as_built(store, aircraft, events)
    keys = entities_of(route, part(events, some))
    assert store.read(row_keys("t", route, keys), 1.0).count(None) == 0
    nobody = events | {"origin": bytes_column(*[None] * 60)}
    assert push_to(MemoryStore(), [route]).push("flights", nobody) == 0


def test_an_event_of_the_future_is_refused_with_its_batch() -> None:
    now_us = wall_clock_us()
    store = MemoryStore()
    push = Push(store, "t", [taps], PRINTS, future_us=minutes(2))
    one = {"card": np.array([1]), "event_us": np.array([now_us]), "known_us": np.array([now_us]), "tap": np.array([1])}
    with pytest.raises(EventError, match=r"'taps' becomes known 3[56]\d s from now"):
        push.push("taps", {name: np.append(column, column) for name, column in one.items()} | {
            "known_us": np.array([now_us, now_us + hours(0.1)]),
        })  # fmt: skip
    assert push.retained["taps@1"].events == 0
    assert push.push("taps", one | {"known_us": np.array([now_us + minutes(1)])}) == 1


def test_deleted_is_gone_until_something_newer_happens() -> None:
    store, events = MemoryStore(), as_known(flights(200, tails=2) | {"flight_id": np.arange(200)})
    push = push_to(store, [aircraft])
    push.push("flights", events)
    until_us = int(events["event_us"].max())
    tails = np.unique(events["tail"])
    assert push.delete(aircraft, {"tail": tails[:1]}, np.array([until_us])) == 1
    assert push.delete(aircraft, {"tail": tails[1:2]}, np.array([0])) == 0  # the row is newer
    stamp = int.from_bytes(PRINTS[aircraft.ref][:8], "little")
    held = unpack(aircraft, stamp, store.read(row_keys("t", aircraft, {"tail": tails}), 1.0))
    assert held.row_status.tolist()[0] == Status.NOT_FOUND
    new = part(events, slice(0, 1)) | {"tail": tails[:1], "flight_id": np.array([10**6])}
    new |= {"event_us": np.array([until_us + 1]), "created_us": np.array([until_us + 1])}
    assert push.push("flights", new) == 1
    kept = part(events, events["tail"] != tails[0])
    assert_as_built(store, aircraft, {name: np.concatenate([kept[name], new[name]]) for name in kept})
    half = np.array([int(np.median(events["event_us"]))])
    push.delete(aircraft, {"tail": tails[1:2]}, half)
    assert push.retained[aircraft.ref].events > 0
    with pytest.raises(EventError, match="none of the views"):
        push.delete(route, {}, half)


def test_what_cannot_be_pushed() -> None:
    store = MemoryStore()
    events = flights(3)
    with pytest.raises(EventError, match="no view here is computed from 'trains'; there are: flights"):
        push_to(store).push("trains", events)
    with pytest.raises(EventError, match="has no column 'seats'"):
        push_to(store).push("flights", {name: column for name, column in events.items() if name != "seats"})
    with pytest.raises(EventError, match="no stored view"):
        push_to(store, [VIEWS[2]])
    with pytest.raises(ContractError):
        Push(store, "t", [route], {"route@1": b"q" * 32})
    other = replace(FLIGHTS, event_id="")
    with pytest.raises(EventError, match="two different event logs named 'flights'"):
        push_to(store, [route, replace(aircraft, source=other)])
    with pytest.raises(EntityError):
        push_to(store).push("flights", events | {"origin": bytes_column(b"x" * 600, b"b", b"c")})


def test_a_log_without_ids_counts_every_event() -> None:
    log = EventLog("plain", {"card": "int64", "event_us": "int64"})
    view = replace(newest_tap, name="counted", source=log, inputs={"newest": count(10)})
    PRINTS[view.ref] = b"d" * 32
    store = MemoryStore()
    push = push_to(store, [view])
    events = {"card": np.array([1, 1, 2, 1]), "event_us": np.array([5, 6, 6, 2])}
    for _ in range(2):
        push.push("plain", events)
    assert_as_built(store, view, {name: np.tile(column, 2) for name, column in events.items()})


def test_ids_of_text_must_be_there() -> None:
    log = EventLog("notes", {"card": "int64", "event_us": "int64", "note": "bytes"}, event_id="note")
    view = replace(
        newest_tap, name="noted", source=log, inputs={"newest": count(10)}, features=(Feature("newest_tap", "int64", 0),)
    )
    PRINTS[view.ref] = b"c" * 32
    push = push_to(MemoryStore(), [view])
    notes = {"card": np.array([1, 1]), "event_us": np.array([5, 6]), "note": bytes_column(b"a", b"a")}
    push.push("notes", notes)
    assert push.retained[view.ref].events == 1
    with pytest.raises(EventError, match="an event of 'notes' has no 'note'"):
        push.push("notes", notes | {"note": bytes_column(b"a", None)})


def test_rows_are_garbage_after_twice_their_age() -> None:
    assert (expire_s(aircraft), expire_s(taps)) == (2 * 30 * 86400, 0)
    assert expire_s(replace(taps, max_age_us=1)) == 1
