"""What files say is what was counted, added up, and no more than is kept."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.errors import RegistryError
from server.core.versions import VersionKey
from server.telemetry.usage import (
    KEPT_DAYS,
    KEPT_IDLE_DAYS,
    UsageRow,
    Use,
    UseKey,
    Uses,
    day_of,
    forget_old,
    merge,
    read_usage,
    rows_of,
    uses_of,
    write_usage,
)

DAY_NS = 86_400 * 10**9
NOW_NS = 20_000 * DAY_NS + 5 * 10**9
NAMES = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8)
MICROSECONDS = st.integers(1, 4 * 10**15).map(lambda us: us * 1000)


def use(first_ns: int, last_ns: int, days: dict[int, int]) -> Use:
    return Use(max(1, sum(days.values())), min(first_ns, last_ns), max(first_ns, last_ns), days)


USES: st.SearchStrategy[Uses] = st.dictionaries(
    st.builds(UseKey, st.builds(VersionKey, st.sampled_from(["m", "n"]), st.integers(1, 3)), NAMES),
    st.builds(use, MICROSECONDS, MICROSECONDS, st.dictionaries(st.integers(0, 40_000), st.integers(1, 10**12), max_size=4)),
    max_size=6,
)


@given(USES)
def test_a_file_says_what_was_counted(uses: Uses) -> None:
    data = write_usage("host-8001", uses)
    assert read_usage(data, "file") == uses
    assert write_usage("host-8001", read_usage(data, "file")) == data
    assert uses_of(rows_of(uses)) == uses


@given(USES, USES)
def test_servers_add_up(one: Uses, other: Uses) -> None:
    together = merge([one, other])
    assert together == merge([other, one])
    assert together.keys() == one.keys() | other.keys()
    for key, both in together.items():
        parts = [uses[key] for uses in (one, other) if key in uses]
        assert both.requests == sum(part.requests for part in parts)
        assert both.first_ns == min(part.first_ns for part in parts)
        assert both.last_ns == max(part.last_ns for part in parts)
        assert sum(both.days.values()) == sum(sum(part.days.values()) for part in parts)
    assert merge([one]) == one


def row(**fields: Any) -> dict[str, Any]:
    start = datetime(2026, 11, 1, tzinfo=UTC)
    made = {"model": "m", "version": 3, "consumer": "c", "requests": 1, "first": start, "last": start, "days": {}}
    return {**made, **fields}


def test_rows_are_in_the_order_people_want() -> None:
    rows = [UsageRow(**row(**fields)) for fields in (
        {"model": "n", "version": 1},
        {"version": 2, "consumer": "", "requests": 99},
        {"version": 2, "consumer": "rare"},
        {"version": 2, "consumer": "busy", "requests": 9},
        {"version": 10},
    )]  # fmt: skip
    uses = uses_of(rows)
    shown = [(each.model, each.version, each.consumer) for each in rows_of(uses)]
    assert shown == [("m", 10, "c"), ("m", 2, "busy"), ("m", 2, "rare"), ("m", 2, ""), ("n", 1, "c")]
    assert [each.model for each in rows_of(uses, "n")] == ["n"]
    assert rows_of(uses, "nobody") == []


def test_days_go_before_consumers_do() -> None:
    today = day_of(NOW_NS)
    old = today - KEPT_DAYS

    def of(last_day: int, days: dict[int, int]) -> Use:
        return Use(10, 0, last_day * DAY_NS + DAY_NS - 1, days)

    uses = {
        UseKey(VersionKey("m", 1), "now"): of(today, {old: 1, old + 1: 2, today: 3}),
        UseKey(VersionKey("m", 1), "long ago"): of(today - KEPT_IDLE_DAYS + 1, {today - KEPT_IDLE_DAYS + 1: 4}),
        UseKey(VersionKey("m", 1), "forgotten"): of(today - KEPT_IDLE_DAYS, {}),
    }
    forget_old(uses, NOW_NS)
    assert {key.consumer: each.days for key, each in uses.items()} == {"now": {old + 1: 2, today: 3}, "long ago": {}}
    assert {each.requests for each in uses.values()} == {10}, "totals stay"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"\xff\xfe",
        b'{"schema_version": 2, "server": "i", "uses": []}',
        b'{"schema_version": 1, "server": "i", "uses": [{"model": "m"}]}',
        b'{"schema_version": 1, "server": "i", "uses": [], "more": 1}',
        write_usage("i", uses_of([UsageRow(**row())]))[:-9],
        write_usage("i", uses_of([UsageRow(**row())])).replace(b'"version":3', b'"version":0'),
        write_usage("i", uses_of([UsageRow(**row())])).replace(b'"requests":1', b'"requests":-1'),
    ],
)
def test_what_is_no_usage_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(RegistryError, match=r"^host\.json holds no usage: "):
        read_usage(data, "host.json")


def test_an_instant_has_its_microsecond() -> None:
    odd = datetime(2026, 11, 21, 23, 59, 59, 999_999, tzinfo=UTC)
    (shown,) = rows_of(uses_of([UsageRow(**row(first=odd, last=odd + timedelta(microseconds=1)))]))
    assert (shown.first, shown.last) == (odd, odd + timedelta(microseconds=1))
