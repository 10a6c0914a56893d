"""One version in one arm: learning, judging, states, and what is remembered of it."""

from collections.abc import Sequence

import numpy as np
import pytest

from server.monitoring import monitor as monitor_module
from server.monitoring.monitor import TRANSITIONS, Monitor, advance
from server.monitoring.samples import Samples
from server.monitoring.verdict import DriftState, WindowVerdict
from server.statistics.supported import supported_psi
from tests.monitoring.monitored import HOUR_US, KEY, T0_US, answered, normal_baseline, normal_rows, settings

FAR = T0_US + 10**6 * HOUR_US
BASELINE = normal_baseline(20_000, 3)


def monitored(**monitoring: object) -> Monitor:
    made = Monitor(KEY, "champion", settings(**monitoring))
    made.compare_with(BASELINE)
    return made


def hour(made: Monitor, number: int, *, rows: int = 1000, shift: float = 0.0) -> list[WindowVerdict]:
    """Rows of one hour, and what is told of the hour before."""
    now = T0_US + number * HOUR_US + HOUR_US // 2
    told = made.tick(now)
    if rows:
        made.add(normal_rows(now, rows, 3, seed=number + 7, shift=shift), now)
    return told


@pytest.mark.parametrize("current", DriftState)
@pytest.mark.parametrize("following", DriftState)
def test_states_are_a_table(current: DriftState, following: DriftState) -> None:
    if following == current or following in TRANSITIONS[current]:
        assert advance(current, following) == following
    else:
        with pytest.raises(ValueError, match=f"no transition from {current} to {following}"):
            advance(current, following)


def test_every_state_can_be_reached_from_the_first_and_only_learning_is_left_for_good() -> None:
    reached, edge = {DriftState.LEARNING}, {DriftState.LEARNING}
    while edge:
        edge = {following for state in edge for following in TRANSITIONS[state]} - reached
        reached |= edge
    assert reached == set(DriftState) == set(TRANSITIONS)
    assert not any(DriftState.LEARNING in following for following in TRANSITIONS.values())


def test_a_life_with_a_baseline() -> None:
    made = monitored()
    assert made.reading().state == DriftState.NO_DATA
    hour(made, 0)
    assert made.reading().open_rows == 1000
    assert [each.state for each in hour(made, 1)] == [DriftState.OK]
    made.count(30, 30, T0_US + HOUR_US, FAR)
    assert [each.state for each in hour(made, 2, shift=0.5)] == [DriftState.DEGRADED]
    [alarm] = hour(made, 3, rows=0)
    assert (alarm.state, alarm.alarmed) == (DriftState.ALARM, ("x[0]:distribution",))
    assert [each.state for each in hour(made, 4)] == [DriftState.NO_DATA]
    assert [each.state for each in hour(made, 5)] == [DriftState.OK]
    reading = made.reading()
    assert (reading.state, reading.alarms, reading.last_alarm) == (DriftState.OK, 1, alarm)
    assert [each.start_us for each in reading.windows] == sorted((each.start_us for each in reading.windows), reverse=True)
    assert (reading.key, reading.arm, reading.baseline) == (KEY, "champion", BASELINE)


def test_a_baseline_is_learnt_from_the_first_rows() -> None:
    made = Monitor(KEY, "champion", settings(learning_rows=1500))
    made.count(5, 5, T0_US, FAR)  # of a time that is not judged
    for number in range(2):
        made.add(normal_rows(T0_US + number, 700, 3, seed=number), FAR)
        assert made.tick(T0_US + 5 * HOUR_US) == []
    reading = made.reading()
    assert (reading.state, reading.learned_rows, reading.learning_rows, reading.baseline) == (
        DriftState.LEARNING,
        1400,
        1500,
        None,
    )
    made.add(normal_rows(T0_US, 700, 3, seed=2), FAR)
    reading = made.reading()
    assert (reading.state, reading.learned_rows) == (DriftState.NO_DATA, 2100)
    assert reading.baseline is not None
    assert (reading.baseline.origin, reading.baseline.rows, len(reading.baseline.digest)) == ("learned", 2100, 64)
    assert made.memory.learned == []
    hour(made, 3)
    [verdict] = hour(made, 4)
    assert (verdict.baseline_origin, verdict.state) == ("learned", DriftState.OK)
    assert verdict.findings[0].tolerated == supported_psi(0.1, 9, 2100)  # and not 0.0096: 2,100 rows support no less


