"""TraceSetting and LogSettings: messages to values and back, with Triton's refusals."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from protos import grpc_service_pb2 as pb
from server.core.errors import InvalidRequest, Unsupported
from server.core.settings import TraceSettings
from server.telemetry.logs import LogControl
from server.telemetry.tracer import Tracer
from server.transport.runtime_settings import RuntimeSettings
from tests.telemetry.traces import Sink


@pytest.fixture
def calls() -> Iterator[RuntimeSettings]:
    root = logging.getLogger()
    level = root.level
    tracer = Tracer(TraceSettings(file="t.json"), Sink())
    yield RuntimeSettings(tracer, LogControl("info"), lambda model, version: model == "m" and version == "")
    root.setLevel(level)


def trace_request(model: str = "", **settings: list[str]) -> pb.TraceSettingRequest:
    made = pb.TraceSettingRequest(model_name=model)
    for name, values in settings.items():
        made.settings[name].value.extend(values)
    return made


def told(response: pb.TraceSettingResponse) -> dict[str, list[str]]:
    return {name: list(setting.value) for name, setting in response.settings.items()}


def test_trace_settings_of_all_and_of_one(calls: RuntimeSettings) -> None:
    start = told(calls.trace(trace_request()))
    assert start == {
        "trace_level": ["OFF"],
        "trace_rate": ["1000"],
        "trace_count": ["-1"],
        "log_frequency": ["0"],
        "trace_file": ["t.json"],
        "trace_mode": ["triton"],
    }
    changed = told(calls.trace(trace_request("m", trace_level=["TIMESTAMPS"], trace_rate=["2"])))
    assert changed == {**start, "trace_level": ["TIMESTAMPS"], "trace_rate": ["2"]}
    assert told(calls.trace(trace_request("m"))) == changed
    assert told(calls.trace(trace_request())) == start
    assert told(calls.trace(trace_request("m", trace_level=[], trace_rate=[]))) == start


def test_an_unknown_model_is_refused_before_its_settings(calls: RuntimeSettings) -> None:
    for request in (trace_request("does-not-exist"), trace_request("does-not-exist", trace_file=["f"])):
        with pytest.raises(InvalidRequest, match=r"^Request for unknown model : does-not-exist$"):
            calls.trace(request)


def test_a_refused_change_changes_nothing(calls: RuntimeSettings) -> None:
    before = told(calls.trace(trace_request()))
    with pytest.raises(InvalidRequest, match=r"Unable to parse 'trace_count', got: many"):
        calls.trace(trace_request("", trace_rate=["2"], trace_count=["many"]))
    with pytest.raises(Unsupported, match=r"^trace file location can not be updated through network protocol$"):
        calls.trace(trace_request("", trace_rate=["2"], trace_file=["elsewhere"]))
    assert told(calls.trace(trace_request())) == before


def log_request(**settings: Any) -> pb.LogSettingsRequest:
    made = pb.LogSettingsRequest()
    for name, value in settings.items():
        setting = made.settings[name]
        if isinstance(value, bool):
            setting.bool_param = value
        elif isinstance(value, int):
            setting.uint32_param = value
        elif value is not None:
            setting.string_param = value
    return made


def answered(response: pb.LogSettingsResponse) -> dict[str, Any]:
    return {name: getattr(given, str(given.WhichOneof("parameter_choice"))) for name, given in response.settings.items()}


START = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "ISO8601",
}


def test_log_settings(calls: RuntimeSettings) -> None:
    first = calls.log(log_request())
    assert answered(first) == START
    assert {name: given.WhichOneof("parameter_choice") for name, given in first.settings.items()} == {
        "log_file": "string_param",
        "log_info": "bool_param",
        "log_warning": "bool_param",
        "log_error": "bool_param",
        "log_verbose_level": "uint32_param",
        "log_format": "string_param",
    }
    wanted = {"log_info": False, "log_verbose_level": 4_294_967_295, "log_format": "ISO8601"}
    assert answered(calls.log(log_request(**wanted))) == {**START, **wanted}
    assert answered(calls.log(log_request())) == {**START, **wanted}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"log_info": "yes"}, "expect boolean for 'log_info'"),
        ({"log_warning": 1}, "expect boolean for 'log_warning'"),
        ({"log_error": None}, "expect boolean for 'log_error'"),
        ({"log_verbose_level": True}, "expect int32 for 'log_verbose_level'"),
        ({"log_verbose_level": "1"}, "expect int32 for 'log_verbose_level'"),
        ({"log_format": 1}, "expect string for 'log_format'"),
        ({"log_format": "default"}, "invalid argument for log_format, got: default; lines are JSON with ISO8601 times"),
        ({"log_format": "xml"}, "invalid argument for log_format, got: xml"),
        ({"log_colour": True}, "unrecognized log setting 'log_colour'."),
    ],
)
def test_log_settings_that_are_refused_change_nothing(calls: RuntimeSettings, settings: dict[str, Any], text: str) -> None:
    valid: dict[str, Any] = {name: value for name, value in START.items() if name not in ("log_file", *settings)}
    with pytest.raises(InvalidRequest) as refused:
        calls.log(log_request(**{**valid, "log_verbose_level": 3, "log_info": False, **settings}))
    assert str(refused.value) == text
    assert answered(calls.log(log_request())) == START


def test_where_lines_go_is_not_the_networks_business(calls: RuntimeSettings) -> None:
    with pytest.raises(Unsupported, match=r"^log file location can not be updated through network protocol$"):
        calls.log(log_request(log_info=False, log_file="elsewhere", log_error="odd"))
    assert answered(calls.log(log_request())) == START
