"""`podium drift`: a server's verdicts as text, JSON, page and pictures, and found again from their counts."""

import importlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos import monitoring_pb2 as pb
from server.commands import drift
from server.commands.drift_recompute import recompute
from server.commands.drift_text import lines
from server.core.versions import VersionKey
from server.monitoring.baseline import Baseline
from server.monitoring.judge import Reference, judge
from server.monitoring.reading import MonitoringReading, VersionReading
from server.monitoring.streams import Category, Layout, Numeric, Stream
from server.monitoring.verdict import DriftState, Finding, RiskReading
from server.monitoring.windows import Closed
from server.transport.drift_reading import ReportedVersion, reading_from
from server.transport.drift_report import report_of
from tests import verdicts
from tests.commands.shell import Shell
from tests.drift_server import Told, serving

KEY = verdicts.KEY
HOSTILE = "<img src=x onerror=alert(1)>$\\frac{\"'&\x1b[2J"
STREAMS: tuple[Stream, ...] = (
    Numeric("age", "feature", (10.0, 20.0, 30.0), 0.0, 50.0, (1.0, 49.0), 20.0, 10.0),
    Numeric("thin", "input", (1.0, 2.0), 0.0, 3.0, (0.0, 3.0), 1.5, 1.0),
    Category("colour", "input", ("red", "blue"), (3,)),
)


class Server:
    """Runs `podium drift` against a server that tells one reading."""

    def __init__(self, podium: Shell) -> None:
        self._podium = podium

    def __call__(self, reading: MonitoringReading | pb.DriftReport, *arguments: str) -> tuple[int, str, str]:
        report = reading if isinstance(reading, pb.DriftReport) else report_of(reading, "ranker", "", 336)
        with serving(Told(report)) as port:
            return self._podium("drift", "ranker", "--server", f"127.0.0.1:{port}", *arguments)


@pytest.fixture
def ask(podium: Shell) -> Server:
    return Server(podium)


def told(version: VersionReading) -> ReportedVersion:
    """As it comes out of a report."""
    (reported,) = reading_from(report_of(MonitoringReading((version,)), version.key.model, "", 336))
    return reported


def text(version: VersionReading, every: bool = False) -> str:
    return "\n".join(lines(told(version), every))


def judged(windows: Sequence[Sequence[int]], baseline: Sequence[int], streams: tuple[Stream, ...] = STREAMS) -> VersionReading:
    """What the monitors themselves say about windows, of which each is the counts of all cells."""
    layout = Layout(streams)
    reference = Reference(Baseline(streams, np.array(baseline, np.int64), 20_000, digest="b" * 64), 0.1, 20)
    detectors, found = reference.fresh, []
    for number, counts in enumerate(windows):
        vector = np.array(counts, np.int64)
        assert vector.shape == (layout.size,)
        start = verdicts.START_US + number * verdicts.HOUR_US
        rows = int(layout.cells(vector, 0).rows)
        closed = Closed(start, start + verdicts.HOUR_US, rows, rows, 0, vector if rows else None)
        verdict, detectors = judge(KEY, "champion", closed, reference, detectors)
        found.append(verdict)
    state = found[-1].state if found else DriftState.NO_DATA
    return VersionReading(KEY, "champion", state, reference.baseline, tuple(reversed(found)), 0, 0, 0)


BASELINE = [5000, 5000, 5000, 5000, 20, 0, 0, 0, 0, 0, 0, 0, 6000, 3, 14_000, 0, 0, 0, 0, 0, 0, 0, 12_000, 7000, 1000, 0, 5]
CALM = [250, 250, 250, 250, 1, 0, 0, 0, 0, 0, 0, 0, 300, 0, 700, 0, 0, 0, 0, 0, 0, 0, 600, 350, 50, 0, 0]
MOVED = [100, 200, 300, 400, 9, 0, 1, 30, 0, 0, 0, 0, 300, 2, 700, 0, 0, 0, 0, 0, 0, 0, 300, 350, 300, 50, 0]
NOTHING = [0] * len(CALM)


