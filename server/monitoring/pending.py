"""Pending: sampled predictions that await their outcomes, as arrays. **Pure.**

Floor 4. The oldest are forgotten first. A row with one score costs 65 to 80 bytes. It is found by linked lists in numpy arrays
and not by a dict, which would cost 110 more, and a step in Python for each row that comes or goes. There is nothing to delete
from: a link to a row that has been forgotten is known by its number.

A row is known by one 64-bit number, of the request's hash and the row. Two of a million pending rows have the same with a
probability of about 3e-8, as two ids of a million have the same hash.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.core.hashing import id_hash

Keys = NDArray[np.uint64]
Numbers = NDArray[np.int64]
Floats = NDArray[np.float64]

NO_ID = id_hash("")
"""What requests without an id are known by: no outcome can be told to be theirs."""

_ROW_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_FIRST = 1024
_NONE = -1
_COLUMNS = ("_keys", "_time_us", "_due_us", "_scores", "_labels")


class Settled(NamedTuple):
    """Rows that are counted now, in the order in which they are.

    Shapes: `scores` `[N, K]`, `labels` `[N]`: NaN where there is none; `time_us` `[N]`.
    """

    scores: Floats
    labels: Floats
    time_us: Numbers


def keys_of(id_hashes: NDArray[np.uint64], rows: NDArray[np.integer]) -> Keys:
    """The number that each row of each request is known by."""
    with np.errstate(over="ignore"):
        return id_hashes + rows.astype(np.uint64) * _ROW_FACTOR


def key_of(hashed_id: int, row: int) -> int:
    """`keys_of` of one row."""
    return (hashed_id + row * int(_ROW_FACTOR)) % 2**64


class Pending:
    """Predictions of one version in one arm. Ownership: one thread at a time.

    `columns`: K, numbers per score; `limit`: rows that are remembered at most; `horizon_us` 0: a prediction is counted as soon
    as its outcome is known. Each row has a number, ascending from 0, and its place is that number modulo the rows there is
    room for.
    """

    def __init__(self, columns: int, limit: int, horizon_us: int) -> None:
        self.columns, self._limit, self._horizon_us = columns, limit, horizon_us
        self.oldest = self.next = self.counted = 0
        """Numbers of rows: the oldest that is remembered, the next to come, and (with a horizon) the next to be counted."""
        self.forgotten = self.repeated = 0
        """Rows that were forgotten before they were counted; rows that came although there was one of the same id."""
        self._known: list[int] = []
        self._allocate(min(limit, _FIRST))

    def _allocate(self, capacity: int) -> None:
        self._capacity = capacity
        self._keys = np.zeros(capacity, np.uint64)
        self._time_us, self._due_us = np.zeros(capacity, np.int64), np.zeros(capacity, np.int64)
        self._scores, self._labels = np.zeros((capacity, self.columns)), np.full(capacity, np.nan)
        self._older = np.full(capacity, _NONE, np.int64)
        # about one row for every second list
        self._heads = np.full(1 << (2 * capacity - 1).bit_length(), _NONE, np.int64)

    def __len__(self) -> int:
        return self.next - self.oldest

    @property
    def nbytes(self) -> int:
        """Memory of its arrays."""
        return sum(getattr(self, name).nbytes for name in (*_COLUMNS, "_older", "_heads"))

    # -- coming and going -----------------------------------------------------------------------------------------------

    def add(self, keys: Keys, scores: Floats, time_us: Numbers, now_us: int) -> Keys:
        """Remember predictions that were served by `now_us`; those that are new: of a repeated request the first one counts.

        Shapes: `keys`, `time_us` `[N]`, `scores` `[N, K]`. More rows than there is room for push out the oldest.
        """
        _, firsts = np.unique(keys, return_index=True)
        firsts = np.sort(firsts)
        new = firsts[self._find(keys[firsts]) == _NONE]
        self.repeated += len(keys) - len(new)
        for start in range(0, len(new), self._limit):
            chosen = new[start : start + self._limit]
            self._append(keys[chosen], scores[chosen], time_us[chosen], now_us)
        known: Keys = keys[new]
        return known

    def _append(self, keys: Keys, scores: Floats, time_us: Numbers, now_us: int) -> None:
        self._make_room(len(keys))
        numbers = np.arange(self.next, self.next + len(keys))
        slots = numbers % self._capacity
        # a clock that was set back must not change the order in which rows are counted
        due = now_us + self._horizon_us
        if len(self):
            due = max(due, int(self._due_us[(self.next - 1) % self._capacity]))
        self._keys[slots], self._scores[slots], self._time_us[slots] = keys, scores, time_us
        self._due_us[slots], self._labels[slots] = due, np.nan
        self.next += len(keys)
        self._link(numbers)

    def _make_room(self, rows: int) -> None:
        wanted = len(self) + rows
        if wanted > self._capacity and self._capacity < self._limit:
            self._grow(min(self._limit, 1 << (wanted - 1).bit_length()))
        excess = max(wanted - self._capacity, 0)
        if excess:
            last = self.oldest + excess
            if self._horizon_us:
                self.forgotten += max(last - max(self.oldest, self.counted), 0)
                self.counted = max(self.counted, last)
            else:
                gone = self._labels[np.arange(self.oldest, last) % self._capacity]
                self.forgotten += int(np.isnan(gone).sum())
            self.oldest = last

    def _grow(self, capacity: int) -> None:
        numbers = np.arange(self.oldest, self.next)
        kept = [getattr(self, name)[numbers % self._capacity] for name in _COLUMNS]
        self._allocate(capacity)
        for name, values in zip(_COLUMNS, kept, strict=True):
            getattr(self, name)[numbers % capacity] = values
        self._link(numbers)

    def _link(self, numbers: Numbers) -> None:
        """Put rows at the heads of their lists, so that every list goes from the newest to the oldest."""
        slots = numbers % self._capacity
        buckets = self._buckets(self._keys[slots])
        order = np.lexsort((-numbers, buckets))
        buckets, numbers, slots = buckets[order], numbers[order], slots[order]
        if not len(numbers):
            return
        ends = np.append(buckets[1:] != buckets[:-1], True)
        begins = np.append(True, ends[:-1])
        self._older[slots] = np.where(ends, self._heads[buckets], np.append(numbers[1:], _NONE))
        self._heads[buckets[begins]] = numbers[begins]

    def _buckets(self, keys: Keys) -> NDArray[np.intp]:
        return (keys & np.uint64(len(self._heads) - 1)).astype(np.intp)

    def _find(self, keys: Keys) -> Numbers:
        """The numbers of the rows that are known so, -1 where none is."""
        found = np.full(len(keys), _NONE, np.int64)
        at = self._heads[self._buckets(keys)]
        while True:
            # what is linked from here on is older, so that it has been forgotten as well
            at = np.where(at >= self.oldest, at, _NONE)
            going = np.flatnonzero((at != _NONE) & (found == _NONE))
            if not len(going):
                return found
            slots = at[going] % self._capacity
            alike = self._keys[slots] == keys[going]
            found[going[alike]] = at[going[alike]]
            at[going] = self._older[slots]

    def find(self, key: int) -> int:
        """The number of the row that is known so, -1 where none is."""
        at = int(self._heads[key & (len(self._heads) - 1)])
        while at >= self.oldest:
            slot = at % self._capacity
            if int(self._keys[slot]) == key:
                return at
            at = int(self._older[slot])
        return _NONE

    def found(self, keys: Keys) -> NDArray[np.bool_]:
        """Which of them are known."""
        known: NDArray[np.bool_] = self._find(keys) != _NONE
        return known

    # -- outcomes -------------------------------------------------------------------------------------------------------

    def label_of(self, number: int) -> float:
        """The outcome of a row; NaN where none is known."""
        return float(self._labels[number % self._capacity])

    def is_closed(self, number: int, now_us: int) -> bool:
        """Whether a row has been counted, or is to be counted as it is: its outcome cannot change any more."""
        slot = number % self._capacity
        if self._horizon_us:
            return number < self.counted or int(self._due_us[slot]) <= now_us
        return not np.isnan(self._labels[slot])

    def label(self, number: int, label: float) -> None:
        """State the outcome of a row that is not closed."""
        self._labels[number % self._capacity] = label
        if not self._horizon_us:
            self._known.append(number)

    def settle(self, now_us: int) -> Settled:
        """The rows that are to be counted by now, each of them once.

        With a horizon those whose time has come, in the order in which they were served, with or without an outcome; without
        one those that have got an outcome since the last time, in the order of the outcomes.
        """
        if self._horizon_us:
            numbers = np.arange(self.counted, self.next)
            last = int(np.searchsorted(self._due_us[numbers % self._capacity], now_us, side="right"))
            numbers = numbers[:last]
            self.counted += last
        else:
            # those that were pushed out meanwhile are gone: who adds settles first
            numbers = np.array([number for number in self._known if number >= self.oldest], np.int64)
            self._known.clear()
        slots = numbers % self._capacity
        return Settled(self._scores[slots], self._labels[slots], self._time_us[slots])

    # -- keeping --------------------------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All that is remembered, copied; the oldest row first."""
        slots = np.arange(self.oldest, self.next) % self._capacity
        counters = [self.oldest, self.next, self.counted, self.forgotten, self.repeated]
        kept: dict[str, NDArray[np.generic]] = {name.removeprefix("_"): getattr(self, name)[slots] for name in _COLUMNS}
        return {**kept, "known": np.array(self._known, np.int64), "counters": np.array(counters, np.int64)}

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Remember what `arrays` gave, of one with the same columns, limit and horizon. Raises: KeyError, ValueError."""
        oldest, following, counted, forgotten, repeated = map(int, arrays["counters"].tolist())
        rows = following - oldest
        shapes = {name: (rows, self.columns) if name == "_scores" else (rows,) for name in _COLUMNS}
        if not 0 <= rows <= self._limit or any(arrays[name[1:]].shape != shape for name, shape in shapes.items()):
            raise ValueError("what was kept of pending predictions does not fit together")
        self._allocate(min(self._limit, max(_FIRST, 1 << max(rows - 1, 0).bit_length())))
        self.oldest, self.next, self.counted = oldest, following, counted
        self.forgotten, self.repeated = forgotten, repeated
        numbers = np.arange(oldest, following)
        for name in _COLUMNS:
            getattr(self, name)[numbers % self._capacity] = arrays[name[1:]]
        self._known = [int(number) for number in arrays["known"].tolist()]
        self._link(numbers)
