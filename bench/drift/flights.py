"""`python -m bench.drift.flights`: July to December 2013 replayed against June, for a model trained on January to May.

Real flights with the outputs of the real exported model, at the times of the schedule; outcomes are reported a day after the
flight was due to leave. Beside it the control, July against July. Written to drift_flights.json.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.drift.control import PLAN, SPLITS, control, risk_control
from bench.drift.replay import WEEK_S, Known, baseline_of, known, served, settings_of, verdicts
from bench.record import RESULTS, machine, write
from models.flight_delay.data import LATE_MINUTES
from server.monitoring.baseline import Baseline
from server.monitoring.verdict import QualityReading, WindowVerdict

FOUR_WEEKS_ROWS = 22_000
"""About 6,300 labelled flights leave in a week; in those of holidays fewer."""
BASELINE_MONTH, FIRST_MONTH, LAST_MONTH = 6, 7, 12
REPEATS = 10
_RISING = {"auc", "accuracy"}
"""Metrics of which more is better."""


def drift_rows(found: Sequence[WindowVerdict]) -> list[dict[str, Any]]:
    """A row for each window: when, in which state, and what is beyond what is tolerated, by effect."""
    return [
        {
            "first_day": _day(verdict.start_us),
            "last_day": _day(verdict.end_us - 1),
            "rows": verdict.rows,
            "state": verdict.state.value,
            "log_family": round(verdict.log_family, 2),
            "log_threshold": round(verdict.log_threshold, 2),
            "drifted": [
                {"what": f"{finding.stream}:{finding.check}", "effect": round(finding.effect, 4), "p": finding.p}
                for finding in sorted(verdict.findings, key=lambda each: -abs(each.effect))
                if finding.alarm
            ],
        }
        for verdict in found
    ]


def stream_rows(found: Sequence[WindowVerdict]) -> list[dict[str, Any]]:
    """A row for each check that is an alarm by itself: since when, in how many windows, and where its effect was largest."""
    made: dict[str, dict[str, Any]] = {}
    for verdict in found:
        for finding in verdict.findings:
            if not finding.alarm:
                continue
            what, size = f"{finding.stream}:{finding.check}", round(finding.effect, 4)
            first = {"what": what, "first_day": _day(verdict.start_us), "windows": 0, "largest": 0.0, "largest_day": ""}
            row = made.setdefault(what, first)
            row["windows"] += 1
            if abs(size) > abs(row["largest"]):
                row |= {"largest": size, "largest_day": _day(verdict.start_us)}
    return sorted(made.values(), key=lambda row: -abs(row["largest"]))


def quality_rows(found: Sequence[QualityReading], baseline: Baseline) -> list[dict[str, Any]]:
    """A row for each week of outcomes. `fell`: metrics whose whole interval is worse than what the baseline had."""
    reference = {} if baseline.quality is None else baseline.quality.metrics
    made = []
    for reading in found:
        worse = {
            name: metric.high < reference[name] if name in _RISING else metric.low > reference[name]
            for name, metric in reading.recent.items()
            if name in reference
        }
        recent = {
            name: {"value": round(metric.value, 4), "low": round(metric.low, 4), "high": round(metric.high, 4)}
            for name, metric in reading.recent.items()
        }
        made.append(
            {
                "first_day": _day(reading.recent_start_us),
                "labelled": reading.labelled,
                "recent": recent,
                "estimated": {name: round(metric.value, 4) for name, metric in reading.estimated.items()},
                "fell": [name for name, is_worse in worse.items() if is_worse],
            }
        )
    return made


def risk_rows(found: Known) -> list[dict[str, str]]:
    """When the alarm about the risk was raised, and when it ended ("" where it had not)."""
    return [{"raised": _hour(raised), "ended": _hour(ended) if ended else ""} for raised, ended in found.risks]


def measure(splits: int, limit_rows: int | None, last_month: int) -> dict[str, Any]:
    """Everything but the machine."""
    year = served(limit_rows)
    june, later = year.months(BASELINE_MONTH, BASELINE_MONTH), year.months(FIRST_MONTH, last_month)
    weekly, monthly = settings_of(window_s=WEEK_S), settings_of(window_s=WEEK_S, min_rows=FOUR_WEEKS_ROWS)
    baseline = baseline_of(year, june, weekly)
    weeks = verdicts(year, baseline, later, weekly)
    outcomes = known(year, baseline, later, weekly)
    return {
        "flights": {"baseline": len(june), "replayed": len(later), "unlabelled_left_out": year.flights.unlabelled},
        "late_minutes": LATE_MINUTES,
        "settings": {"tolerance": weekly.monitoring.tolerance, "alarm_every_windows": weekly.monitoring.alarm_every_windows},
        "controls": [control(year, *planned, splits) for planned in PLAN],
        "baseline_metrics": {} if baseline.quality is None else dict(baseline.quality.metrics),
        "four_weeks": drift_rows(verdicts(year, baseline_of(year, june, monthly), later, monthly)),
        "weeks": drift_rows(weeks),
        "streams": stream_rows(weeks),
        "quality": quality_rows(outcomes.weeks, baseline),
        "risk_alarms": risk_rows(outcomes),
        "risk_controls": [risk_control(year, split) for split in SPLITS],
    }


def text(result: Mapping[str, Any]) -> Iterator[str]:
    """The report. Beside an effect stands what half of July's days differ from the other half by, of the same stream."""
    yield "Control, July against July: splits with an alarm (windows in alarm of all), and what they named"
    for row in result["controls"]:
        how = f"{row['split']:<10} {row['window']:<6} tolerance {row['tolerance']:<4} without {row['left_out']:<25}"
        counts = f"{row['splits_with_alarm']} of {row['splits']} ({row['windows_in_alarm']} of {row['windows']})"
        yield f"  {how} {counts} {', '.join(list(row['named'])[:4])}".rstrip()
    days = next(row["effects"] for row in result["controls"] if (row["split"], row["window"]) == ("days", "month"))
    yield "Four weeks at a time against June: what drifted, its effect (and that between days of July)"
    for row in result["four_weeks"]:
        told = [f"{one['what']} {one['effect']:.2f} ({days.get(one['what'], 0):.2f})" for one in row["drifted"]]
        span = f"{row['first_day']} to {row['last_day']}, {row['rows']:,} flights, {row['state']}"
        yield f"  {span}: {'; '.join(told) or 'nothing'}"
    yield f"Week by week against June, {len(result['weeks'])} weeks: what drifted, since when, in how many, where most"
    for row in result["streams"]:
        most = f"most {row['largest']:.3f} in the week of {row['largest_day']}"
        yield f"  {row['what']}: since {row['first_day']}, {row['windows']} weeks, {most}"
    before = result["baseline_metrics"]
    yield "Realised, a week at a time; June: " + ", ".join(f"{name} {value:.3f}" for name, value in before.items())
    for row in result["quality"]:
        told = [f"{name} {one['value']:.3f}" for name, one in row["recent"].items()]
        yield f"  {row['first_day']}: {', '.join(told)}; fell: {', '.join(row['fell']) or 'nothing'}"
    spans = [f"{row['raised']} to {row['ended'] or 'the end'}" for row in result["risk_alarms"]]
    yield f"Risk alarms: {len(spans)}, the first {'; '.join(spans[:3]) or 'none'}"
    for row in result["risk_controls"]:
        losses = f"loss {row['loss']}, baseline's {row['baseline_loss']}, its upper bound {row['baseline_loss_upper']}"
        yield f"  control, July against July, {row['split']}: {row['alarms']} risk alarms; {losses}"


def _day(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m-%d")


def _hour(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m-%d %H:00")


def main(arguments: Sequence[str] = ()) -> int:
    """The exit status is 1 if the control whose rows are exchangeable gave an alarm."""
    parser = argparse.ArgumentParser(prog="python -m bench.drift.flights")
    parser.add_argument("--quick", action="store_true", help="a model of few rows, one split, July alone: to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where drift_flights.json is written (default: %(default)s)")
    options = parser.parse_args(arguments)
    facts, began = machine(), time.perf_counter()
    result = measure(1, 4000, FIRST_MONTH) if options.quick else measure(REPEATS, None, LAST_MONTH)
    seconds = round(time.perf_counter() - began)
    path = write("drift_flights", {"machine": facts, "seconds": seconds, "quick": options.quick, **result}, options.out)
    print("\n".join([*text(result), f"written to {path}"]))
    return int(any(row["splits_with_alarm"] for row in result["controls"] if row["split"] == "exchanged"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
