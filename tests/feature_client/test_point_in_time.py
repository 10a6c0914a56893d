"""Training sets against loops over the events, label by label; what cannot be events or labels; entities that nobody is."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from feature_client.errors import DefinitionError, EntityError, EventError
from feature_client.feature_set import Assembled, FeatureSet
from feature_client.point_in_time import check_events, check_labels, find, history_of, training_set
from feature_client.schema import DEFAULTED, Array, Columns, Status, days, hours, minutes
from feature_client.view import View
from tests.feature_client.views import AIRCRAFT, FLIGHTS, STATES, VIEWS, aircraft, bytes_column, flights, planned, route

NOTHING_FOUND = Status.NOT_FOUND | DEFAULTED


def labels(rng: np.random.Generator, events: Columns, count: int) -> tuple[Array, dict[str, Array]]:
    """Instants at, just before and just after something becomes known, and any; of entities with and without events."""
    known = np.maximum(events["event_us"], events["created_us"])
    at = rng.integers(0, max(1, len(known)), count)
    as_of = (known[at] if len(known) else np.zeros(count, np.int64)) + rng.choice([-1, 0, 1, hours(5), -days(3)], count)
    keys = {"tail": rng.integers(-2, 5, count)}
    for name in ("origin", "destination"):
        airports = bytes_column(b"JFK", b"LGA", "ZRÜ".encode(), b"a|b:{c}", b"nowhere", None)
        keys[name] = airports[rng.integers(0, 6, count)]
    return as_of, keys


def known_of(events: Columns, keys: Mapping[str, Any], as_of_us: int) -> list[int]:
    """The events of an entity that count at an instant, by loops."""
    known = np.maximum(events["event_us"], events["created_us"])
    seen: set[int] = set()
    found = []
    for at in sorted(range(len(known)), key=lambda at: int(known[at])):
        if int(events["flight_id"][at]) not in seen:
            seen.add(int(events["flight_id"][at]))
            if known[at] <= as_of_us and all(value is not None and events[key][at] == value for key, value in keys.items()):
                found.append(at)
    return found


def by_loops(events: Columns, keys: Mapping[str, Any], as_of_us: int) -> dict[str, tuple[Any, int]]:
    """Features of the example views with statuses, written once more by hand."""
    made: dict[str, tuple[Any, int]] = {}
    known = known_of(events, {"tail": keys["tail"]}, as_of_us)
    defaults = [0, 5.0, 0.25, 0.0, [-1.0, -1.0], b"", False]
    if not known:
        made |= {name: (default, NOTHING_FOUND) for name, default in zip(aircraft.names, defaults, strict=True)}
    else:
        newest = max(known, key=lambda at: (events["event_us"][at], events["created_us"][at], at))
        newest_us = int(events["event_us"][newest])
        week = [at for at in known if events["event_us"][at] > newest_us - days(7)]
        delays = [round(float(events["delay_min"][at]) * 2**20) for at in week if not np.isnan(events["delay_min"][at])]
        delay = sum(delays) * 2.0**-20 / len(delays) if delays else np.nan
        latest = float(np.float32(events["delay_min"][newest]))
        late = sum(bool(events["is_late"][at]) for at in week) / len(week)
        old = as_of_us - newest_us > days(3)
        values: list[tuple[Any, int]] = [
            (sum(int(events["event_us"][at]) > newest_us - days(1) for at in known), 0),
            (float(np.float32(delay)), 0) if delays else (5.0, Status.NULL | DEFAULTED),
            (0.25, Status.STALE | DEFAULTED) if old else (late, 0),
            (latest, Status.NULL if np.isnan(latest) else 0),
            ([-1.0, -1.0], Status.NULL | DEFAULTED)
            if np.isnan(latest) and not delays
            else ([latest, float(np.float32(delay))], 0),
            (events["carrier"][newest], Status.NULL if events["carrier"][newest] is None else 0),
            (bool(events["seats"][newest] > 200), 0),
        ]
        made |= dict(zip(aircraft.names, values, strict=True))
    known = known_of(events, {name: keys[name] for name in ("origin", "destination")}, as_of_us)
    newest_us = max((int(events["event_us"][at]) for at in known), default=0)
    if not known or as_of_us - newest_us > days(2):
        made |= dict.fromkeys(route.names, (0, Status.STALE if known else Status.NOT_FOUND))
        return made
    recent = [at for at in known if events["event_us"][at] > newest_us - hours(6)]
    delays = [round(float(events["delay_min"][at]) * 2**20) for at in recent if not np.isnan(events["delay_min"][at])]
    made["route_flights"] = (len(recent), 0)
    made["route_delay"] = (sum(delays) * 2.0**-20 / len(delays), 0) if delays else (0.0, Status.NULL | DEFAULTED)
    return made


def test_every_label_gets_what_loops_find() -> None:
    rng = np.random.default_rng(11)
    features = FeatureSet([aircraft, route])
    for seed in range(150):
        events = flights(int(rng.integers(0, 60)), seed, tails=3, span_us=int(rng.choice([minutes(20), days(1), days(30)])))
        as_of, keys = labels(rng, events, int(rng.integers(1, 40)))
        made = training_set(features, {"flights": events}, as_of, keys)
        for at, instant in enumerate(as_of.tolist()):
            wanted = by_loops(events, {name: column[at] for name, column in keys.items()}, instant)
            for name, (value, status) in wanted.items():
                assert made.statuses[name][at] == status, (seed, at, name)
                np.testing.assert_array_equal(made.values[name][at], value)
            assert made.refused[at] == (wanted["route_flights"][1] in (Status.NOT_FOUND, Status.STALE))


def everything(events: Columns, as_of: Array, keys: Columns) -> Assembled:
    distance = np.where(as_of % 2 == 0, 900.0, np.nan)
    request = {"distance_mi": distance, "speed_kn": np.full(len(as_of), 420.0)}
    return training_set(FeatureSet(VIEWS, STATES), {"flights": events}, as_of, keys, request)


def assert_same(one: Assembled, other: Assembled, places: slice) -> None:
    for name, column in one.values.items():
        assert column.dtype == other.values[name].dtype
        if column.dtype == object:
            assert column[places].tolist() == other.values[name].tolist()
        else:
            assert column[places].tobytes() == other.values[name].tobytes()
        assert one.statuses[name][places].tobytes() == other.statuses[name].tobytes()
    assert one.refused[places].tolist() == other.refused.tolist()


def test_a_label_is_the_same_among_any_others() -> None:
    """Also where there are more labels than rows, and fewer."""
    rng = np.random.default_rng(12)
    events = flights(80, 12)
    as_of, keys = labels(rng, events, 300)
    whole = everything(events, as_of, keys)
    for begin, end in [(0, 0), *((at, at + 1) for at in range(0, 300, 7)), (10, 60), (100, 299)]:
        part = {name: column[begin:end] for name, column in keys.items()}
        assert_same(whole, everything(events, as_of[begin:end], part), slice(begin, end))


def test_computed_features_are_of_the_call_and_the_rows() -> None:
    events = flights(50, 13)
    as_of, keys = labels(np.random.default_rng(13), events, 20)
    made = everything(events, as_of, keys)
    flight_min = np.where(as_of % 2 == 0, 900.0 / (420.0 * 1.15078) * 60, 90.0).astype(np.float32)
    assert made.values["flight_min"].tobytes() == flight_min.tobytes()
    assert set(made.values) == {name for view in VIEWS for name in view.names}


def test_events_that_are_known_later_than_a_label_do_not_count() -> None:
    events = {name: column[:2] for name, column in flights(2, 1, tails=1).items()}
    events |= {"event_us": np.array([10, 20]), "created_us": np.array([10, 50]), "delay_min": np.array([1.0, 2.0])}
    events |= {"flight_id": np.array([1, 2])}
    as_of = np.array([9, 10, 49, 50])
    made = training_set(FeatureSet([aircraft]), {"flights": events}, as_of, {"tail": np.full(4, -1)})
    assert made.values["tail_latest"].tolist() == [0.0, 1.0, 1.0, 2.0]
    assert made.statuses["tail_latest"].tolist() == [NOTHING_FOUND, 0, 0, 0]


def test_without_events_or_labels() -> None:
    rng = np.random.default_rng(14)
    none, some = flights(0), flights(30, 14)
    for events, count in ((none, 5), (none, 0), (some, 0)):
        as_of, keys = labels(rng, events, count)
        made = everything(events, as_of, keys)
        assert all(len(column) == count for column in (*made.values.values(), *made.statuses.values(), made.refused))
        assert made.statuses["tail_late"].tolist() == [NOTHING_FOUND] * count
        assert made.values["tail_pair"].tolist() == [[-1.0, -1.0]] * count
        assert made.statuses["route_delay"].tolist() == [Status.NOT_FOUND] * count  # refused: nothing stands in


def test_events_without_a_key_are_about_nobody() -> None:
    events = flights(60, 15)
    events["origin"][::3] = None
    events["flight_id"] = np.arange(60) // 2  # also the first of two that have one id may be about nobody
    history = history_of(route, events)
    assert all(None not in each for each in history.index)
    assert sorted(history.index.values()) == list(range(len(history.index)))
    assert set(history.rows.entity.tolist()) <= set(history.index.values())
    of_code = {code: each for each, code in history.index.items()}
    for entity, at in zip(history.rows.entity.tolist(), history.rows.event.tolist(), strict=True):
        assert of_code[entity] == (events["origin"][at], events["destination"][at])
    keys = {"origin": bytes_column(None, b"JFK"), "destination": bytes_column(b"LGA", None)}
    found = find(history, keys, np.full(2, 2_000_000_000_000_000))
    assert found.row_status.tolist() == [Status.NOT_FOUND] * 2


def test_a_key_that_no_row_can_have_is_refused_in_training_too() -> None:
    events = flights(3)
    events["origin"][:2] = [b"x" * 512, None]
    assert len(history_of(route, events).index) == 2
    events["origin"][1] = b"x" * 513
    with pytest.raises(EntityError, match=r"a join key of 'route@1' has 513 bytes; 512 at most: b'x+'\.\.\."):
        history_of(route, events)


def test_entities_far_apart_in_time_and_number() -> None:
    """Instants over most of what int64 holds, for several entities: they are searched by rank."""
    far = 2**62 - 1
    events = flights(6, 16)
    events |= {"tail": np.array([1, 2**62, -(2**62), 1, 2**62, 1]), "flight_id": np.arange(6)}
    events["event_us"] = np.array([-far, -far, 0, 5, far, far])
    events["created_us"] = events["event_us"].copy()
    keys = {"tail": np.array([1, 1, 1, 1, 2**62, 2**62, -(2**62), 7])}
    as_of = np.array([-far, 4, 5, far, far - 1, far, -1, far])
    found = find(history_of(aircraft, events), keys, as_of)
    assert found.event_us.tolist() == [-far, -far, 5, far, -far, far, 0, 0]
    assert found.row_status.tolist() == [0, 0, 0, 0, 0, 0, Status.NOT_FOUND, Status.NOT_FOUND]
    assert found.values["tail_flights"][:6].tolist() == [1] * 6


def test_only_views_of_events_have_a_history() -> None:
    for view in (planned, replace(aircraft, inputs={}, function=dict)):
        with pytest.raises(EventError, match="is no stored view: it is not computed from events"):
            history_of(view, flights(3))


BROKEN: list[tuple[str, Any, str]] = [
    ("tail", None, "has no column 'tail'"),
    ("tail", np.arange(4, dtype=np.int32), r"int32, not int64; `column\.astype\(np\.int64\)`"),
    ("tail", np.arange(4, dtype=">i8"), r">i8, not int64"),
    ("tail", np.arange(4.0), "float64, not int64"),
    ("tail", [1, 2, 3, 4], "list, not a numpy array"),
    ("tail", np.zeros((4, 1), np.int64), r"\[4, 1\], not a numpy array \[N\]"),
    ("tail", np.arange(3), r"different lengths: \[3, 4\]"),
    ("event_us", np.arange(4).astype("datetime64[ns]"), r"astype\('datetime64\[us\]'\)\.astype\(np\.int64\)"),
    ("event_us", np.array([0, 1, np.iinfo(np.int64).min, 3]), r"-9223372036854775808 in row 2, which is no instant \(NaT"),
    ("created_us", np.array([0, 2**62, 2, 3]), "in row 1, which is no instant"),
    ("origin", np.array([b"a", None, "JFK", b"c"], dtype=object), "str in row 2, not bytes or None"),
    ("origin", np.array([b"a", b"b", 1.5, b"c"], dtype=object), "float in row 2"),
    ("origin", np.array(["a", "b", "c", "d"]), r"<U1, not bytes; make it an array of objects"),
    ("is_late", np.zeros(4, np.int8), r"int8, not bool"),
]


@pytest.mark.parametrize(("name", "column", "text"), BROKEN, ids=lambda value: value if isinstance(value, str) else "")
def test_columns_that_are_not_the_logs_are_named(name: str, column: Any, text: str) -> None:
    events: dict[str, Any] = flights(4)
    del events[name]
    if column is not None:
        events[name] = column
    with pytest.raises(EventError, match=text):
        check_events(FLIGHTS, events)
    with pytest.raises(EventError, match=text):
        training_set(FeatureSet([aircraft]), {"flights": events}, np.arange(2), {"tail": np.arange(2)})


def test_events_must_have_the_id_that_they_are_said_to_have() -> None:
    source = replace(FLIGHTS, event_id="carrier")
    events = flights(4)
    events["carrier"] = bytes_column(b"a", b"b", b"a", b"d")
    check_events(source, events)
    view: View = replace(aircraft, source=source)
    assert len(history_of(view, events).rows.entity) <= 3
    events["carrier"][2] = None
    with pytest.raises(EventError, match="an event of 'flights' has no 'carrier'"):
        check_events(source, events)


def test_labels_that_cannot_be() -> None:
    features, keys, as_of = FeatureSet([aircraft]), {"tail": np.arange(3)}, np.arange(3)
    check_labels(features, as_of, keys)
    check_labels(features, as_of, keys | {"unused": np.zeros(1)})
    events = {"flights": flights(3)}
    wrong: list[tuple[Array, dict[str, Array], str]] = [
        (as_of.astype(np.int32), keys, "the instants of labels is int32, not int64"),
        (as_of.astype("datetime64[s]"), keys, "instants of labels"),
        (np.array([0, 1, np.iinfo(np.int64).min]), keys, "row 2, which is no instant"),
        (as_of, {}, r"the join key 'tail': int64, \[3\]"),
        (as_of, {"tail": np.arange(4)}, r"the join key 'tail': int64, \[3\]"),
        (as_of, {"tail": np.arange(3.0)}, "the join key 'tail' of labels is float64"),
        (as_of, {"tail": bytes_column(b"a", b"b", b"c")}, "the join key 'tail' of labels is object"),
    ]
    for instants, given, text in wrong:
        with pytest.raises(EventError, match=text):
            training_set(features, events, instants, given)


def test_logs_that_are_not_there() -> None:
    with pytest.raises(EventError, match="no events of 'flights' were given, which 'aircraft@2'"):
        training_set(FeatureSet([aircraft]), {}, np.arange(2), {"tail": np.arange(2)})
    with pytest.raises(EventError, match="'distance_mi' is missing"):
        training_set(FeatureSet([planned, aircraft]), {"flights": flights(2)}, np.arange(2), {"tail": np.arange(2)})
    request = {"distance_mi": np.ones(2), "speed_kn": np.ones(2)}
    keys = {"tail": np.arange(2), "origin": bytes_column(b"", b""), "destination": bytes_column(b"", b"")}
    with pytest.raises(DefinitionError, match="'standardised@1' has no state"):
        training_set(FeatureSet(VIEWS), {"flights": flights(2)}, np.arange(2), keys, request)


def test_a_view_of_the_same_log_may_have_other_keys() -> None:
    """Codes of one view say nothing to another."""
    events = flights(40, 17)
    assert set(history_of(aircraft, events).index) == {(each,) for each in events["tail"].tolist()}
    assert set(history_of(route, events).index) == set(zip(events["origin"], events["destination"], strict=True))
    assert AIRCRAFT.keys == {"tail": "int64"}