def test_text_says_what_moved_and_by_which_numbers(ask: Server) -> None:
    code, out, err = ask(verdicts.reading())
    assert (code, err) == (0, "")
    assert out.startswith("ranker:3  champion  alarm\n")
    assert "window   2026-01-01 01:00 to 2026-01-01 02:00 UTC, 1,002 rows" in out
    assert "1,010 rows were chosen, 8 of them lost (0.8%)" in out
    assert "baseline bbbbbbbbbbbb of registration, all of it; edges eeeeeeeeeeee" in out
    gained = "gained: above 400 (25.0% → 40.0%), 200 to 400 (25.0% → 30.0%)"
    moved = f"{gained}; lost: up to 100 (25.0% → 10.0%), 100 to 200 (25.0% → 20.0%)"
    assert f"ALARM    distance, distribution: {moved}" in out
    finding = verdicts.alarming().findings[0]
    row = next(line for line in out.splitlines() if line.startswith("  distance") and "distribution" in line)
    cells = row.split()
    assert cells[2:] == [
        f"{finding.effect:.4g}",
        "0.0096",
        "20000",
        "1000",
        f"{finding.p:.3g}",
        f"{finding.e:.3g}",
        f"{finding.log_detector:.3f}",
        f"{finding.log_threshold:.3f}",
    ]
    assert "4 alarms so far, the last by the window of 2026-01-01 01:00 UTC: distance:distribution" in out
    assert "17 rows in windows that are not judged yet; 5 came too late for theirs, 2 claim a time that cannot be" in out


def test_quality_has_intervals_and_an_estimate_is_called_one() -> None:
    shown = text(verdicts.version(verdicts.verdict()))
    assert "outcomes 400 of 800 predictions have one (50.0%); accepted 400, duplicate 3, late 2" in shown
    assert "realised: auc 0.79 (0.71 to 0.86, 400 rows); log_loss 0.44 (0.39 to 0.5, 400 rows)" in shown
    assert "realised, window of 2026-01-01 00:00: auc 0.77 (0.6 to 0.9, 60 rows)" in shown
    assert "ESTIMATE from scores alone, which cannot see that the world has changed: auc 0.8" in shown
    assert "no harm is proven; mean loss 0.47, at least 0.44, tolerated up to 0.45" in shown
    harmed = replace(verdicts.version(), quality=verdicts.quality(alarm=True))
    assert "ALARM: it does harm" in text(harmed)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (DriftState.NO_DATA, "no data: no sampled rows came"),
        (DriftState.LEARNING, "learning: it has no baseline yet, and learns one from what it serves; 0 of 20,000 rows so far"),
        (DriftState.OK, "ok: no further"),
        (DriftState.DEGRADED, "degraded: so many of the chosen rows were lost"),
        (DriftState.ALARM, "alarm: further from its baseline than is tolerated"),
    ],
)
def test_states_are_spelt_out(state: DriftState, words: str) -> None:
    assert f"\n  {words}" in text(verdicts.version(state=state))


def test_a_version_of_which_nothing_is_known() -> None:
    silent = replace(verdicts.quality(), outcomes={}, served=0, labelled=0, realised={}, recent={}, estimated={}, risk=None)
    shown = text(replace(verdicts.version(), quality=silent, last_alarm=None))
    assert "outcomes 0 of 0 predictions have one; none came" in shown
    assert not re.search("realised|ESTIMATE|risk|alarms so far", shown)
    empty = replace(verdicts.verdict(findings=()), offered=0, dropped=0)
    assert "0 rows were chosen, 0 of them lost (none)" in text(verdicts.version(empty))
    assert "STREAM" not in text(verdicts.version(empty))


def test_rates_and_shares_that_stay_are_told() -> None:
    high = replace(verdicts.rate("distance", 30, 1000), alarm=True)
    assert "ALARM    distance, missing: 3.0% of its values are missing; of the baseline's 0.1%" in text(
        verdicts.version(verdicts.verdict(findings=(high,)))
    )
    same = replace(verdicts.numbers("distance", (250, 250, 250, 250)), alarm=True)
    assert "every bin has the share that it had" in text(verdicts.version(verdicts.verdict(findings=(same,))))
    nobody = replace(verdicts.rate("distance", 0, 1), baseline=(0, 0), window=(0, 0), n=0, m=0, alarm=True)
    assert "none of its values are missing; of the baseline's none" in text(
        verdicts.version(verdicts.verdict(findings=(nobody,)))
    )


