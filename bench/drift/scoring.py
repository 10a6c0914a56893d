"""From what detectors did to rows that can be compared, dummies among them, and what must be reached. **Pure.**"""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from bench.drift.streams import WINDOWS

DUMMY = "dummy"
REQUIRED_ALARMS = 1
REQUIRED_DELAY = {200: 8, 1000: 2}
REQUIRED_OUTLIER_PERCENT = 1.0
_MISSED = math.inf


def rows_of(detector: str, case: Mapping[str, Any], played: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each rule. `alarms_per_672`: scaled where fewer windows were played, which `windows` says. `delay_median`,
    `delay_worst`: None where that repetition was missed within `waited` windows.
    """
    same = {"detector": detector, "kind": case["scenario"]["kind"], "rows": case["scenario"]["rows"]}
    if "error" in played:
        return [{**same, "error": played["error"]}]
    made = []
    for rule, alarms in played["alarms"].items():
        delays = played["delays"][rule]
        ordered = sorted(_MISSED if delay is None else delay for delay in delays)
        made.append(
            {
                **same,
                "rule": rule,
                "windows": played["windows"],
                "alarms": len(alarms),
                "alarms_per_672": round(len(alarms) * WINDOWS / played["windows"], 1) if played["windows"] else None,
                "columns_named": played["columns"],
                "repeats": len(delays),
                "waited": played["waited"],
                "delays": delays,
                "delay_median": _told(median(ordered)) if ordered else None,
                "delay_worst": _told(ordered[-1]) if ordered else None,
                "missed": delays.count(None),
                "early": played["early"][rule],
                "seconds": round(played["seconds"], 1),
            }
        )
    return made


def best(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each case and score, who is best, and whether a dummy is: such a score alone says nothing of a detector."""
    made = []
    cases = sorted({(row["kind"], row["rows"]) for row in rows})
    for kind, size in cases:
        here = [row for row in rows if (row["kind"], row["rows"]) == (kind, size) and "error" not in row]
        for score in ("alarms_per_672", "delay_median"):
            values = [_MISSED if row[score] is None else row[score] for row in here]
            winners = [row for row, value in zip(here, values, strict=True) if value == min(values)]
            made.append(
                {
                    "kind": kind,
                    "rows": size,
                    "score": score,
                    "value": _told(min(values)),
                    "best": [_name(row) for row in winners],
                    "won_by_a_dummy": any(row["rule"] == DUMMY for row in winners),
                }
            )
    return made


def required(
    rows: Sequence[Mapping[str, Any]], outliers: Sequence[Mapping[str, Any]], rates: Sequence[Mapping[str, Any]], rule: str
) -> list[dict[str, Any]]:
    """What `rule` of ours must reach, and whether it does."""
    made = []
    for row in (row for row in rows if row.get("rule") == rule and row["kind"] == "numbers"):
        size = row["rows"]
        made.append(_requirement(f"alarms without drift, {size} rows", row["alarms_per_672"], REQUIRED_ALARMS))
        if size in REQUIRED_DELAY:
            limit = REQUIRED_DELAY[size]
            within = sum(delay is not None and delay <= limit for delay in row["delays"])
            made.append(
                _requirement(f"median delay in windows, {size} rows", row["delay_median"], limit)
                | {"within": within, "repeats": row["repeats"]}
            )
    for row in (row for row in outliers if row["detector"] == "Podium" and row["rows"] >= 1000):
        what = f"effect of one outlier in per cent, {row['rows']} rows"
        made.append(_requirement(what, row["change_percent"], REQUIRED_OUTLIER_PERCENT))
    for row in (row for row in rates if row["met"] is not None):
        what = f"{row['test']}, {row['baseline_rows']} and {row['rows']} rows: p < {row['level']}"
        made.append({"what": what, "value": row["rate"], "limit": row["band"], "met": row["met"]})
    return made


def _requirement(what: str, value: float | None, limit: float) -> dict[str, Any]:
    return {"what": what, "value": value, "limit": limit, "met": value is not None and value <= limit}


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['detector']} ({row['rule']})"


def _told(value: float) -> float | None:
    return None if value == _MISSED else value
