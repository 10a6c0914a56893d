"""Log lines: one JSON object each, whatever is in them."""

import json
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from server.telemetry.logs import JsonLines, Level, LogValue, configure


def _line(message: str = "loaded", *args: object, extra: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    logger = logging.getLogger("server.lifecycle.loader")
    record = logger.makeRecord(
        logger.name, logging.WARNING, __file__, 1, message, args, fields.pop("exc_info", None), extra=extra
    )
    record.__dict__.update(fields)
    text = JsonLines().format(record)
    assert "\n" not in text
    parsed = json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    assert isinstance(parsed, dict)
    return parsed


def test_a_line_has_time_level_logger_event_and_the_extra_fields_in_this_order() -> None:
    line = _line("loaded %s", "ranker:3", extra={"seconds": 1.5, "model": "ranker"}, created=1_700_000_000.0625)
    assert list(line.items()) == [
        ("time", "2023-11-14T22:13:20.062Z"),
        ("level", "warning"),
        ("logger", "server.lifecycle.loader"),
        ("event", "loaded ranker:3"),
        ("seconds", 1.5),
        ("model", "ranker"),
    ]


def test_a_whole_second_still_has_milliseconds() -> None:
    assert _line(created=1_700_000_000.0)["time"] == "2023-11-14T22:13:20.000Z"


def test_an_exception_is_its_traceback() -> None:
    try:
        raise ValueError("digest\ndiffers")
    except ValueError:
        line = _line(exc_info=sys.exc_info())
    assert line["error"].startswith("Traceback (most recent call last):")
    assert line["error"].endswith("ValueError: digest\ndiffers")


def test_a_stack_is_kept() -> None:
    assert _line(stack_info="Stack: here")["stack"] == "Stack: here"


def test_extra_fields_never_overwrite_the_lines_own() -> None:
    line = _line(extra={"time": 1, "level": 2, "logger": 3, "event": 4, "error": 5, "stack": 6})
    assert (line["level"], line["event"]) == ("warning", "loaded")
    assert [line[f"{name}_"] for name in ("time", "level", "logger", "event", "error", "stack")] == [1, 2, 3, 4, 5, 6]


class _Odd:
    def __repr__(self) -> str:
        return "odd"


def _ring() -> list[object]:
    ring: list[object] = []
    ring.append(ring)
    return ring


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (_Odd(), "odd"),
        ({"deep": [_Odd()]}, {"deep": ["odd"]}),
        (float("nan"), "nan"),
        ([float("inf")], "[inf]"),
        ({(1, 2): 3}, "{(1, 2): 3}"),
        (_ring(), "[[...]]"),
        ("żółw", "żółw"),
        ("two\nlines", "two\nlines"),
    ],
)
def test_no_value_loses_a_line(value: object, written: object) -> None:
    line = _line(extra={"field": value})
    assert line["field"] == written
    assert line["event"] == "loaded"


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_configuring_twice_writes_each_line_once_and_keeps_foreign_handlers(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = logging.NullHandler()
    root.addHandler(foreign)
    configure("debug")
    configure("warning")
    logging.getLogger("server.app").info("too low")
    logging.getLogger("server.app").warning("high enough", extra={"port": 8001})
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert (json.loads(line)["event"], json.loads(line)["port"]) == ("high enough", 8001)
    assert foreign in root.handlers


def test_the_watch_does_not_log_every_file_event(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    """Least of all where the log itself lies in the repository: each line would bring the next."""
    configure("info")
    logging.getLogger("watchfiles.main").info("1 change detected")
    logging.getLogger("watchfiles.main").warning("something is wrong")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "something is wrong"


LEVELS = ("debug", "info", "warning", "error", "critical")


def _written(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Which levels become lines."""
    capsys.readouterr()
    for level in LEVELS:
        getattr(logging.getLogger("server.app"), level)(level)
    return [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]


@pytest.mark.parametrize("first", range(4))
def test_the_settings_begin_as_the_level_says(root: logging.Logger, capsys: pytest.CaptureFixture[str], first: int) -> None:
    levels: tuple[Level, ...] = ("debug", "info", "warning", "error")
    control = configure(levels[first])
    assert _written(capsys) == list(LEVELS[first:])
    assert control.values() == {
        "log_file": "",
        "log_info": first < 2,
        "log_warning": first < 3,
        "log_error": True,
        "log_verbose_level": int(first == 0),
        "log_format": "ISO8601",
    }


@pytest.mark.parametrize(
    ("changes", "written"),
    [
        ({"log_warning": False}, ["info", "error", "critical"]),
        ({"log_info": False, "log_error": False}, ["warning"]),
        ({"log_info": False, "log_warning": False, "log_error": False}, []),
        ({"log_info": False, "log_warning": False, "log_error": False, "log_verbose_level": 2}, ["debug"]),
        ({"log_verbose_level": 1}, list(LEVELS)),
        ({}, list(LEVELS[1:])),
    ],
)
def test_each_level_has_its_switch(
    root: logging.Logger, capsys: pytest.CaptureFixture[str], changes: dict[str, LogValue], written: list[str]
) -> None:
    control = configure("info")
    control.change(changes)
    assert _written(capsys) == written
    control.change({"log_info": True, "log_warning": True, "log_error": True, "log_verbose_level": 0})
    assert _written(capsys) == list(LEVELS[1:])


def test_changes_from_many_threads_are_all_kept(root: logging.Logger) -> None:
    control = configure("info")
    names = ("log_info", "log_warning", "log_error")

    def flip(name: str) -> None:
        for turn in range(501):
            control.change({name: bool(turn % 2)})

    threads = [threading.Thread(target=flip, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {name: control.values()[name] for name in names} == dict.fromkeys(names, False)
    assert root.level > logging.CRITICAL
