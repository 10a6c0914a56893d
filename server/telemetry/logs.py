"""Log lines: one JSON object each, on standard error.

Floor 2: every room logs through the standard library's `logging.getLogger(__name__)`; this file only decides how a line
looks. Nothing logs per request: a line costs more than the answer it would describe.
"""

import json
import logging
from datetime import UTC, datetime
from typing import Any, Literal

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


def configure(level: Level) -> None:
    """Write all log lines of the process from `level` up as JSON to standard error. Calling it again changes the level.

    Handlers that others have put on the root logger stay.
    """
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler.formatter, JsonLines):
            root.removeHandler(handler)
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    root.addHandler(handler)
    root.setLevel(level.upper())
    # one line per group of file events, whether or not they matter; a log inside the repository would feed itself
    logging.getLogger("watchfiles").setLevel(max(logging.WARNING, root.level))