def test_large_rows_are_learnt_from_until_there_are_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor_module, "MAX_LEARNING_BYTES", 100_000)
    made = Monitor(KEY, "champion", settings())
    made.add(normal_rows(T0_US, 600, 20, seed=0), FAR)
    assert made.reading().state == DriftState.LEARNING
    made.add(normal_rows(T0_US, 600, 20, seed=1), FAR)
    assert made.reading().state == DriftState.NO_DATA


def test_where_nothing_can_be_monitored_it_says_why_and_keeps_no_rows() -> None:
    made = Monitor(KEY, "champion", settings(learning_rows=1000, ignore=["x"]))
    for _ in range(3):
        made.add(normal_rows(T0_US, 1000, 2, seed=0), FAR)
    assert made.reading().state == DriftState.LEARNING
    assert "nothing to monitor" in made.memory.refused
    assert made.memory.learned == []


def test_rows_that_bring_their_time_are_judged_as_they_come() -> None:
    made = monitored(time_input="at", window_s=1)
    times = T0_US + np.repeat(np.arange(300), 60) * 1_000_000
    values = np.random.default_rng(3).normal(size=(len(times), 3)).astype(np.float32)
    for first in range(0, len(times), 600):
        made.add(answered(times[first : first + 600], {"x": values[first : first + 600]}), FAR)
        assert len(made.memory.windows.open) < 100
    told = made.tick(FAR)
    assert [each.start_us for each in told] == [T0_US + second * 1_000_000 for second in range(239)]
    assert all(each.rows == 60 for each in told)


def test_old_verdicts_keep_what_their_alarms_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor_module, "KEPT_FINDINGS", 30)
    made = monitored()
    for number in range(6):
        hour(made, number, shift=0.5 if number == 1 else 0.0)
    kept = [len(each.findings) for each in made.reading().windows]
    assert kept == [12, 12, 0, 1, 0]
    last = made.reading().last_alarm
    assert last is not None
    assert len(last.findings) == 12


def shuffled_within_grace(pieces: Sequence[Samples], seed: int) -> list[Samples]:
    """Split anew and carried by replicas that are up to half an hour behind each other."""
    generator = np.random.default_rng(seed)
    late: list[tuple[float, Samples]] = []
    for piece in pieces:
        replica = generator.integers(0, 4, piece.rows)
        for each in range(4):
            chosen = np.flatnonzero(replica == each)
            if len(chosen):
                late.append((float(piece.time_us.max()) + generator.uniform(0, 0.45 * HOUR_US), piece.part(chosen)))
    return [piece for _, piece in sorted(late, key=lambda pair: pair[0])]


@pytest.mark.parametrize("seed", range(5))
def test_any_partition_and_order_within_the_grace_gives_the_same_bits(seed: int) -> None:
    generator = np.random.default_rng(11)
    pieces = []
    for number in range(120):
        times = T0_US + number * HOUR_US // 10 + generator.integers(0, HOUR_US // 10, 90)
        values = generator.normal(size=(90, 3)).astype(np.float32)
        values[generator.random((90, 3)) < 0.02] = np.nan
        pieces.append(answered(times, {"x": values + 0.3 * (number > 60)}))
    one, other = monitored(grace_s=1800, time_input="at"), monitored(grace_s=1800, time_input="at")
    for piece in pieces:
        one.add(piece, FAR)
    for piece in shuffled_within_grace(pieces, seed):
        other.add(piece, FAR)
    expected = one.tick(FAR)
    assert len(expected) == 11
    assert any(each.alarmed for each in expected)
    assert other.tick(FAR) == expected
    assert other.memory.windows.late_rows == one.memory.windows.late_rows == 0
