"""A report says what a reading says, and a reading comes back from it; what is left out is counted."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import trustme

from protos import monitoring_pb2 as pb
from server.core.errors import InvalidRequest, NotFound
from server.core.versions import VersionKey
from server.monitoring.reading import MonitoringReading, VersionReading
from server.monitoring.streams import Category, Numeric
from server.monitoring.verdict import DriftState, RiskReading
from server.transport import drift_report
from server.transport.drift_client import Caller, DriftNotTold, ask_drift
from server.transport.drift_reading import reading_from
from server.transport.drift_report import report_of
from tests import verdicts
from tests.drift_server import Told, serving

OTHER = VersionKey("ranker", 4)


def as_reported(reading: VersionReading) -> VersionReading:
    """Without what no report has."""
    return replace(reading, baseline=None)


def test_every_number_comes_back() -> None:
    reading = verdicts.reading(verdicts.version(verdicts.alarming(1), verdicts.verdict(0)))
    (back,) = reading_from(pb.DriftReport.FromString(report_of(reading, "ranker", "3", 2).SerializeToString()))
    assert back.reading == as_reported(reading.versions[0])
    assert back.windows_left_out == 0


def test_streams_come_with_their_bins() -> None:
    (back,) = reading_from(report_of(verdicts.reading(), "ranker", "3", 1))
    for stream in verdicts.STREAMS:
        told = back.streams[stream.name]
        assert told.origin == stream.origin
        if isinstance(stream, Numeric):
            assert (told.edges, told.low, told.high, told.vocabulary) == (stream.edges, stream.low, stream.high, ())
        else:
            assert isinstance(stream, Category)
            assert (told.vocabulary, told.edges) == (stream.vocabulary, ())


def test_what_is_not_there_stays_away() -> None:
    bare = replace(verdicts.version(), baseline=None, quality=None)
    unlabelled = replace(verdicts.version(arm="shadow"), quality=replace(verdicts.quality(), arm="shadow", risk=None))
    first, second = reading_from(report_of(verdicts.reading(bare, unlabelled), "ranker", "", 1))
    assert first.reading == as_reported(bare)
    assert first.streams == {}
    assert second.reading == as_reported(unlabelled)


def test_numbers_without_bound_come_back() -> None:
    endless = RiskReading(0.0, 0.0, 0.0, 0, -math.inf, math.inf, False)
    version = replace(verdicts.version(), quality=replace(verdicts.quality(), risk=endless))
    (back,) = reading_from(report_of(verdicts.reading(version), "ranker", "3", 1))
    assert back.reading.quality is not None
    assert back.reading.quality.risk == endless


def test_a_version_or_all_of_them() -> None:
    reading = verdicts.reading(
        verdicts.version(),
        verdicts.version(key=OTHER),
        verdicts.version(key=OTHER, arm="shadow"),
        verdicts.version(key=VersionKey("else", 1)),
    )
    assert [(each.model_version, each.arm) for each in report_of(reading, "ranker", "", 1).versions] == [
        ("3", "champion"),
        ("4", "champion"),
        ("4", "shadow"),
    ]
    assert [each.arm for each in report_of(reading, "ranker", "4", 1).versions] == ["champion", "shadow"]


@pytest.mark.parametrize(("windows", "told"), [(0, 1), (1, 1), (2, 2), (3, 3), (336, 3)])
def test_the_last_windows_come_first(windows: int, told: int) -> None:
    reading = verdicts.reading(verdicts.version(*(verdicts.verdict(number) for number in (2, 1, 0))))
    (version,) = report_of(reading, "ranker", "3", windows).versions
    assert [each.start_us for each in version.windows] == [verdicts.START_US + hour * verdicts.HOUR_US for hour in (2, 1, 0)][
        :told
    ]
    assert version.windows_left_out == 0


def test_what_does_not_fit_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = [verdicts.verdict(number) for number in range(9, -1, -1)]
    reading = verdicts.reading(verdicts.version(*windows), verdicts.version(*windows[:3], arm="shadow"))
    whole = report_of(reading, "ranker", "", 336)
    assert [len(each.windows) for each in whole.versions] == [10, 3]
    monkeypatch.setattr(drift_report, "MAX_REPORT_BYTES", whole.ByteSize() // 2)
    cut = report_of(reading, "ranker", "", 336)
    assert cut.ByteSize() <= whole.ByteSize() // 2
    assert [len(each.windows) + each.windows_left_out for each in cut.versions] == [10, 3]
    assert all(each.windows for each in cut.versions)
    assert cut.versions[0].windows_left_out > 0
    # a last window is told whatever it takes
    monkeypatch.setattr(drift_report, "MAX_REPORT_BYTES", 1)
    assert [(len(each.windows), each.windows_left_out) for each in report_of(reading, "ranker", "", 336).versions] == [
        (1, 9),
        (1, 2),
    ]


@pytest.mark.parametrize(
    ("model", "version", "text"),
    [
        ("other", "", "model 'other' is not monitored"),
        ("ranker", "9", "version 9 of model 'ranker' is not monitored"),
    ],
)
def test_what_is_not_monitored_is_not_found(model: str, version: str, text: str) -> None:
    with pytest.raises(NotFound, match=text):
        report_of(verdicts.reading(), model, version, 1)


def test_nothing_is_monitored() -> None:
    with pytest.raises(NotFound):
        report_of(MonitoringReading(), "ranker", "", 1)


@pytest.mark.parametrize("version", ["0", "latest", "-1", "1.0", "٣", " 3"])
def test_versions_are_numbers(version: str) -> None:
    with pytest.raises(InvalidRequest, match="a version is a number"):
        report_of(verdicts.reading(), "ranker", version, 1)


def test_windows_are_bounded() -> None:
    with pytest.raises(InvalidRequest, match="the last 336 are kept"):
        report_of(verdicts.reading(), "ranker", "", 337)


@pytest.mark.parametrize(
    "change",
    [
        lambda version: setattr(version, "state", "splendid"),
        lambda version: setattr(version, "model_version", "three"),
        lambda version: setattr(version.windows[0], "state", ""),
        lambda version: setattr(version.windows[0], "reference", "yesterday"),
        lambda version: setattr(version.windows[0].findings[0], "check", "mood"),
        lambda version: setattr(version.streams[0], "origin", "elsewhere"),
    ],
)
def test_another_form_is_refused(change: Callable[[pb.VersionDrift], None]) -> None:
    report = report_of(verdicts.reading(), "ranker", "3", 1)
    change(report.versions[0])
    with pytest.raises(ValueError, match=r"'|invalid literal"):
        reading_from(report)


def test_hours_of_the_week_are_told() -> None:
    hourly = replace(verdicts.verdict(0), reference="hours_of_week")
    (back,) = reading_from(report_of(verdicts.reading(verdicts.version(hourly)), "ranker", "3", 1))
    assert back.reading.windows[0].reference == "hours_of_week"


def test_a_server_is_asked(tmp_path: Path) -> None:
    reading = verdicts.reading()
    service = Told(report_of(reading, "ranker", "3", 2))
    (tmp_path / "token").write_text("open sesame\n")
    with serving(service) as port:
        (told,) = ask_drift(Caller(f"127.0.0.1:{port}", token_file=tmp_path / "token"), "ranker", "3", 2)
    assert told.reading == as_reported(reading.versions[0])
    assert (service.asked.model_name, service.asked.model_version, service.asked.windows) == ("ranker", "3", 2)
    assert service.metadata["authorization"] == "Bearer open sesame"


def test_an_answer_above_grpcs_default_is_taken() -> None:
    report = report_of(verdicts.reading(), "ranker", "3", 2)
    while report.ByteSize() < 5 * 2**20:
        report.versions[0].windows.extend(report.versions[0].windows[:256])
    with serving(Told(report)) as port:
        (told,) = ask_drift(Caller(f"127.0.0.1:{port}"), "ranker", "3", 2)
    assert len(told.reading.windows) == len(report.versions[0].windows)


def test_a_server_with_certificates_is_asked(tmp_path: Path) -> None:
    authority = trustme.CA()
    own, client = authority.issue_cert("localhost"), authority.issue_cert("caller.example")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    client.private_key_pem.write_to_path(tmp_path / "key.pem")
    client.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    credentials = grpc.ssl_server_credentials(
        [(own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes())], authority.cert_pem.bytes(), require_client_auth=True
    )
    with serving(Told(report_of(verdicts.reading(), "ranker", "", 1)), credentials) as port:
        caller = Caller(f"localhost:{port}", tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem")
        assert len(ask_drift(caller, "ranker", "", 1)) == 1
        with pytest.raises(DriftNotTold, match=f"localhost:{port}"):
            ask_drift(Caller(f"localhost:{port}", timeout_s=5.0), "ranker", "", 1)


def test_refusals_are_passed_on() -> None:
    with serving(Told(None)) as port, pytest.raises(DriftNotTold, match="model 'ranker' is not monitored"):
        ask_drift(Caller(f"127.0.0.1:{port}"), "ranker", "", 1)


def test_nobody_answers() -> None:
    with serving(Told(None)) as port:
        pass
    with pytest.raises(DriftNotTold, match=f"127.0.0.1:{port}"):
        ask_drift(Caller(f"127.0.0.1:{port}", timeout_s=5.0), "ranker", "", 1)


def test_an_answer_in_another_form() -> None:
    report = report_of(verdicts.reading(), "ranker", "3", 1)
    report.versions[0].state = DriftState.OK + "ish"
    with serving(Told(report)) as port, pytest.raises(DriftNotTold, match="in another form"):
        ask_drift(Caller(f"127.0.0.1:{port}"), "ranker", "", 1)