def test_categories_are_told_by_name_and_unknown_bins_by_number() -> None:
    gained = replace(verdicts.numbers("carrier", (400, 400, 100, 100)), alarm=True)
    version = verdicts.version(verdicts.verdict(findings=(gained,)))
    assert "gained: unseen (0.0% → 10.0%), other (5.0% → 10.0%); lost: 'UA' (50.0% → 40.0%), 'AA' (45.0% → 40.0%)" in text(
        version
    )
    assert "gained: bin 3 (0.0% → 10.0%)" in text(replace(version, baseline=None))


def test_the_worst_come_first_and_all_on_demand() -> None:
    first = verdicts.rate("s", 1, 1000)
    findings = tuple(replace(first, stream=f"s{number:02d}", log_detector=float(number)) for number in range(14))
    version = verdicts.version(verdicts.verdict(findings=findings))
    some = re.findall(r"^  (s\d\d) ", text(version), re.MULTILINE)
    assert some == [f"s{number:02d}" for number in range(13, 3, -1)]
    assert "… and 4 checks with less evidence: --all" in text(version)
    assert re.findall(r"^  (s\d\d) ", text(version, every=True), re.MULTILINE) == [
        f"s{number:02d}" for number in range(13, -1, -1)
    ]


def test_windows_are_a_table_and_those_left_out_are_counted() -> None:
    version = verdicts.version(verdicts.alarming(1), verdicts.verdict(0))
    shown = "\n".join(lines(replace(told(version), windows_left_out=7), every=False))
    assert re.search(r"2026-01-01 01:00 +alarm +distance:distribution +1002 +8 ", shown)
    assert re.search(r"2026-01-01 00:00 +ok +- +1002 +8 ", shown)
    assert "7 older windows did not fit into the answer" in shown


def test_names_cannot_steer_a_terminal() -> None:
    hostile = replace(verdicts.rate("distance", 1, 1000), stream=HOSTILE, alarm=True)
    window = replace(verdicts.verdict(findings=(hostile,)), alarmed=(f"{HOSTILE}:missing",))
    for shown in (text(verdicts.version(window, window)), text(verdicts.version(window, key=VersionKey(HOSTILE, 1)))):
        assert "\x1b" not in shown
        assert "\\x1b[2J" in shown


def test_json_has_every_number(ask: Server) -> None:
    reading = verdicts.reading(verdicts.version(verdicts.alarming(1), verdicts.verdict(0, findings=())))
    code, out, err = ask(reading, "--json", "--windows", "2")
    assert (code, err) == (0, "")
    (version,) = json.loads(out)["versions"]
    assert version["reading"]["key"] == {"model": "ranker", "version": 3}
    finding, original = version["reading"]["windows"][0]["findings"][0], verdicts.alarming(1).findings[0]
    assert finding == {**finding, "baseline": list(original.baseline), "window": list(original.window), "p": original.p}
    assert set(Finding.__dataclass_fields__) == set(finding)
    assert version["reading"]["windows"][1]["log_family"] == "-Infinity"
    assert version["streams"]["distance"]["edges"] == [100.0, 200.0, 400.0]
    assert version["reading"]["quality"]["risk"]["bound"] == 0.45


def test_numbers_that_json_lacks() -> None:
    assert [drift._plain(each) for each in (math.inf, -math.inf, math.nan, 1.5)] == ["Infinity", "-Infinity", "NaN", 1.5]


