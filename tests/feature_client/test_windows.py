"""Rows against the same question asked by loops, on random histories: late, repeated and tied events, and in parts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from feature_client.aggregation import Aggregation, count, last, mean, rate, total
from feature_client.errors import EventError
from feature_client.schema import Array, days
from feature_client.windows import Ints, Rows, codes_of, rows_of, widest_us
from tests.feature_client.views import bytes_column

NO_COLUMNS: dict[str, Array] = {}
AGGREGATIONS = {
    "events": count(7),
    "events_wide": count(12),
    "mean_v": mean("v", 4),
    "mean_wide": mean("v", 12, resolution=0.25),
    "mean_i": mean("i", 7),
    "sum_v": total("v", 7),
    "sum_i": total("i", 12),
    "sum_b": total("b", 7),
    "rate_b": rate("b", 10),
    "last_v": last("v"),
    "last_i": last("i"),
    "last_b": last("b"),
    "last_s": last("s"),
}
ONLY_LAST = {"last_v": last("v"), "last_s": last("s")}


@dataclass(frozen=True)
class Log:
    entity: Ints
    event_us: Ints
    created_us: Ints
    columns: dict[str, Array]
    event_id: Ints | None

    @property
    def available_us(self) -> Ints:
        return np.maximum(self.event_us, self.created_us)

    def part(self, places: Ints) -> "Log":
        columns = {name: column[places] for name, column in self.columns.items()}
        event_id = None if self.event_id is None else self.event_id[places]
        return Log(self.entity[places], self.event_us[places], self.created_us[places], columns, event_id)

    def rows(self, aggregations: Mapping[str, Aggregation] = AGGREGATIONS) -> Rows:
        return rows_of(self.entity, self.event_us, self.created_us, self.columns, aggregations, self.event_id)


def random_log(rng: np.random.Generator, most: int = 24, *, repeats: str = "any", start: int = 0, step: int = 1) -> Log:
    """A short history with many coincidences. `repeats`: of ids; "same" repeats all of an event but when it became known."""
    size = int(rng.integers(0, most + 1))
    event = rng.integers(0, 30, size)
    entity = rng.integers(0, rng.integers(1, 4), size)
    values = rng.normal(0, 100, size)
    values[rng.random(size) < 0.2] = np.nan
    ids = rng.integers(0, max(1, size), size)
    if repeats == "same" and size:
        first = np.unique(ids, return_index=True)[1][np.unique(ids, return_inverse=True)[1]]
        event, entity, values = event[first], entity[first], values[first]
    created = event + rng.choice([0, 0, 0, 1, 2, 5, 15], size) - rng.integers(0, 2, size)
    texts = bytes_column(b"", b"x", "Zürich".encode(), None)
    columns = {
        "v": values,
        "i": rng.integers(-(10**6), 10**6, size),
        "b": rng.random(size) < 0.5,
        "s": texts[rng.integers(0, 4, size)],
    }
    return Log(entity, start + event * step, start + created * step, columns, None if rng.random() < 0.5 else ids)


def known_at(log: Log, instant: int) -> dict[int, list[int]]:
    """By entity, the events that count at an instant, by loops."""
    seen: set[int] = set()
    known: dict[int, list[int]] = {}
    for at in sorted(range(len(log.entity)), key=lambda at: int(log.available_us[at])):
        if log.event_id is not None and int(log.event_id[at]) in seen:
            continue
        if log.event_id is not None:
            seen.add(int(log.event_id[at]))
        if log.available_us[at] <= instant:
            known.setdefault(int(log.entity[at]), []).append(at)
    return known


def expected(log: Log, known: list[int], aggregations: Mapping[str, Aggregation]) -> tuple[int, dict[str, Any]]:
    """The newest event and its row's inputs, by loops."""
    newest = max(known, key=lambda at: (log.event_us[at], log.created_us[at], at))
    inputs: dict[str, Any] = {}
    for name, each in aggregations.items():
        if each.kind == "last":
            inputs[name] = log.columns[each.column][newest]
            continue
        within = [at for at in known if log.event_us[newest] - each.window_us < log.event_us[at] <= log.event_us[newest]]
        if each.kind == "count":
            inputs[name] = len(within)
            continue
        found = [log.columns[each.column][at] for at in within]
        found = [value for value in found if value == value]
        resolution = each.resolution if log.columns[each.column].dtype.kind == "f" else 1.0
        summed = sum(round(float(value) / resolution) for value in found) * resolution
        inputs[name] = float(summed) if each.kind == "sum" else summed / len(found) if found else np.nan
    return int(log.event_us[newest]), inputs


def same(got: Any, wanted: Any) -> bool:
    return bool(got == wanted) or (got != got and wanted != wanted)


