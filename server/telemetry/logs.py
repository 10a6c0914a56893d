"""Log lines: one JSON object each, on standard error.

Floor 2: every room logs through the standard library's `logging.getLogger(__name__)`; this file only decides how a line
looks, and which are written. Nothing logs per request: a line costs more than the answer it would describe.
"""

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from server.core.errors import InvalidRequest, Unsupported

Level = Literal["debug", "info", "warning", "error"]

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record carries; anything beyond came in by `extra`."""


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON: time, level, logger, event, then the extra fields, then error.

    `time` is RFC 3339 in UTC with milliseconds, `event` the message, `error` the traceback of a logged exception. An extra
    field that takes one of these names is written with an underscore after it. Whatever JSON cannot say is written as its
    `repr`: no line is lost for what is in it.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        error = {}
        if record.exc_info:
            error["error"] = self.formatException(record.exc_info)
        if record.stack_info:
            error["stack"] = self.formatStack(record.stack_info)
        taken = {*line, "error", "stack"}
        extra = {f"{name}_" if name in taken else name: value for name, value in vars(record).items() if name not in _OWN}
        try:
            return _dumps({**line, **extra, **error})
        except (ValueError, TypeError, RecursionError):  # NaN, keys that are no text, a structure that holds itself
            return _dumps({**line, **{name: repr(value) for name, value in extra.items()}, **error})


def _dumps(line: dict[str, Any]) -> str:
    return json.dumps(line, default=repr, allow_nan=False, ensure_ascii=False)


LogValue = bool | int | str


@dataclass(frozen=True, slots=True)
class LogSwitches:
    """What is let through, under Triton's names. `log_verbose_level` above 0: debug lines. Lines above error are errors."""

    log_info: bool = True
    log_warning: bool = True
    log_error: bool = True
    log_verbose_level: int = 0

    def let_through(self, level: int) -> bool:
        """Whether a line of this level is written."""
        if level >= logging.ERROR:
            return self.log_error
        if level >= logging.WARNING:
            return self.log_warning
        return self.log_info if level >= logging.INFO else self.log_verbose_level > 0

    def least(self) -> int:
        """The least level of which anything is let through: what is below need not be made into a record."""
        levels = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)
        return next((level for level in levels if self.let_through(level)), logging.CRITICAL + 1)


_STARTS: dict[Level, LogSwitches] = {
    "debug": LogSwitches(log_verbose_level=1),
    "info": LogSwitches(),
    "warning": LogSwitches(log_info=False),
    "error": LogSwitches(log_info=False, log_warning=False),
}
_FORMAT = "ISO8601"
"""Triton's word for lines whose times are ISO 8601: of its two formats the one that is true of ours."""


class LogControl(logging.Filter):
    """Changes what is logged while the server runs: at once, for every thread, by one reference swap."""

    def __init__(self, level: Level) -> None:
        super().__init__()
        self._switches = _STARTS[level]
        self._lock = threading.Lock()
        self._root = logging.getLogger()
        self._root.setLevel(self._switches.least())

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record becomes a line."""
        return self._switches.let_through(record.levelno)

    def values(self) -> dict[str, LogValue]:
        """The settings in force. `log_file` is empty: lines go to standard error."""
        return {"log_file": "", **asdict(self._switches), "log_format": _FORMAT}

    def change(self, values: Mapping[str, LogValue | None]) -> None:
        """Change settings: all that are given, or none. None is a setting without a value.

        Raises: Unsupported, InvalidRequest, with Triton's texts. Triton ignores names that it does not know; here they are
        refused.
        """
        if "log_file" in values:
            raise Unsupported("log file location can not be updated through network protocol")
        changes: dict[str, Any] = {}
        for name, value in values.items():
            kind, called = _KINDS.get(name, (None, ""))
            if kind is None:
                raise InvalidRequest(f"unrecognized log setting '{name}'.")
            if type(value) is not kind:  # not isinstance: True is an int
                raise InvalidRequest(f"expect {called} for '{name}'")
            if name != "log_format":
                changes[name] = value
            elif value != _FORMAT:
                reason = "; lines are JSON with ISO8601 times" if value == "default" else ""
                raise InvalidRequest(f"invalid argument for log_format, got: {value}{reason}")
        with self._lock:
            self._switches = replace(self._switches, **changes)
            self._root.setLevel(self._switches.least())


_KINDS: dict[str, tuple[type, str]] = {
    "log_info": (bool, "boolean"),
    "log_warning": (bool, "boolean"),
    "log_error": (bool, "boolean"),
    "log_verbose_level": (int, "int32"),  # Triton's word, although it is unsigned
    "log_format": (str, "string"),
}


def configure(level: Level) -> LogControl:
    """Write all log lines of the process from `level` up as JSON to standard error; what is returned changes that later.

    Calling it again starts afresh. Handlers that others have put on the root logger stay.
    """
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler.formatter, JsonLines):
            root.removeHandler(handler)
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    control = LogControl(level)
    handler.addFilter(control)
    root.addHandler(handler)
    # one line per group of file events, whether or not they matter; a log inside the repository would feed itself
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    return control