@pytest.mark.parametrize(
    ("version", "status"),
    [
        (verdicts.version(verdicts.verdict(0)), 0),
        (verdicts.version(verdicts.alarming(0)), 3),
        (replace(verdicts.version(verdicts.verdict(0)), quality=verdicts.quality(alarm=True)), 3),
        (verdicts.version(), 0),
    ],
)
def test_the_exit_status_tells_of_alarms_where_asked(ask: Server, version: VersionReading, status: int) -> None:
    assert ask(verdicts.reading(version))[0] == 0
    assert ask(verdicts.reading(version), "--exit-code")[0] == status


def test_what_the_monitors_say_comes_out_again(ask: Server) -> None:
    version = judged([CALM, NOTHING, MOVED, MOVED, CALM], BASELINE)
    assert version.windows[2].alarmed
    code, out, err = ask(verdicts.reading(version), "--recompute", "--windows", "5")
    findings = sum(len(window.findings) for window in version.windows)
    assert (code, err) == (0, "")
    assert out.endswith(f"recomputed: all {findings} findings come out as they were told\n")
    code, out, err = ask(verdicts.reading(version), "--recompute", "--json")
    json.loads(out)
    assert (code, err) == (0, f"recomputed: all {findings} findings come out as they were told\n")


FEW = [4, 4, 3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12]
"""Bins that count together with their neighbours, a stream with too few to be compared, and one that is missing altogether."""


def test_what_there_is_too_little_of_comes_out_again() -> None:
    version = judged([CALM, FEW, CALM], BASELINE)
    few = {(one.stream, one.check): one for one in version.windows[1].findings}
    assert few["age", "distribution"].df == 1
    assert few["colour", "distribution"].e == few["colour", "unseen"].e == 1
    assert recompute(told(version)).differences == ()


@given(st.lists(st.lists(st.integers(0, 400), min_size=len(CALM), max_size=len(CALM)), min_size=2, max_size=3))
@settings(max_examples=10, deadline=None)
def test_whatever_the_monitors_say_comes_out_again(counts: list[list[int]]) -> None:
    for one in counts:
        # what is out of range is in the first bin or the last
        for below, above, first, last in ((6, 7, 0, 3), (17, 18, 12, 14)):
            one[below], one[above] = min(one[below], one[first]), min(one[above], one[last])
    baseline, *windows = counts
    assert recompute(told(judged(windows, baseline))).differences == ()


def tampered(number: str, value: Any) -> list[tuple[str, str]]:
    """What is found out if one number of the first finding of the second window is told wrongly."""
    version = judged([CALM, MOVED, MOVED], BASELINE)
    second = version.windows[1]
    wrong = replace(second, findings=(replace(second.findings[0], **{number: value}), *second.findings[1:]))
    windows = (version.windows[0], wrong, version.windows[2])
    differences = recompute(told(replace(version, windows=windows))).differences
    return [(each.subject, each.number) for each in differences]


@pytest.mark.parametrize("number", ["n", "m", "effect", "statistic", "df", "noncentrality", "p", "e", "log_detector"])
def test_a_number_that_was_told_wrongly_is_named(number: str) -> None:
    value = getattr(judged([CALM, MOVED], BASELINE).windows[0].findings[0], number)
    wrong = value + 1 if isinstance(value, int) else value * (1 + 1e-6) + 1e-9
    found = tampered(number, wrong)
    assert ("age:distribution", number) in found
    # a detector is one of the family's
    assert {subject for subject, _ in found} <= {"age:distribution", "all checks together"}


def test_counts_and_flags_that_were_told_wrongly_are_found_out() -> None:
    assert ("age:distribution", "p") in tampered("window", (101, 199, 300, 400))
    assert tampered("alarm", False) == [("age:distribution", "alarm")]
    assert tampered("p", math.nan) == [("age:distribution", "p")]


def test_a_difference_is_an_exit_status(ask: Server) -> None:
    version = judged([CALM, MOVED], BASELINE)
    report = report_of(verdicts.reading(version), "ranker", "", 2)
    report.versions[0].windows[0].findings[0].p *= 2
    code, out, _ = ask(report, "--recompute", "--exit-code")
    assert code == 1
    assert re.search(
        r"^ranker:3 champion 2026-01-01 01:00 age:distribution: p was told as \S+, and comes out as", out, re.MULTILINE
    )


