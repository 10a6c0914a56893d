"""The audit is silent over what was served as it was trained, and finds every single bit that was not."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from feature_client.audit import AuditReport, audit
from feature_client.errors import EventError
from feature_client.feature_set import FeatureSet
from feature_client.fingerprint import fingerprint, stamp_of
from feature_client.keys import row_keys
from feature_client.memory_store import MemoryStore
from feature_client.retained import available_us
from feature_client.row import pack, unpack
from feature_client.samples import Sampled, line_of, sampled_of
from feature_client.schema import DEFAULTED, Array, Columns, Status, days, hours, minutes
from feature_client.served import absent_rows, serve
from feature_client.store import Key, Row
from feature_client.stream import Push
from feature_client.view import View
from tests.feature_client.views import FLIGHTS, STATES, VIEWS, aircraft, bytes_column, flights, planned, route

FEATURES = FeatureSet(VIEWS, STATES)
ORIGIN = "delays:2"
SETS = {ORIGIN: FEATURES}
STORED = (aircraft, route)
STAMPS = {view.ref: stamp_of(fingerprint(view)) for view in STORED}


class Service:
    """Serves from a store that events are pushed to, and keeps samples, as a server would."""

    def __init__(self, features: FeatureSet = FEATURES, store: MemoryStore | None = None) -> None:
        self.features = features
        self.store = store or MemoryStore()
        self.push = Push(self.store, "t", STORED, {view.ref: fingerprint(view) for view in STORED}, now_us=lambda: 2**61)
        self.samples: list[Sampled] = []
        self._rng = np.random.default_rng(1)

    def serve(
        self, as_of_us: int, rows: int = 20, unanswered: Sequence[View] = (), given: Mapping[str, Array] | None = None
    ) -> None:
        keys: dict[str, Array] = {"tail": self._rng.integers(-2, 6, rows)}
        airports = bytes_column(b"JFK", b"LGA", "ZRÜ".encode(), b"a|b:{c}", b"nowhere")
        keys |= {name: airports[self._rng.integers(0, 5, rows)] for name in ("origin", "destination")}
        request = {"distance_mi": self._rng.normal(900, 300, rows), "speed_kn": self._rng.normal(430, 30, rows)}
        served, available = {}, {}
        for view in STORED:
            if view in unanswered:
                found = absent_rows(view, rows, Status.TIMEOUT)
            else:
                found = unpack(view, STAMPS[view.ref], self.store.read(row_keys("t", view, keys), 1.0))
            served[view.ref], available[view.ref] = serve(view, found, as_of_us), found.available_us
        made = self.features.assemble(rows, request, given or {}, served)
        instants = np.full(rows, as_of_us)
        refs = tuple(view.ref for view in self.features.views)
        sampled = Sampled(ORIGIN, refs, instants, keys, request, made.values, made.statuses, available, tuple(given or ()))
        self.samples.append(sampled_of(line_of(sampled)))


def part(events: Columns, chosen: Any) -> dict[str, Array]:
    return {name: column[chosen] for name, column in events.items()}


def replay(service: Service, events: Columns, behind_us: int = 0, **serving: Any) -> None:
    """Serve at instants spread over the log, from a store that is as far behind it."""
    known_us = available_us(FLIGHTS, events)
    order = np.argsort(known_us, kind="stable")
    begin = 0
    for as_of_us in np.linspace(known_us.min(), known_us.max(), 25).astype(np.int64).tolist():
        end = int(np.searchsorted(known_us[order], as_of_us - behind_us, side="right"))
        service.push.push("flights", part(events, order[begin:end]))
        begin = end
        service.serve(as_of_us, **serving)


def judged(
    service: Service, events: Columns, max_lag_us: int | None = None, sets: Mapping[str, FeatureSet] = SETS
) -> AuditReport:
    return audit(service.samples, sets, {"flights": events}, max_lag_us)


def wrong(report: AuditReport) -> dict[str, int]:
    return {each.feature: each.mismatches for each in report.features if each.mismatches}


def test_what_was_served_as_trained_is_not_complained_about() -> None:
    service, events = Service(), flights(400)
    replay(service, events)
    report = judged(service, events, 0)
    assert (report.rows, report.reads, report.unanswered, report.unknown, report.mismatches) == (500, 1000, 0, 0, 0)
    assert len(report.delays_us) == len(report.ahead_us) == 0
    assert [each.feature for each in report.features] == list(FEATURES.features)
    assert all((each.rows, each.example, each.origin) == (500, None, ORIGIN) for each in report.features)
    statuses = np.concatenate([status for each in service.samples for status in each.statuses.values()])
    assert {Status.PRESENT, Status.NULL, Status.NOT_FOUND, Status.NOT_FOUND | DEFAULTED} <= set(statuses.tolist())


def test_a_store_that_is_behind_is_lag_and_not_skew() -> None:
    service, events = Service(), flights(400)
    replay(service, events, behind_us=hours(2))
    report = judged(service, events)
    assert (report.mismatches, report.unknown) == (0, 0)
    assert 0 < len(report.delays_us) < 400
    assert 0 < int(report.delays_us.max()) <= hours(2)
    ageless = FeatureSet((replace(aircraft, max_age_us=0), *VIEWS[1:]), STATES)
    assert judged(service, events, sets={ORIGIN: ageless, "delays:1": FEATURES}).mismatches == 0
    within = judged(service, events, hours(2))
    assert (within.too_late, within.mismatches) == (0, 0)
    beyond = judged(service, events, hours(1))
    assert beyond.mismatches == beyond.too_late == int((report.delays_us > hours(1)).sum()) > 0


def test_a_row_from_after_the_instant_is_ahead_of_it() -> None:
    service, events = Service(), flights(400)
    service.push.push("flights", events)
    as_of_us = int(available_us(FLIGHTS, events).max()) - minutes(1)
    service.serve(as_of_us, 200)
    report = judged(service, events, minutes(1))
    assert report.mismatches == 0
    assert report.ahead_us.tolist() == [minutes(1)] * len(report.ahead_us) != []
    assert judged(service, events, minutes(0.5)).mismatches == len(report.ahead_us)


def test_one_bit_of_one_value_is_found() -> None:
    service, events = Service(), flights(400)
    replay(service, events)
    sampled = service.samples[10]
    row = int(np.flatnonzero(sampled.statuses["tail_delay"] == Status.PRESENT)[0])
    sampled.values["tail_delay"][row] = np.nextafter(sampled.values["tail_delay"][row], np.float32(np.inf))
    report = judged(service, events)
    assert wrong(report) == {"tail_delay": 1}
    example = next(each for each in report.features if each.feature == "tail_delay").example
    assert example is not None
    assert (example.ulps, example.keys["tail"], example.as_of_us) == (1, sampled.keys["tail"][row], sampled.as_of_us[row])
    assert example.known_us == sampled.available_us["aircraft@2"][row]
    assert (example.served, example.served_status) == (float(sampled.values["tail_delay"][row]), Status.PRESENT)
    assert example.recomputed != example.served


class TamperingStore(MemoryStore):
    """Changes one value of every row of routes by one unit in the last place, and makes the row look whole."""

    def write(self, rows: Sequence[tuple[Key, Row]], expire_s: int) -> int:
        stamp = STAMPS[route.ref]
        changed = []
        for key, row in rows:
            if (found := unpack(route, stamp, [row])).row_status[0] == Status.PRESENT:
                found.values["route_delay"] = np.nextafter(found.values["route_delay"], np.inf)
                row = pack(route, stamp, found.values, found.nulls, found.event_us, found.available_us)[0]
            changed.append((key, row))
        return super().write(changed, expire_s)


def test_rows_that_were_changed_in_the_store_are_found() -> None:
    service, events = Service(store=TamperingStore()), flights(400)
    replay(service, events)
    report = judged(service, events)
    found = [sampled.statuses["route_delay"] == Status.PRESENT for sampled in service.samples]
    assert wrong(report) == {"route_delay": int(np.concatenate(found).sum())}
    assert {each.example.ulps for each in report.features if each.example} == {1}


@pytest.mark.parametrize(
    ("name", "value", "ulps"),
    [
        ("tail_carrier", b"other", None),
        ("tail_flights", 999, None),
        ("tail_pair", [1.0, np.nan], None),
        ("tail_large", None, None),
    ],
)
def test_values_of_every_type_are_compared(name: str, value: Any, ulps: int | None) -> None:
    service, events = Service(), flights(400)
    replay(service, events)
    column = service.samples[3].values[name]
    column[7] = ~column[7] if value is None else value
    report = judged(service, events)
    assert wrong(report) == {name: 1}
    assert next(each.example.ulps for each in report.features if each.example) == ulps


def test_a_status_is_compared_as_a_value_is() -> None:
    service, events = Service(), flights(400)
    replay(service, events)
    statuses = service.samples[3].statuses["tail_late"]
    row = int(np.flatnonzero(statuses == Status.PRESENT)[0])
    statuses[row] = Status.STALE | DEFAULTED
    assert wrong(judged(service, events)) == {"tail_late": 1}


def test_other_functions_and_states_are_found() -> None:
    service, events = Service(), flights(400)
    replay(service, events)

    def faster(distance_mi: Array, speed_kn: Array, tail_delay: Array) -> Mapping[str, Array]:
        made = dict(planned.function(distance_mi, speed_kn, tail_delay))
        return made | {"flight_min": made["flight_min"] * 0.99}

    other = FeatureSet((*STORED, replace(planned, function=faster), VIEWS[3]), STATES)
    assert wrong(judged(service, events, sets={ORIGIN: other})) == {"flight_min": 500}
    moved = {"standardised@1": STATES["standardised@1"] | {"late": np.array([0.25, 0.126])}}
    found = wrong(judged(service, events, sets={ORIGIN: FeatureSet(VIEWS, moved)}))
    assert set(found) == {"late_z"}


@pytest.mark.parametrize("policy", ["on_missing", "on_stale"])
def test_a_default_where_the_policy_is_to_refuse_is_found(policy: str) -> None:
    """The server stood in with a default where the definition, as it is audited, says that the request fails."""
    service, events = Service(), flights(400)
    replay(service, events)
    service.serve(int(available_us(FLIGHTS, events).max()) + days(20), 200)
    assert {getattr(view, policy) for view in STORED} == {"fail", "default"}
    for view in STORED:
        changed: Any = {policy: "default" if getattr(view, policy) == "fail" else "fail"}
        other = FeatureSet([replace(each, **changed) if each is view else each for each in VIEWS], STATES)
        assert set(view.names) & set(wrong(judged(service, events, sets={ORIGIN: other})))


def test_rows_that_the_log_never_made_are_found() -> None:
    service, events = Service(), flights(400)
    replay(service, events)
    log = part(events, np.arange(400) % 40 != 0)
    report = judged(service, log)
    assert report.unknown > 0
    assert report.mismatches >= report.unknown


def test_what_the_store_did_not_answer_is_counted_apart() -> None:
    service, events = Service(), flights(400)
    replay(service, events, unanswered=[aircraft])
    report = judged(service, events, 0)
    assert (report.unanswered, report.mismatches, len(report.delays_us)) == (500, 0, 0)
    service.samples[0].values["tail_delay"][0] = 6.0  # the default is 5
    assert wrong(judged(service, events)) == {"tail_delay": 1}


def test_what_the_call_stated_is_not_compared() -> None:
    service, events = Service(), flights(400)
    stated = {name: np.zeros((20, *FEATURES.features[name].shape), np.float64) for name in route.names if name == "route_delay"}
    stated |= {"route_flights": np.full(20, 3)}
    replay(service, events, given=stated)
    report = judged(service, events)
    assert report.mismatches == 0
    assert not {"route_flights", "route_delay"} & {each.feature for each in report.features}
    # nobody had to read it
    service.samples = [replace(each, available_us={aircraft.ref: each.available_us[aircraft.ref]}) for each in service.samples]
    assert judged(service, events).reads == 500
    service.samples[5].values["tail_delay"][:] = -1.0
    assert wrong(judged(service, events))["tail_delay"] == 20


def test_a_row_that_the_store_forgot_for_its_age_is_no_lag() -> None:
    service, events = Service(), flights(100, span_us=days(2))
    end_us = int(available_us(FLIGHTS, events).max())
    service.serve(end_us + days(40), 100)  # of an empty store: rows of 30 and 2 days' age are gone by then
    assert judged(service, events, 0).mismatches == 0
    service.serve(end_us, 100)
    report = judged(service, events, 0)
    assert 0 < report.mismatches == len(report.delays_us)


def test_a_log_without_events() -> None:
    service, events = Service(), flights(0)
    service.serve(1_700_000_000_000_000)
    report = judged(service, events)
    assert (report.mismatches, report.rows) == (0, 20)
    assert audit([], SETS, {"flights": events}).features == []


def test_samples_of_something_else_are_refused() -> None:
    service, events = Service(), flights(50)
    service.serve(1_700_000_000_000_000)
    good = service.samples[0]

    def refused(sampled: Sampled) -> str:
        with pytest.raises(EventError) as caught:
            audit([sampled], SETS, {"flights": events})
        return str(caught.value)

    assert "'delays:3', but no views of it; there are: delays:2" in refused(replace(good, origin="delays:3"))
    assert "are of other views than were given for it: route@1" in refused(
        replace(good, views=tuple(ref for ref in good.views if ref != "route@1"))
    )
    assert "lack the join key 'tail' (int64) of 'aircraft@2'" in refused(
        replace(good, keys={name: column for name, column in good.keys.items() if name != "tail"})
    )
    assert "lack 'tail_pair' (float32 [2])" in refused(replace(good, values=dict(good.values) | {"tail_pair": np.zeros(20)}))
    assert "lack the statuses of 'late_z'" in refused(
        replace(good, statuses={name: column for name, column in good.statuses.items() if name != "late_z"})
    )
    assert "no rows of 'route@1'" in refused(replace(good, available_us={"aircraft@2": good.available_us["aircraft@2"]}))
    assert "the request's 'speed_kn' is missing" in refused(replace(good, request={"distance_mi": good.request["distance_mi"]}))
    with pytest.raises(EventError, match="no events of 'flights' were given, which 'aircraft@2'"):
        audit([good], SETS, {})


def test_a_mistake_in_the_shape_of_a_sample_does_not_pass() -> None:
    """Samples whose columns differ are compared apart, not joined."""
    service, events = Service(), flights(200)
    replay(service, events, rows=3)
    replay_again = Service()
    replay(replay_again, events, rows=5, given={"late_z": np.zeros(5, np.float32)})
    report = audit([*service.samples, *replay_again.samples], SETS, {"flights": events})
    assert report.mismatches == 0
    assert {each.feature: each.rows for each in report.features} == {
        name: 75 if name == "late_z" else 200 for name in FEATURES.features
    }