def instants(log: Log) -> Iterator[int]:
    for instant in np.unique(log.available_us).tolist():
        yield from (instant - 1, instant)


def check(log: Log, aggregations: Mapping[str, Aggregation]) -> None:
    rows = log.rows(aggregations)
    assert len(set(zip(rows.entity.tolist(), rows.available_us.tolist(), strict=True))) == len(rows.entity)
    assert (np.lexsort((rows.available_us, rows.entity)) == np.arange(len(rows.entity))).all()
    for instant in instants(log):
        known = known_at(log, instant)
        for entity in range(4):
            held = np.flatnonzero((rows.entity == entity) & (rows.available_us <= instant))
            assert (len(held) > 0) == (entity in known)
            if entity in known:
                event_us, inputs = expected(log, known[entity], aggregations)
                assert rows.event_us[held[-1]] == event_us
                wrong = [name for name, value in inputs.items() if not same(rows.inputs[name][held[-1]], value)]
                assert not wrong, (instant, entity, wrong)


def histories(count: int, seed: int, **options: Any) -> Iterator[Log]:
    rng = np.random.default_rng(seed)
    yield from (random_log(rng, **options) for _ in range(count))


def test_rows_are_what_loops_find() -> None:
    for log in histories(800, seed=1):
        check(log, AGGREGATIONS)


def test_rows_without_windows_are_those_of_the_newest_events() -> None:
    for log in histories(300, seed=2):
        check(log, ONLY_LAST)


def test_rows_are_the_same_where_instants_have_no_room_beside_codes() -> None:
    """Events that are a long time apart are searched by rank."""
    far = 2**57
    aggregations = {
        name: each if each.kind == "last" else replace(each, window_us=each.window_us * far)
        for name, each in AGGREGATIONS.items()
    }
    for log in histories(300, seed=3, start=-(2**62) + 2 * far, step=far):
        check(log, aggregations)


def retained(log: Log, known: Ints, widest: int) -> Ints:
    """What pushing keeps: of the events known so far the newest of each entity, and those in the widest window before it."""
    newest = np.full(4, np.iinfo(np.int64).min)
    np.maximum.at(newest, log.entity[known], log.event_us[known])
    of_entity, times = newest[log.entity[known]], log.event_us[known]
    kept: Ints = known[(times > of_entity - widest) | (times == of_entity)]
    return kept


def by_row(rows: Rows, chosen: Ints) -> dict[tuple[int, int], tuple[Any, ...]]:
    """All of each row, to its bits, by entity and the instant it was available from."""
    assert {name: column.dtype for name, column in rows.inputs.items()} == {
        name: np.dtype({"events": "i8", "events_wide": "i8", "last_i": "i8", "last_b": "?", "last_s": "O"}.get(name, "f8"))
        for name in rows.inputs
    }
    pairs = zip(rows.entity[chosen].tolist(), rows.available_us[chosen].tolist(), strict=True)
    columns = [column[chosen] for column in (rows.event_us, *rows.inputs.values())]
    bits = [column.view("i8") if column.dtype == np.float64 else column for column in columns]
    return dict(zip(pairs, zip(*(column.tolist() for column in bits), strict=True), strict=True))


@pytest.mark.parametrize("aggregations", [AGGREGATIONS, ONLY_LAST], ids=["windows", "last"])
def test_pushing_in_parts_makes_the_rows_of_the_whole(aggregations: Mapping[str, Aggregation]) -> None:
    """The events that a writer retains and the new ones are enough, also where a part ends within one instant."""
    rng = np.random.default_rng(4)
    for log in histories(800, seed=5, repeats="same"):
        whole = log.rows(aggregations)
        pushed: dict[tuple[int, int], tuple[Any, ...]] = {}
        in_order = np.argsort(log.available_us, kind="stable")
        held: Ints = np.empty(0, np.int64)
        for new in np.split(in_order, np.sort(rng.integers(0, len(in_order) + 1, 3))):
            if len(new):
                places = np.concatenate([held, new])
                rows = log.part(places).rows(aggregations)
                pushed |= by_row(rows, np.flatnonzero(rows.available_us >= log.available_us[new[0]]))
                held = retained(log, places, widest_us(aggregations))
        assert pushed == by_row(whole, np.arange(len(whole.entity)))


def ints(*values: int) -> Ints:
    return np.array(values, dtype=np.int64)


def rows_of_one(aggregation: Aggregation, column: Array, event_us: Ints | None = None) -> Array:
    times = np.arange(len(column)) if event_us is None else event_us
    return rows_of(np.zeros(len(column), np.int64), times, times, {"x": column}, {"a": aggregation}).inputs["a"]


