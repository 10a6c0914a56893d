"""Who used which version, and when: the numbers, and the file they are kept in. **Pure.**

Floor 2: what one server counts, adds up over days and writes down; and what the files of many servers say together. Days are
those of UTC. It never forgets a version for being gone: that nobody has asked for it is what people want to know.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Literal, NamedTuple

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from server.core.errors import RegistryError
from server.core.versions import VersionKey

KEPT_DAYS = 92
"""For how many days requests are known by the day."""
KEPT_IDLE_DAYS = 400
"""After how many days without a request a consumer of a version is forgotten."""

_NS_PER_DAY = 86_400 * 10**9
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Count = Annotated[int, Field(ge=0)]


class UseKey(NamedTuple):
    """One consumer of one version. `consumer` "" stands for those who declare nothing."""

    key: VersionKey
    consumer: str


@dataclass(slots=True)
class Use:
    """What one consumer asked of one version. Units: ns since 1970; `days` counts requests per day since 1970."""

    requests: int = 0
    first_ns: int = 0
    last_ns: int = 0
    days: dict[int, int] = field(default_factory=dict)

    def add(self, requests: int, first_ns: int, last_ns: int, days: Iterable[tuple[int, int]]) -> None:
        """Add requests that lie between two instants."""
        self.first_ns = min(self.first_ns, first_ns) if self.requests else first_ns
        self.last_ns = max(self.last_ns, last_ns)
        self.requests += requests
        for day, count in days:
            self.days[day] = self.days.get(day, 0) + count


class UsageRow(BaseModel):
    """A `Use` as people and files see it. `days`: requests per day of UTC, the last `KEPT_DAYS` only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    version: Annotated[int, Field(gt=0)]
    consumer: str
    requests: Annotated[int, Field(gt=0)]
    first: AwareDatetime
    last: AwareDatetime
    days: dict[date, Count]


class _UsageFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1]
    server: str
    uses: tuple[UsageRow, ...]


Uses = dict[UseKey, Use]


def day_of(ns: int) -> int:
    """The day of an instant, counted from 1970-01-01."""
    return ns // _NS_PER_DAY


def forget_old(uses: Uses, now_ns: int) -> None:
    """Drop what is no longer kept: single days first, then consumers that have not come back."""
    today = day_of(now_ns)
    for key, use in list(uses.items()):
        if day_of(use.last_ns) <= today - KEPT_IDLE_DAYS:
            del uses[key]
        else:
            for day in [day for day in use.days if day <= today - KEPT_DAYS]:
                del use.days[day]


def merge(many: Iterable[Uses]) -> Uses:
    """What several servers counted, together. Ownership: new values."""
    together: Uses = {}
    for uses in many:
        for key, use in uses.items():
            together.setdefault(key, Use()).add(use.requests, use.first_ns, use.last_ns, use.days.items())
    return together


def rows_of(uses: Uses, model: str | None = None) -> list[UsageRow]:
    """Rows of one model or all: models by name, versions newest first, the busiest consumers first, the undeclared last."""
    chosen = [(key, use) for key, use in uses.items() if model in (None, key.key.model)]
    chosen.sort(key=lambda each: (each[0].key.model, -each[0].key.version, not each[0].consumer, -each[1].requests, each[0]))
    return [
        UsageRow(
            model=key.key.model,
            version=key.key.version,
            consumer=key.consumer,
            requests=use.requests,
            first=_instant(use.first_ns),
            last=_instant(use.last_ns),
            days={_date(day): count for day, count in sorted(use.days.items())},
        )
        for key, use in chosen
    ]


def uses_of(rows: Iterable[UsageRow]) -> Uses:
    """The inverse of `rows_of`, to the microsecond."""
    uses: Uses = {}
    for row in rows:
        days = ((_day(day), count) for day, count in row.days.items())
        key = UseKey(VersionKey(row.model, row.version), row.consumer)
        uses.setdefault(key, Use()).add(row.requests, _ns(row.first), _ns(row.last), days)
    return uses


def write_usage(server: str, uses: Uses) -> bytes:
    """The content of a server's file: JSON, a line per row, equal for equal values."""
    return "".join(_lines(server, uses)).encode()


def _lines(server: str, uses: Uses) -> Iterator[str]:
    yield f'{{"schema_version": 1, "server": {json.dumps(server)}, "uses": ['
    # row by row: one call for all would hold the interpreter, and with it the event loop, for as long as it takes
    for position, row in enumerate(rows_of(uses)):
        yield ("," if position else "") + "\n" + row.model_dump_json()
    yield "\n]}\n"


def read_usage(data: bytes, where: str) -> Uses:
    """What a server's file says. Raises: RegistryError, naming `where`, for anything `write_usage` does not write."""
    try:
        return uses_of(_UsageFile.model_validate_json(data).uses)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise RegistryError(f"{where} holds no usage: {place + ': ' if place else ''}{first['msg']}") from None


def _instant(ns: int) -> datetime:
    return _EPOCH + timedelta(microseconds=ns // 1000)


def _ns(instant: datetime) -> int:
    return (instant - _EPOCH) // timedelta(microseconds=1) * 1000


def _date(day: int) -> date:
    return (_EPOCH + timedelta(days=day)).date()


def _day(day: date) -> int:
    return (day - _EPOCH.date()).days