def test_detectors_are_followed_only_within_one_baseline() -> None:
    version = judged([CALM, MOVED], BASELINE)
    older = replace(version.windows[1], baseline_digest="other")
    assert recompute(told(replace(version, windows=(version.windows[0], older)))).differences == ()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--windows", "0"), "--windows is from 1 to 336"),
        (("--windows", "337"), "--windows is from 1 to 336"),
        (("--key-file", "k.pem"), "--cert-file and --key-file are stated together"),
        (("--token-file", "t", "--server", "far.example:1"), "a key or a token goes over TLS only"),
    ],
)
def test_wrong_usage(podium: Shell, arguments: tuple[str, ...], text: str) -> None:
    code, out, err = podium("drift", "ranker", *arguments)
    assert (code, out) == (2, "")
    assert text in err


def test_a_refusal_is_one_line(podium: Shell) -> None:
    with serving(Told(None)) as port:
        assert "is not monitored" in podium.refusal("drift", "ranker:3", "--server", f"127.0.0.1:{port}")
        missing = podium.refusal("drift", "ranker:3", "--server", f"127.0.0.1:{port}", "--token-file", "none")
        assert missing == "none: No such file or directory"


def test_a_version_and_windows_are_asked_for(podium: Shell) -> None:
    service = Told(report_of(verdicts.reading(), "ranker", "", 1))
    with serving(service) as port:
        podium.output("drift", "ranker:3", "--server", f"127.0.0.1:{port}", "--windows", "4")
        assert (service.asked.model_name, service.asked.model_version, service.asked.windows) == ("ranker", "3", 4)
        podium.output("drift", "ranker", "--server", f"127.0.0.1:{port}")
        assert (service.asked.model_version, service.asked.windows) == ("", 1)
        podium.output("drift", "ranker", "--server", f"127.0.0.1:{port}", "--plots", "pictures")
        assert service.asked.windows == 168


PNG = b"\x89PNG\r\n\x1a\n"


def test_pictures_are_written_whole(ask: Server, tmp_path: Path) -> None:
    many = tuple(replace(verdicts.numbers("distance", (260, 250, 240, 250)), stream=f"stream {number}") for number in range(14))
    version = verdicts.version(verdicts.verdict(1, findings=many), verdicts.verdict(0, findings=many))
    assert ask(verdicts.reading(version), "--plots", str(tmp_path / "made" / "here"))[0] == 0
    made = {path.name: path.read_bytes() for path in (tmp_path / "made" / "here").iterdir()}
    kinds = ("detectors", "streams-1", "streams-2", "quality")
    assert set(made) == {f"ranker-3-champion-{kind}.png" for kind in kinds}
    assert all(data.startswith(PNG) and data.endswith(b"IEND\xaeB`\x82") for data in made.values())


class Parsed(HTMLParser):
    """The elements of a page, with what they ask for."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.asked: list[str] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), "a page has no handlers"
            if name in ("src", "href", "action", "data"):
                self.asked.append(value or "")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def hostile_report() -> VersionReading:
    """Names that would be markup, mathematics, a path or a terminal's command, wherever a name can be."""
    stream = Numeric(HOSTILE, "input", (1.0, 2.0, 3.0), 0.0, 4.0, (0.0, 4.0), 1.0, 1.0)
    category = Category("carrier", "input", (HOSTILE, "漢字"), ())
    finding = replace(verdicts.numbers("distance", (100, 200, 300, 400)), stream=HOSTILE, alarm=True)
    window = verdicts.verdict(0, DriftState.ALARM, (finding, verdicts.numbers("carrier", (400, 400, 100, 100))))
    bare = Baseline((stream, category), Layout((stream, category)).empty(), 0)
    return replace(verdicts.version(window, key=VersionKey("../../" + HOSTILE, 1), arm=HOSTILE), baseline=bare)