def test_no_events_make_no_rows() -> None:
    log = next(log for log in histories(100, seed=6) if not len(log.entity))
    for event_id in (None, ints()):
        rows = replace(log, event_id=event_id).rows()
        assert rows.entity.tolist() == rows.event.tolist() == []
        assert set(rows.inputs) == set(AGGREGATIONS)
        assert all(not len(column) for column in rows.inputs.values())


def test_a_row_says_which_event_made_it() -> None:
    rows = rows_of(ints(0, 1, 0), ints(5, 6, 3), ints(5, 6, 9), NO_COLUMNS, {"events": count(10)})
    assert (rows.entity.tolist(), rows.event.tolist(), rows.event_us.tolist()) == ([0, 0, 1], [0, 2, 1], [5, 5, 6])
    assert rows.inputs["events"].tolist() == [1, 2, 1]


def test_of_one_instant_the_last_event_of_the_log_made_the_row() -> None:
    rows = rows_of(ints(0, 0, 0), ints(4, 5, 3), ints(9, 9, 9), NO_COLUMNS, {"events": count(10)})
    assert (rows.event.tolist(), rows.event_us.tolist(), rows.inputs["events"].tolist()) == ([2], [5], [3])


def test_an_event_older_than_every_window_makes_no_row() -> None:
    rows = rows_of(ints(0, 0), ints(50, 3), ints(50, 60), NO_COLUMNS, {"events": count(10)})
    assert rows.event.tolist() == [0]


@pytest.mark.parametrize("value", [np.inf, -np.inf, 2.0**22, -(2.0**22)])
def test_values_that_no_sum_holds_are_named(value: float) -> None:
    column = np.array([1.0, np.nan, value])
    with pytest.raises(EventError, match=r"row 2 of 'x' is .*coarser resolution"):
        rows_of_one(total("x", 5), column)
    with pytest.raises(EventError, match="row 2"):
        rows_of_one(mean("x", 5), column)
    assert rows_of_one(last("x"), column)[-1] == value


def test_a_coarser_resolution_holds_larger_values() -> None:
    assert rows_of_one(total("x", 5, resolution=1.0), np.array([2.0**41, 2.0**41])).tolist() == [2.0**41, 2.0**42]


def test_sums_of_integers_that_could_overflow_are_refused() -> None:
    least = np.array([-(2**63), 5])
    assert rows_of_one(total("x", 1), np.array([2**62, 2**62])).tolist() == [2.0**62, 2.0**62]
    assert rows_of_one(mean("x", 1), np.array([2**62, 2**62])).tolist() == [2.0**62, 2.0**62]
    for column in (np.array([2**62, 2**62]), least):
        with pytest.raises(EventError, match=r"a window of 2 events of 'x'.*too large"):
            rows_of_one(total("x", 2), column)


def test_sums_come_out_right_though_those_over_all_events_do_not_fit() -> None:
    """A prefix over the whole log may wrap around: a window's part of it does not."""
    column = np.full(64, 2**60)
    assert rows_of_one(total("x", 4), column).tolist() == [2.0**60 * min(at + 1, 4) for at in range(64)]


def test_no_order_of_events_changes_a_bit() -> None:
    rng = np.random.default_rng(7)
    column, times = rng.normal(0, 1000, 500), rng.permutation(500)
    shuffled = rng.permutation(500)
    one, other = (rows_of_one(mean("x", 100), column[at], times[at]) for at in (np.arange(500), shuffled))
    assert one[-1].tobytes() == other[-1].tobytes()


def test_columns_may_be_read_only_and_with_gaps() -> None:
    column = np.arange(10.0)[::2]
    column.flags.writeable = False
    times = np.arange(10)[::2]
    times.flags.writeable = False
    assert rows_of_one(mean("x", 4), column, times).tolist() == [0.0, 1.0, 3.0, 5.0, 7.0]


def test_codes_number_combinations() -> None:
    codes, combinations = codes_of([np.array([7, -1, 7])])
    assert [combinations[code] for code in codes] == [(7,), (-1,), (7,)]
    assert sorted(codes.tolist()) == [0, 1, 1]
    codes, combinations = codes_of([np.array([7, 7, 7]), bytes_column(b"a", None, b"a")])
    assert [combinations[code] for code in codes] == [(7, b"a"), (7, None), (7, b"a")]
    assert len(combinations) == 2
    for empty in (ints(), bytes_column()):
        codes, combinations = codes_of([empty])
        assert codes.dtype == np.int64
        assert codes.tolist() == combinations == []


def test_the_widest_window() -> None:
    assert widest_us(AGGREGATIONS) == 12
    assert widest_us(ONLY_LAST) == 0
    assert widest_us({}) == 0
    assert widest_us({"a": count(days(1)), "b": last("x")}) == days(1)
