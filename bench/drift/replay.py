"""The flights of a year, served by the real model and replayed at the times of the schedule through the code that serves."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.drift.ours import ARM, KEY, samples
from models.flight_delay.build import answers, build
from models.flight_delay.data import Flights, load
from models.flight_delay.examples import as_rows
from models.flight_delay.training import Settings as Training
from server.core.hashing import id_hash
from server.core.monitoring_settings import ModelMonitoring, QualitySettings
from server.core.settings import ModelSettings
from server.monitoring.baseline import Baseline
from server.monitoring.build import build as build_baseline
from server.monitoring.monitors import Monitors
from server.monitoring.outcome import Outcome
from server.monitoring.outcomes import Outcomes
from server.monitoring.quality import reference_quality
from server.monitoring.samples import Samples
from server.monitoring.verdict import QualityReading, WindowVerdict

HOUR_US, DAY_US = 3_600_000_000, 86_400_000_000
WEEK_S, DAY_S = 7 * 86_400.0, 86_400.0
QUALITY = QualitySettings(kind="binary")
Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Served:
    """Labelled flights in the order in which they are due to leave, with what the model says of them.

    Shapes: `probability` `[rows]`, `time_us` int64 `[rows]`, `identities` uint64 `[rows]`.
    """

    flights: Flights
    probability: NDArray[np.float64]
    time_us: NDArray[np.int64]
    identities: NDArray[np.uint64]

    def of(self, rows: Positions) -> Samples:
        """Some of them as samples."""
        outputs = {"probability": self.probability[rows, np.newaxis].astype(np.float32)}
        return samples(as_rows(self.flights.take(rows).inputs), outputs, self.time_us[rows], self.identities[rows])

    def months(self, first: int, last: int) -> Positions:
        """Where the flights of these months are."""
        return np.flatnonzero((self.flights.month >= first) & (self.flights.month <= last))


def served(limit_rows: int | None = None) -> Served:
    """The year, by a model that is trained here as the recipe does (half a minute)."""
    with tempfile.TemporaryDirectory(prefix="podium-drift-") as folder:
        content = build(Path(folder), Training(), limit_rows=limit_rows).model_file.read_bytes()
    flights = load()
    flights = flights.take(np.argsort(flights.departs_s, kind="stable"))
    identities = np.array([id_hash(name_of(row)) for row in range(flights.rows)], np.uint64)
    return Served(flights, answers(content, flights), flights.departs_s * 1_000_000, identities)


def name_of(row: int) -> str:
    """The prediction id of a flight."""
    return f"flight-{row}"


def settings_of(**given: Any) -> ModelSettings:
    """The defaults, but for what is said."""
    return ModelSettings(monitoring=ModelMonitoring.model_validate({"quality": QUALITY, **given}))


def baseline_of(year: Served, rows: Positions, settings: ModelSettings) -> Baseline:
    """As a registration makes it of validation rows with their outcomes."""
    labels = year.flights.late[rows].astype(np.float64)
    return build_baseline(year.of(rows), settings, quality=reference_quality(year.probability[rows], labels, QUALITY))


def verdicts(year: Served, baseline: Baseline, rows: Positions, settings: ModelSettings) -> list[WindowVerdict]:
    """All windows of a replay that have rows, a day's flights at a time."""
    now_us = [0]
    monitors = Monitors(wall_us=lambda: now_us[0])
    monitors.serve(KEY, settings, baseline, (ARM,))
    made = []
    for day_us, chosen in _pieces(rows[np.argsort(year.time_us[rows], kind="stable")], year.time_us, DAY_US):
        now_us[0] = day_us + DAY_US
        monitors.add([year.of(chosen)])
        made += monitors.tick(now_us[0])
    made += monitors.tick(now_us[0] + 8 * DAY_US)
    return [verdict for verdict in made if verdict.rows]


@dataclass(frozen=True)
class Known:
    """What outcomes said. `weeks`: the reading at the end of each week's outcomes. `risks`: when the alarm about the risk was
    raised and when it ended, microseconds since 1970; 0 where it had not ended.
    """

    weeks: tuple[QualityReading, ...]
    risks: tuple[tuple[int, int], ...]


def known(year: Served, baseline: Baseline, rows: Positions, settings: ModelSettings) -> Known:
    """Report the outcomes of these flights hour by hour, a day after each was due to leave."""
    now_us = [0]
    outcomes = Outcomes(lambda: now_us[0])
    outcomes.serve(KEY, settings.monitoring, baseline)
    hours = dict(_pieces(rows, year.time_us, HOUR_US))
    nothing = np.empty(0, np.int64)
    weeks: list[QualityReading] = []
    risks: list[tuple[int, int]] = []
    last_us = max(hours) + DAY_US
    for hour_us in range(min(hours), last_us + HOUR_US, HOUR_US):
        now_us[0] = hour_us + HOUR_US
        if hour_us in hours:
            outcomes.add([year.of(hours[hour_us])])
        for row in hours.get(hour_us - DAY_US, nothing).tolist():
            outcomes.report(Outcome(KEY.model, 0, name_of(row), 0, float(year.flights.late[row]), now_us[0]))
        for reading in outcomes.readings():
            alarm = reading.risk is not None and reading.risk.alarm
            if alarm and (not risks or risks[-1][1]):
                risks.append((now_us[0], 0))
            elif not alarm and risks and not risks[-1][1]:
                risks[-1] = (risks[-1][0], now_us[0])
            if (now_us[0] - DAY_US) % round(WEEK_S * 1e6) == 0 or hour_us == last_us:
                weeks.append(reading)
    return Known(tuple(weeks), tuple(risks))


def _pieces(rows: Positions, time_us: NDArray[np.int64], length_us: int) -> Iterator[tuple[int, Positions]]:
    """Rows that are in order of time, by the day or hour in which they are."""
    starts = time_us[rows] // length_us * length_us
    found, places = np.unique(starts, return_index=True)
    yield from zip(found.tolist(), np.split(rows, places[1:]), strict=True)
