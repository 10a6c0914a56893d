"""The control of the flights: July against July, in three ways, for windows of three lengths.

Weather is the same for all flights of an hour at an airport, and the day of the week for all of a day. A day's or a week's rows
are no sample of their month, then, and the p-values of a test of rows are about rows that are exchangeable.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.drift.replay import DAY_S, DAY_US, WEEK_S, Positions, Served, baseline_of, known, settings_of, verdicts
from models.flight_delay.inputs import WEATHER
from server.monitoring.verdict import DriftState

SEED = 1
CALENDAR = (*WEATHER.values(), "day_of_week")
"""What is the same for all flights of an hour or a day."""
LEFT_OUT = {"nothing": (), "weather, weekday": CALENDAR, "weather, weekday, output": (*CALENDAR, "probability")}
_FIRST_DAY, _END_DAY = 15_887, 15_918
"""The first of July and of August 2013 in UTC, in days since 1970: windows are of UTC, and a month that begins on a morning of
New York would begin with a day without its evening."""
SPLITS = ("exchanged", "rows", "days")
PLAN = [
    *((split, window, 0.1, "nothing") for split in SPLITS for window in ("day", "week", "month")),
    *(
        (split, window, 0.1, left_out)
        for left_out in tuple(LEFT_OUT)[1:]
        for split in ("rows", "days")
        for window in ("day", "week", "month")
    ),
    ("days", "month", 1.0, "nothing"),
]
"""Split, window, tolerance, and what is left out; `month` is one window of all rows."""


def halves(year: Served, split: str, random: np.random.Generator) -> tuple[Positions, Positions, NDArray[np.int64]]:
    """Baseline, control, and the times that the control's flights have.

    "rows": half of the flights, at their own times; "exchanged": the same, their times dealt out among them anew, so that rows
    are exchangeable, which is what p-values assume; "days": half of the days, of each day of the week alike.
    """
    time_us = year.time_us
    rows = np.flatnonzero((time_us // DAY_US >= _FIRST_DAY) & (time_us // DAY_US < _END_DAY))
    if split == "days":
        days = time_us[rows] // DAY_US
        chosen: list[int] = []
        for weekday in range(7):
            own = random.permutation([day for day in np.unique(days).tolist() if day % 7 == weekday])
            chosen += own[: len(own) // 2].tolist()
        first = np.isin(days, chosen)
    else:
        first = np.isin(np.arange(len(rows)), random.permutation(len(rows))[: len(rows) // 2])
    control = rows[~first]
    if split == "exchanged":
        time_us = time_us.copy()
        time_us[control] = random.permutation(time_us[control])
    return rows[first], control, time_us


def control(year: Served, split: str, window: str, tolerance: float, left_out: str, splits: int) -> dict[str, Any]:
    """How many splits gave an alarm, in how many windows, of what. `effects`: medians over the splits, of a month."""
    alarmed, windows, alarms = 0, 0, 0
    named: dict[str, int] = {}
    effects: dict[str, list[float]] = {}
    for number in range(splits):
        first, second, times = halves(year, split, np.random.default_rng([SEED, number]))
        length = {"window_s": DAY_S if window == "day" else WEEK_S, "min_rows": len(second) if window == "month" else 50}
        settings = settings_of(tolerance=tolerance, ignore=LEFT_OUT[left_out], **length)
        found = verdicts(replace(year, time_us=times), baseline_of(year, first, settings), second, settings)
        windows += len(found)
        alarms += sum(verdict.state is DriftState.ALARM for verdict in found)
        alarmed += any(verdict.alarmed for verdict in found)
        for name in {name for verdict in found for name in verdict.alarmed}:
            named[name] = named.get(name, 0) + 1
        for finding in found[0].findings:
            effects.setdefault(f"{finding.stream}:{finding.check}", []).append(finding.effect)
    return {
        "split": split,
        "window": window,
        "tolerance": tolerance,
        "left_out": left_out,
        "splits": splits,
        "splits_with_alarm": alarmed,
        "windows": windows,
        "windows_in_alarm": alarms,
        "named": dict(sorted(named.items(), key=lambda item: -item[1])),
        "effects": {name: round(float(np.median(values)), 4) for name, values in effects.items()} if window == "month" else {},
    }


def risk_control(year: Served, split: str) -> dict[str, Any]:
    """How often the alarm about the risk was raised in one split, and what the baseline says of its own loss."""
    first, second, times = halves(year, split, np.random.default_rng([SEED, 0]))
    settings = settings_of(window_s=WEEK_S)
    baseline = baseline_of(year, first, settings)
    played = replace(year, time_us=times)
    found = known(played, baseline, second[np.argsort(times[second], kind="stable")], settings)
    quality = baseline.quality
    last = found.weeks[-1].risk if found.weeks else None
    return {
        "split": split,
        "alarms": len(found.risks),
        "baseline_loss": None if quality is None else round(quality.loss_mean, 4),
        "baseline_loss_upper": None if quality is None else round(quality.loss_upper, 4),
        "loss": None if last is None else round(last.loss_mean, 4),
    }