def test_a_page_is_one_file_and_hostile_names_are_texts(ask: Server, tmp_path: Path) -> None:
    report = report_of(MonitoringReading((hostile_report(),)), "../../" + HOSTILE, "", 1)
    target = tmp_path / "page.html"
    assert ask(report, "--html", str(target), "--plots", str(tmp_path / "plots"))[0] == 0
    page = target.read_text("utf-8")
    parsed = Parsed(page)
    assert {"script", "iframe", "link", "object"}.isdisjoint(parsed.tags)
    assert parsed.tags.count("img") == 3
    assert all(asked.startswith("data:image/png;base64,") for asked in parsed.asked)
    assert "default-src 'none'" in page
    assert any(HOSTILE in said for said in parsed.texts)
    assert all(path.parent == tmp_path / "plots" for path in (tmp_path / "plots").rglob("*"))
    assert len(list((tmp_path / "plots").iterdir())) == 3
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"page.html", "trained.onnx"}


def test_a_page_has_every_check_and_its_counts(ask: Server, tmp_path: Path) -> None:
    first = verdicts.rate("s", 1, 1000)
    findings = tuple(replace(first, stream=f"stream {number}") for number in range(25))
    target = tmp_path / "page.html"
    version = verdicts.version(verdicts.verdict(findings=(*findings, verdicts.numbers("carrier", (400, 400, 100, 100)))))
    assert ask(verdicts.reading(version, verdicts.version(key=VersionKey("ranker", 4))), "--html", str(target))[0] == 0
    texts = Parsed(target.read_text("utf-8")).texts
    assert {f"stream {number}" for number in range(25)} <= set(texts)
    assert {"6 checks with less evidence", "'AA'", "unseen", "ranker:4, champion "} <= set(texts)


def test_pictures_need_their_package(ask: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(importlib, "import_module", absent)
    code, _, err = ask(verdicts.reading(), "--plots", "pictures")
    assert code == 1
    assert "need the extra 'plots'" in err


def test_many_categories_and_versions_without_windows_are_drawn(ask: Server, tmp_path: Path) -> None:
    names = tuple(f"a rather long category {number}" for number in range(30))
    stream = Category("carrier", "input", names, ())
    counts = tuple(range(10, 42))
    finding = replace(
        verdicts.numbers("carrier", (400, 400, 100, 100)), baseline=counts, window=counts[::-1], n=sum(counts), m=sum(counts)
    )
    drawn = replace(
        verdicts.version(verdicts.verdict(findings=(finding,))), baseline=Baseline((stream,), Layout((stream,)).empty(), 0)
    )
    no_quality = replace(verdicts.version(key=VersionKey("ranker", 4)), quality=None)
    no_metrics = replace(
        verdicts.version(key=VersionKey("ranker", 5)), quality=replace(verdicts.quality(), realised={}, estimated={})
    )
    assert ask(verdicts.reading(drawn, no_quality, no_metrics), "--plots", str(tmp_path / "plots"))[0] == 0
    kinds = ("detectors", "quality", "streams-1")
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == [f"ranker-3-champion-{kind}.png" for kind in kinds]


def test_infinite_detectors_are_drawn(ask: Server, tmp_path: Path) -> None:
    endless = RiskReading(0.0, 0.0, 0.0, 0, -math.inf, math.inf, False)
    nothing = replace(verdicts.rate("distance", 0, 10), log_detector=-math.inf)
    window = replace(verdicts.verdict(findings=(nothing,)), log_family=-math.inf)
    version = replace(verdicts.version(window), quality=replace(verdicts.quality(), risk=endless))
    assert ask(verdicts.reading(version), "--plots", str(tmp_path / "plots"))[0] == 0


def test_the_fixture_is_as_the_monitors_would_have_it() -> None:
    """Verdicts made by hand come out again too, but for rates, whose law they take from scipy's plain binomial."""
    version = verdicts.version(verdicts.alarming(1), verdicts.verdict(0))
    differences = recompute(told(version)).differences
    assert {each.subject for each in differences if each.number != "alarm" and not each.number.startswith("log_")} <= {
        "distance:missing"
    }
    assert {each.number for each in differences if each.subject == "distance:distribution"} <= {"log_detector", "alarm"}
