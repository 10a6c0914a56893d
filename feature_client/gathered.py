"""Rows that several callers of one event loop hold in the same turn of it, unpacked at once.

Taking rows apart costs nearly the same for one as for a hundred; callers whose rows came with one answer are awake in one turn.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from feature_client.coalescer import Asked
from feature_client.row import unpack
from feature_client.schema import Status
from feature_client.served import Found, Served
from feature_client.store import Row
from feature_client.view import View

Made = TypeVar("Made")
ALONE_ROWS = 32
"""Whoever has as many rows gains nothing from others."""


class Gathered(Generic[Made]):
    """Unpacks rows of one view. Belongs to one event loop.

    `seen` is called once for all rows of a turn, with the answers of the store among them by position; then `make`; `part`
    gives each caller its own, by first and last row.
    """

    def __init__(
        self,
        view: View,
        stamp: int,
        seen: Callable[[Found, Sequence[tuple[int, Asked]]], None],
        make: Callable[[Found], Made],
        part: Callable[[Made, int, int], Made],
    ) -> None:
        self._view, self._stamp = view, stamp
        self._seen, self._make, self._part = seen, make, part
        self._rows: list[Row | None] = []
        self._missed: list[int] = []
        self._answers: list[tuple[int, Asked]] = []
        self._callers: list[tuple[asyncio.Future[Made], int]] = []

    def add(
        self, rows: Sequence[Row | None], missed: Sequence[int], answers: Sequence[tuple[int, Asked]]
    ) -> "asyncio.Future[Made]":
        """What these rows hold. `missed`: positions of those that nobody knows: TIMEOUT. `answers`: as for `seen`.

        Ownership: of callers with few rows, numpy views of what others have as well.
        """
        loop = asyncio.get_running_loop()
        mine: asyncio.Future[Made] = loop.create_future()
        if len(rows) >= ALONE_ROWS:
            mine.set_result(self._made(rows, missed, answers))
            return mine
        if not self._callers:
            loop.call_soon(self._turn)
        first = len(self._rows)
        self._callers.append((mine, first))
        self._rows += rows
        self._missed += [first + at for at in missed]
        self._answers += [(first + at, asked) for at, asked in answers]
        return mine

    def _turn(self) -> None:
        rows, missed, answers, callers = self._rows, self._missed, self._answers, self._callers
        self._rows, self._missed, self._answers, self._callers = [], [], [], []
        try:
            made = self._made(rows, missed, answers)
        except Exception as error:  # noqa: BLE001 - each caller gets it: none is left waiting
            for mine, _ in callers:
                if not mine.done():
                    mine.set_exception(error)
            return
        last = len(rows)
        for mine, first in reversed(callers):
            if not mine.done():
                mine.set_result(made if len(callers) == 1 else self._part(made, first, last))
            last = first

    def _made(self, rows: Sequence[Row | None], missed: Sequence[int], answers: Sequence[tuple[int, Asked]]) -> Made:
        found = unpack(self._view, self._stamp, rows)
        if missed:
            found.row_status[list(missed)] = Status.TIMEOUT
        self._seen(found, answers)
        return self._make(found)


def found_part(found: Found, first: int, last: int) -> Found:
    """Rows first to last - 1. Ownership: numpy views."""
    return Found(
        {name: column[first:last] for name, column in found.values.items()},
        found.nulls[first:last],
        found.row_status[first:last],
        found.event_us[first:last],
        found.available_us[first:last],
    )


def served_part(served: Served, first: int, last: int) -> Served:
    """Rows first to last - 1. Ownership: numpy views."""
    values = {name: column[first:last] for name, column in served.values.items()}
    return Served(values, served.statuses[first:last], served.refused[first:last])
