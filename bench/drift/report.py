"""The result as text: Markdown tables that a document can hold, and what was reached. **Pure.**"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
_COLUMNS = {
    "numbers": (("numbers", 200), ("numbers", 1000), ("numbers", 10_000)),
    "others": (("categories", 1000), ("missing", 1000)),
}
_METRICS = ("auc", "brier", "log_loss", "accuracy", "calibration_error")
_HEADS = {("categories", 1000): "a new category", ("missing", 1000): "more missing"}


def tables(result: Row) -> list[str]:
    """Lines of Markdown: alarms and delays for numbers, the same for categories and missing values, and the outlier."""
    lines = [*_quick(result)]
    for columns in _COLUMNS.values():
        heads = [_HEADS.get(column, f"{column[1]:,} rows") for column in columns]
        lines += [
            _line(["Detector", "rule", *(f"alarms, {head}" for head in heads), *(f"delay, {head}" for head in heads)]),
            _line(["---"] * (2 + 2 * len(columns))),
            *_table(result["rows"], columns),
            "",
        ]
    lines += [_line(["Detector", "rows", "its measure", "with one outlier", "changed by"]), _line(["---"] * 5)]
    return [*lines, *(_outlier(row) for row in result["outliers"])]


def flights_tables(result: Row) -> list[str]:
    """Lines of Markdown: the control, what drifted week by week, quality week by week."""
    lines = [
        *_quick(result),
        _line(["Split of July", "windows of a", "left out", "tolerance", "splits in alarm", "windows in alarm"]),
    ]
    lines.append(_line(["---"] * 6))
    for row in result["controls"]:
        alarms = [f"{row['splits_with_alarm']} of {row['splits']}", f"{row['windows_in_alarm']} of {row['windows']}"]
        lines.append(_line([row["split"], row["window"], row["left_out"], f"{row['tolerance']:g}", *alarms]))
    days = next(row["effects"] for row in result["controls"] if (row["split"], row["window"]) == ("days", "month"))
    weeks = len(result["weeks"])
    lines += [
        "",
        _line(["What drifted", "since", f"weeks of {weeks}", "largest effect", "in the week of", "between days of July"]),
    ]
    lines.append(_line(["---"] * 6))
    for row in result["streams"]:
        counted = [f"`{row['what']}`", row["first_day"], f"{row['windows']}", f"{row['largest']:.3f}", row["largest_day"]]
        lines.append(_line([*counted, f"{days.get(row['what'], 0.0):.3f}"]))
    before = result["baseline_metrics"]
    lines += ["", _line(["Week of", *_METRICS, "fell"]), _line(["---"] * (len(_METRICS) + 2))]
    lines.append(_line(["June", *(f"{before[name]:.3f}" for name in _METRICS), ""]))
    for row in result["quality"]:
        values = [f"{row['recent'][name]['value']:.3f}" if name in row["recent"] else "" for name in _METRICS]
        lines.append(_line([row["first_day"], *values, ", ".join(row["fell"])]))
    lines += ["", _line(["Split of July", "risk alarms", "loss", "baseline's loss", "its upper bound"]), _line(["---"] * 5)]
    lines.append(_line(["none: July to December, after June", f"{len(result['risk_alarms'])}", "", "", ""]))
    for row in result["risk_controls"]:
        losses = [f"{row[name]:.4f}" for name in ("loss", "baseline_loss", "baseline_loss_upper")]
        lines.append(_line([row["split"], f"{row['alarms']}", *losses]))
    return lines


def _quick(result: Row) -> list[str]:
    return ["**Of a quick run, which shows that it runs and nothing else.**", ""] if result["quick"] else []


def summary(result: Row) -> Iterator[str]:
    """What is below the tables: who was not run, which scores a dummy wins, what had to be reached."""
    for peer in result["peers"]:
        if not peer["installed"]:
            yield f"{peer['name']}: not run: {peer['reason']}"
    for row in result["rows"]:
        if "error" in row:
            yield f"{row['detector']}, {row['kind']}, {row['rows']} rows: {row['error']}"
    for row in result["best"]:
        by = "a dummy wins: " if row["won_by_a_dummy"] else ""
        yield f"{row['kind']}, {row['rows']} rows, best {row['score']} {row['value']}: {by}{', '.join(row['best'])}"
    for row in result["calibration"]:
        yield f"{row['test']}, m={row['rows']}: p < {row['level']} in {row['rate']:.4f} of {row['windows']} windows"
    if result["quick"]:
        yield "a quick run: what is required of a whole one is not judged"
        return
    for row in result["required"]:
        within = f" ({row['within']} of {row['repeats']} within)" if "within" in row else ""
        yield f"{'met' if row['met'] else 'MISSED'}: {row['what']}: {row['value']}, required {row['limit']}{within}"


def _table(rows: Sequence[Row], columns: Sequence[tuple[str, int]]) -> Iterator[str]:
    found: dict[tuple[str, str], dict[tuple[str, int], Row]] = {}
    for row in rows:
        found.setdefault((row["detector"], row.get("rule", "")), {})[row["kind"], row["rows"]] = row
    for (detector, rule), cells in found.items():
        here = [cells.get(column) for column in columns]
        if any(here):
            yield _line([detector, rule or "none", *map(_alarms, here), *map(_delay, here)])


def _alarms(row: Row | None) -> str:
    if row is None or "error" in row:
        return "not run"
    return f"{row['alarms']} of {row['windows']}"


def _delay(row: Row | None) -> str:
    if row is None or "error" in row:
        return "not run"
    if row["missed"] == row["repeats"]:
        return f"never in {row['waited']}"
    if row["missed"]:
        return f"{_windows(row['delay_median'], row)}, {row['missed']} of {row['repeats']} missed"
    return f"{row['delay_median']:g}, at most {row['delay_worst']:g}"


def _windows(delay: float | None, row: Row) -> str:
    return f"over {row['waited']}" if delay is None else f"{delay:g}"


def _outlier(row: Row) -> str:
    if "error" in row:
        return _line([row["detector"], f"{row['rows']:,}", "not run", "", ""])
    changed = "no measure" if row["change_percent"] is None else f"{row['change_percent']:.2f} %"
    return _line([row["detector"], f"{row['rows']:,}", f"{row['effect']:.4f}", f"{row['effect_with_outlier']:.4f}", changed])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
