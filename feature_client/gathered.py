"""Rows that several callers of one event loop hold in the same turn of it, unpacked at once.

Taking rows apart costs nearly the same for one as for a hundred; callers whose rows came with one answer are awake in one turn.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np

from feature_client.row import unpack
from feature_client.schema import Status
from feature_client.served import Found, Served
from feature_client.store import Row
from feature_client.view import View

Made = TypeVar("Made", Found, Served)
ALONE_ROWS = 32
"""A caller with as many rows gains nothing from others."""


class Gathered(Generic[Made]):
    """Unpacks rows of one view. Belongs to one event loop.

    `make` is called once for all rows of a turn; `part` gives each caller its own, by first and last row.
    """

    def __init__(
        self, view: View, stamp: int, make: Callable[[Found], Made], part: Callable[[Made, int, int], Made]
    ) -> None:
        self._view, self._stamp = view, stamp
        self._make, self._part = make, part
        self._rows: list[Row | None] = []
        self._missed: list[int] = []
        self._callers: list[tuple[asyncio.Future[Made], int]] = []

    async def add(self, rows: Sequence[Row | None], missed: Sequence[int]) -> Made:
        """What these rows hold. `missed`: which of them nobody knows: TIMEOUT. Ownership: numpy views of what is shared."""
        if len(rows) >= ALONE_ROWS:
            return self._made(rows, missed)
        loop = asyncio.get_running_loop()
        if not self._callers:
            loop.call_soon(self._turn)
        first = len(self._rows)
        self._rows += rows
        self._missed += [first + at for at in missed]
        mine: asyncio.Future[Made] = loop.create_future()
        self._callers.append((mine, first))
        return await mine

    def _turn(self) -> None:
        rows, missed, callers = self._rows, self._missed, self._callers
        self._rows, self._missed, self._callers = [], [], []
        try:
            made = self._made(rows, missed)
        except Exception as error:  # noqa: BLE001 - each caller gets it, none is left waiting
            for mine, _ in callers:
                if not mine.done():
                    mine.set_exception(error)
            return
        last = len(rows)
        for mine, first in reversed(callers):
            if not mine.done():
                mine.set_result(made if len(callers) == 1 else self._part(made, first, last))
            last = first

    def _made(self, rows: Sequence[Row | None], missed: Sequence[int]) -> Made:
        found = unpack(self._view, self._stamp, rows)
        if missed:
            found.row_status[list(missed)] = Status.TIMEOUT
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


def counts(found: Found) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """How many rows there are of each status. Shapes: one per `Status`."""
    return np.bincount(found.row_status, minlength=len(Status))
