"""Pictures of a report: each stream's baseline beside its window, the detectors over time, and quality.

Floor 7, loaded by name: the one file that imports matplotlib (extra `plots`). It draws without a display and touches no global
state of matplotlib's beyond the time of a picture. Colours are those of Okabe and Ito, which the colour-blind can tell apart.
"""

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from server.commands.drift_moved import bin_names, plain
from server.commands.drift_page import Picture
from server.commands.drift_text import minute, worst_first
from server.monitoring.verdict import Finding, QualityReading, WindowVerdict
from server.transport.drift_reading import ReportedVersion

_BLUE, _VERMILION, _BLACK, _GREY = "#0072B2", "#D55E00", "#000000", "#767676"
_LINES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
_MARKS = ("o", "s", "^", "D", "v")
_COLUMNS, _ROWS = 3, 4
_BARS = 12
"""Categories that are drawn of one stream: those that moved most, and the rest in one bar."""
_NAME = 26
_LEAST_SHOWN = -2.0
"""Detectors below are drawn there: no evidence at all is no point on a logarithmic axis."""
_DPI = 110


def pictures(version: ReportedVersion) -> list[Picture]:
    """All pictures there are of one version: of one without windows only its quality, if that is known."""
    # names are texts, whatever is in them: a dollar is a dollar
    with rc_context({"text.parse_math": False, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        return list(_pictures(version))


def _pictures(version: ReportedVersion) -> Iterator[Picture]:
    reading = version.reading
    name = f"{plain(reading.key.model)}:{reading.key.version} ({plain(reading.arm)})"
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", f"{reading.key.model}-{reading.key.version}-{reading.arm}")
    judged = [window for window in reversed(reading.windows) if window.rows]
    if judged and judged[-1].findings:
        yield _save(stem, "detectors", f"Detectors of {name} over time", _detectors(name, judged))
        findings = [one for one in worst_first(judged[-1].findings) if one.check == "distribution" and one.m and one.n]
        size = _COLUMNS * _ROWS
        for first in range(0, len(findings), size):
            number = first // size + 1
            title = f"Streams of {name}, baseline against {minute(judged[-1].start_us)} UTC, worst first, page {number}"
            yield _save(stem, f"streams-{number}", title, _streams(version, title, findings[first : first + size]))
    if reading.quality is not None and (reading.quality.realised or reading.quality.estimated):
        yield _save(stem, "quality", f"Quality of {name}", _quality(name, reading.quality))


def _save(stem: str, kind: str, title: str, figure: Figure) -> Picture:
    target = io.BytesIO()
    with warnings.catch_warnings():
        # a name in a script that the font lacks is drawn as boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(target, format="png", dpi=_DPI)
    return Picture(f"{stem}-{kind}.png", title, target.getvalue())


def _detectors(name: str, windows: Sequence[WindowVerdict]) -> Figure:
    figure = Figure(figsize=(10.5, 6.2), layout="constrained")
    figure.suptitle(f"{name}: evidence against the baseline", fontsize=12)
    above, below = figure.subplots(2, 1, sharex=True)
    times = [float(date2num(datetime.fromtimestamp(window.end_us / 1e6, UTC))) for window in windows]
    above.plot(times, [_shown(window.log_family) for window in windows], color=_BLUE, marker="o", markersize=3)
    _threshold(above, times, [window.log_threshold for window in windows])
    for time, window in zip(times, windows, strict=True):
        if window.alarmed:
            above.axvline(time, color=_VERMILION, linewidth=1, alpha=0.6)
    above.set_title("all checks together; upright lines are alarms", loc="left", fontsize=9)
    worst = worst_first(windows[-1].findings)[: len(_LINES)]
    for finding, colour, mark in zip(worst, _LINES, _MARKS, strict=False):
        points = [
            (time, _shown(each.log_detector))
            for time, window in zip(times, windows, strict=True)
            for each in window.findings
            if (each.stream, each.check) == (finding.stream, finding.check)
        ]
        label = f"{_short(finding.stream)}, {finding.check}"
        below.plot(*zip(*points, strict=True), color=colour, marker=mark, markersize=3, label=label)
    _threshold(below, times, [worst[0].log_threshold] * len(times))
    below.set_title("the checks with the most evidence now", loc="left", fontsize=9)
    # beside the axes: over them it would hide a line
    below.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
    for axes in (above, below):
        axes.set_ylabel("ln of the detector")
        # linear where the threshold is, and squeezed beyond: large detectors would press everything else to the ground
        axes.set_yscale("symlog", linthresh=15, linscale=2)
        axes.yaxis.set_major_formatter(ScalarFormatter())
        top = axes.get_ylim()[1] * 1.1
        axes.set_yticks([tick for tick in (-2, 0, 5, 10, 15, 50, 150, 500) if tick <= top])
        axes.set_ylim(_LEAST_SHOWN - 0.5, top)
        axes.minorticks_off()
        axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    locator = AutoDateLocator(maxticks=9)
    below.xaxis.set_major_locator(locator)
    below.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    below.set_xlabel("end of the window (UTC)")
    return figure


def _threshold(axes: Axes, times: Sequence[float], values: Sequence[float]) -> None:
    axes.step(times, values, where="mid", color=_BLACK, linestyle="--", linewidth=1)
    if len(times) == 1:
        axes.axhline(values[0], color=_BLACK, linestyle="--", linewidth=1)
    axes.annotate(
        "alarm from here on", (times[0], values[0]), xytext=(2, 3), textcoords="offset points", fontsize=8, color=_BLACK
    )


def _streams(version: ReportedVersion, title: str, findings: Sequence[Finding]) -> Figure:
    rows = math.ceil(len(findings) / _COLUMNS)
    figure = Figure(figsize=(12.5, 0.9 + 2.75 * rows), layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(rows, _COLUMNS, squeeze=False).ravel().tolist()
    for axes, finding in zip(grid, findings, strict=False):
        _stream(axes, version, finding)
    for axes in grid[len(findings) :]:
        axes.set_axis_off()
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _stream(axes: Axes, version: ReportedVersion, finding: Finding) -> None:
    stream = version.streams.get(finding.stream)
    names = bin_names(finding, stream)
    was = [100 * count / finding.n for count in finding.baseline]
    now = [100 * count / finding.m for count in finding.window]
    categories = stream is not None and bool(stream.vocabulary)
    if categories and len(names) > _BARS:
        names, was, now = _most_moved(names, was, now)
    places = range(len(names))
    axes.bar([place - 0.2 for place in places], was, 0.4, color=_BLUE, label="baseline")
    axes.bar([place + 0.2 for place in places], now, 0.4, color=_VERMILION, hatch="///", edgecolor="white", label="window")
    if stream is not None and stream.edges and len(stream.edges) == len(names) - 1:
        axes.set_xticks([place + 0.5 for place in range(len(stream.edges))], [f"{edge:.4g}" for edge in stream.edges])
        axes.set_xlabel("edges of the bins, in the stream's units", fontsize=7)
    else:
        axes.set_xticks(list(places), [_short(name.strip("'"), 12) for name in names])
    long = sum(len(tick.get_text()) for tick in axes.get_xticklabels()) > 34
    axes.tick_params(axis="x", labelsize=7, rotation=60 if long else 0)
    axes.set_ylabel("% of rows", fontsize=8)
    mark = "ALARM  " if finding.alarm else ""
    axes.set_title(
        f"{mark}{_short(finding.stream)}\neffect {finding.effect:.3g}, tolerated {finding.tolerated:.2g}; p {finding.p:.2g}",
        fontsize=8,
        loc="left",
        color=_VERMILION if finding.alarm else _BLACK,
    )


def _most_moved(names: Sequence[str], was: Sequence[float], now: Sequence[float]) -> tuple[list[str], list[float], list[float]]:
    """The categories whose shares changed most, and the rest of them added up."""
    order = sorted(range(len(names)), key=lambda place: -abs(was[place] - now[place]))
    kept, rest = order[: _BARS - 1], order[_BARS - 1 :]
    return (
        [*(names[place] for place in kept), f"{len(rest)} more"],
        [*(was[place] for place in kept), sum(was[place] for place in rest)],
        [*(now[place] for place in kept), sum(now[place] for place in rest)],
    )


def _quality(name: str, quality: QualityReading) -> Figure:
    metrics = sorted({*quality.realised, *quality.recent, *quality.estimated})
    figure = Figure(figsize=(9.5, 1.1 + 1.25 * len(metrics)), layout="constrained")
    figure.suptitle(f"{name}: quality, with the intervals that hold at all times at once", fontsize=11)
    kinds = (
        ("by outcomes, since it is served", quality.realised, _BLUE, "o"),
        (f"by outcomes, window of {minute(quality.recent_start_us)} UTC", quality.recent, _VERMILION, "s"),
        ("ESTIMATE from scores alone", quality.estimated, _GREY, "^"),
    )
    for axes, metric in zip(figure.subplots(len(metrics), 1, squeeze=False).ravel().tolist(), metrics, strict=True):
        labels = []
        for place, (label, values, colour, mark) in enumerate(kinds):
            if metric in values:
                one = values[metric]
                axes.plot([one.low, one.high], [place, place], color=colour, linewidth=2)
                axes.plot(one.value, place, marker=mark, color=colour, markersize=7)
                label = f"{label}, {one.rows:,} rows"
            else:
                label = f"{label}: none"
            labels.append(label)
        axes.set_yticks(range(len(kinds)), labels)
        axes.set_ylim(len(kinds) - 0.5, -0.5)
        axes.set_title(metric, loc="left", fontsize=9)
        axes.grid(axis="x", color="#e5e5e5", linewidth=0.6)
    return figure


def _shown(log_detector: float) -> float:
    return max(log_detector, _LEAST_SHOWN)


def _short(name: str, most: int = _NAME) -> str:
    """A name that fits: its end tells columns of one tensor apart, so the middle goes."""
    name = plain(name)
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most - most // 2) :]}"
