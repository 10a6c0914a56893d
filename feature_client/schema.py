"""What definitions are written in: entities, event logs, features, statuses, durations. **Pure.**

Units: instants are int64 microseconds since 1970 (`_us`), durations int64 microseconds. Columns are one-dimensional arrays by
name, `[N]` or, for a feature with a shape, `[N, *shape]`, C-contiguous.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from math import inf, prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from feature_client.errors import DefinitionError

Array = NDArray[Any]
Columns = Mapping[str, Array]

US_PER_S = 1_000_000
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")

DTYPES: dict[str, np.dtype[Any]] = {
    **{name: np.dtype(name) for name in ("float64", "float32", "float16", "int64", "int32", "int16", "int8")},
    **{name: np.dtype(name) for name in ("uint64", "uint32", "uint16", "uint8", "bool")},
    "bytes": np.dtype(object),
}
"""What a feature can be. `bytes`: Python `bytes` in arrays of objects."""

COLUMN_DTYPES = ("float64", "int64", "bool", "bytes")
"""What a column of an event log can be. Missing is NaN in float64 and None in bytes; the others are never missing."""

KEY_DTYPES = ("int64", "bytes")


def minutes(count: float) -> int:
    """A duration.

    >>> minutes(1.5)
    90000000
    """
    return round(count * 60 * US_PER_S)


def hours(count: float) -> int:
    """A duration."""
    return minutes(count * 60)


def days(count: float) -> int:
    """A duration."""
    return hours(count * 24)


class Status(IntEnum):
    """What is known of one served value. With the bit `DEFAULTED` the default stands in its place, for that reason.

    Higher is worse: a computed feature has the worst status among those it was computed from.
    """

    PRESENT = 0
    GIVEN = 1  # by the call, in place of the store's
    NULL = 2  # the row says that there is no value
    STALE = 3  # the row is older than the feature may be
    NOT_FOUND = 4
    TIMEOUT = 5  # the store did not answer in time, and no remembered row could stand in
    FP_MISMATCH = 6  # the row was written by another definition, or is damaged


DEFAULTED = 0x80
"""Added to a status."""


def status_text(status: int) -> str:
    """A status as it is shown.

    >>> status_text(Status.STALE | DEFAULTED), status_text(Status.PRESENT)
    ('DEFAULTED(STALE)', 'PRESENT')
    """
    name = Status(status & ~DEFAULTED).name
    return f"DEFAULTED({name})" if status & DEFAULTED else name


def stray(column: Array) -> int | None:
    """The first place of an array of objects that holds neither bytes nor None; None where there is none, or no objects."""
    if column.dtype.kind != "O" or set(map(type, column.ravel().tolist())) <= {bytes, type(None)}:
        return None
    return next(at for at, value in enumerate(column.ravel()) if not (value is None or type(value) is bytes))


def check_name(kind: str, name: str) -> None:
    """Raises: DefinitionError for what cannot be a name."""
    if not NAME.fullmatch(name):
        raise DefinitionError(f"'{name}' cannot be the name of {kind}: letters, digits and _, at most 100, no digit first")


@dataclass(frozen=True)
class Entity:
    """What rows are about. `keys`: its join keys in order, each "int64" or "bytes" (text is its UTF-8).

    One canonical integer type: what was written for 1 is found for 1, whatever width the caller's integers have.
    """

    name: str
    keys: Mapping[str, str]

    def __post_init__(self) -> None:
        check_name("an entity", self.name)
        if not self.keys:
            raise DefinitionError(f"the entity '{self.name}' has no join key")
        for key, dtype in self.keys.items():
            check_name("a join key", key)
            if dtype not in KEY_DTYPES:
                raise DefinitionError(f"the join key '{key}' is of type '{dtype}'; one of {', '.join(KEY_DTYPES)}")


@dataclass(frozen=True)
class EventLog:
    """Events as they are logged: one row each, with the join keys of every entity that reads it among its columns.

    `event_time`: when it happened. `created_time`: when it became known; "" where that is the same. An event counts from the
    later of both on. `event_id`: what is the same event when it is logged twice (the first to be known counts); "" where none
    ever is. Of two with one event time the one created later is newer, then the one that stands later in the log. Columns of
    instants are int64 microseconds.
    """

    name: str
    columns: Mapping[str, str]
    event_time: str = "event_us"
    created_time: str = ""
    event_id: str = ""

    def __post_init__(self) -> None:
        check_name("an event log", self.name)
        for column, dtype in self.columns.items():
            check_name("a column", column)
            if dtype not in COLUMN_DTYPES:
                raise DefinitionError(f"the column '{column}' is of type '{dtype}'; one of {', '.join(COLUMN_DTYPES)}")
        for column in filter(None, (self.event_time, self.created_time)):
            if self.columns.get(column) != "int64":
                raise DefinitionError(f"'{column}' of the event log '{self.name}' must be one of its columns, of type int64")
        if self.event_id and self.columns.get(self.event_id) not in KEY_DTYPES:
            raise DefinitionError(f"'{self.event_id}' of the event log '{self.name}' must be a column of type int64 or bytes")


def _holds(dtype: str, value: Any) -> bool:
    """Whether a type can hold a value. What it could not would be another value, silently; rounding to a float is meant."""
    if dtype == "bytes":
        return type(value) is bytes
    number = value.item() if isinstance(value, np.generic) else value
    if not isinstance(number, bool | int | float):
        return False
    kind = DTYPES[dtype].kind
    if kind == "f":
        return number != number or abs(number) == inf or abs(number) <= float(np.finfo(dtype).max)
    if kind == "b":
        return number in (0, 1)
    return number == number // 1 and np.iinfo(dtype).min <= number <= np.iinfo(dtype).max


@dataclass(frozen=True)
class Feature:
    """One value of a row. `default` stands in where there is none.

    `null`: what becomes of a row that has no value here (NaN, or None for bytes): "default", or "keep" it as it is.
    `max_age_us`: how old its row may be when it is read; 0: as old as the view allows. `unit`: for people ("min", "ratio").
    """

    name: str
    dtype: str
    default: Any
    shape: tuple[int, ...] = ()
    unit: str = ""
    null: Literal["default", "keep"] = "default"
    max_age_us: int = 0

    def __post_init__(self) -> None:
        check_name("a feature", self.name)
        if self.dtype not in DTYPES:
            raise DefinitionError(f"the feature '{self.name}' is of type '{self.dtype}'; one of {', '.join(DTYPES)}")
        if any(dim < 1 for dim in self.shape) or (self.shape and self.dtype == "bytes"):
            raise DefinitionError(f"the feature '{self.name}' cannot have the shape {list(self.shape)}")
        if self.null not in ("default", "keep") or self.max_age_us < 0:
            raise DefinitionError(f"the feature '{self.name}': null is 'default' or 'keep', max_age_us at least 0")
        if self.null == "keep" and not self.nullable:
            raise DefinitionError(f"the feature '{self.name}' cannot keep nulls: {self.dtype} has none")
        if not _holds(self.dtype, self.default):
            raise DefinitionError(f"the default of the feature '{self.name}' is no {self.dtype}: {self.default!r}")

    @property
    def nullable(self) -> bool:
        """Whether the type has a value that says "none"."""
        return self.dtype == "bytes" or DTYPES[self.dtype].kind == "f"

    @property
    def elements(self) -> int:
        """Number of elements of one value."""
        return prod(self.shape)
