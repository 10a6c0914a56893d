"""From batches that were answered to samples: which rows some requests own, and copies of them. **Pure.**

Floor 4. Arrays in, arrays out, a few calls of numpy for each batch that a chosen request was in.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.core.clock import NS_PER_US
from server.core.tensors import Array
from server.core.versions import VersionKey
from server.monitoring.samples import Samples

ROW_BYTES = 56
"""Of a sample, beside its columns."""

Positions = NDArray[np.intp]


@dataclass(slots=True)
class Served:
    """Requests of one batch that were executed together.

    Shapes: B requests with N rows. `spans` int64 `[B + 1]`: request i owns rows from `spans[i] - spans[0]` up to
    `spans[i + 1] - spans[0]` of `inputs`, `callers`, `outputs` (all `[>= N, ...]`) and `statuses` `[N, F]`; `answered` bool
    `[B]`. `inputs`: what the backend was given; `callers`: what was brought beside that. `rows`: N. Ownership: only read, and
    kept for a moment: nobody writes to the arrays any more.
    """

    spans: NDArray[np.int64]
    id_hashes: NDArray[np.uint64]
    arrival_ns: NDArray[np.int64]
    answered: NDArray[np.bool_]
    inputs: Mapping[str, Array]
    callers: Mapping[str, Array]
    outputs: Mapping[str, Array]
    statuses: NDArray[np.uint8] | None
    taken_ns: int
    execute_ns: int
    rows: int

    def alike(self, other: "Served") -> bool:
        """Whether rows of both may stand in one array. Their shapes are known to be the same, not which inputs were brought."""
        return (
            self.inputs.keys() == other.inputs.keys()
            and self.callers.keys() == other.callers.keys()
            and self.outputs.keys() == other.outputs.keys()
            and (self.statuses is None) == (other.statuses is None)
        )


Group = tuple[Served, Positions]
"""A batch, and which of its rows were chosen."""


@dataclass(slots=True)
class Held:
    """Some batches that are alike, side by side. Shapes: M requests in all; each array `[M]`. `rows`: of all of them."""

    batches: Sequence[Served]
    rows: int
    id_hashes: NDArray[np.uint64]
    arrival_ns: NDArray[np.int64]
    answered: NDArray[np.bool_]

    @classmethod
    def of(cls, batches: Sequence[Served]) -> "Held":
        """There is one at least."""
        if len(batches) == 1:
            (one,) = batches
            return cls(batches, one.rows, one.id_hashes, one.arrival_ns, one.answered)
        return cls(
            batches,
            sum([each.rows for each in batches]),
            np.concatenate([each.id_hashes for each in batches]),
            np.concatenate([each.arrival_ns for each in batches]),
            np.concatenate([each.answered for each in batches]),
        )

    def picked(self, requests: Positions) -> "Picked":
        """All rows of these requests, which are counted over all batches and ascend."""
        batches = self.batches
        one_each = self.rows == len(self.answered)  # a request has at least one row
        if one_each:
            owners, numbers = requests, np.zeros(len(requests), dtype=np.int32)
            if len(batches) == 1:
                return Picked(owners, numbers, [(batches[0], requests)])
        groups: list[Group] = []
        several: list[tuple[Positions, NDArray[np.int32]]] = []
        ends = np.cumsum([len(each.answered) for each in batches])
        start, first = 0, 0
        for each, end, last in zip(batches, ends.tolist(), requests.searchsorted(ends).tolist(), strict=True):
            if first < last:
                own = requests[first:last] - start
                if one_each:
                    groups.append((each, own))
                else:
                    own, rows, counted = rows_of(own, each.spans)
                    groups.append((each, rows))
                    several.append((own + start, counted))
            start, first = end, last
        if several:
            owners, numbers = (joined(list(parts)) for parts in zip(*several, strict=True))
        return Picked(owners, numbers, groups)


@dataclass(slots=True)
class Picked:
    """Chosen rows. Shapes: both arrays `[n]`. `owners`: their requests, counted over all batches that were held; `numbers`:
    which of their request; `groups`: the same rows, by batch.
    """

    owners: Positions
    numbers: NDArray[np.int32]
    groups: list[Group]

    def first(self, room: int) -> "Picked":
        """No more rows than there is room for."""
        groups, left = [], room
        for served, rows in self.groups:
            if left > 0:
                groups.append((served, rows[:left]))
                left -= len(rows)
        return Picked(self.owners[:room], self.numbers[:room], groups)


@dataclass(frozen=True, slots=True)
class Stamp:
    """What all rows of one decision have in common. `time_input`: where a row says when it happened, "" nowhere; then it did
    `at_us`, when it was decided: a moment after it was served.
    """

    key: VersionKey
    arm: str
    epoch: int
    weight: float
    rate: float
    features: tuple[str, ...]
    time_input: str
    at_us: int


def copied(held: Held, picked: Picked, stamp: Stamp, wants: Callable[[str, Array], bool]) -> tuple[Samples, int]:
    """Copies of chosen rows, and about how many bytes they take. `wants`: which columns are sampled."""
    owners, groups = picked.owners, picked.groups
    total = len(owners)
    inclusion = np.empty(total)
    inclusion.fill(stamp.rate)  # np.full takes twice as long
    instants = np.array([(each.taken_ns, each.execute_ns) for each, _ in groups], dtype=np.int64)
    taken_ns, execute_ns = instants.repeat([len(rows) for _, rows in groups], axis=0).T
    time_us = np.empty(total, dtype=np.int64)
    time_us.fill(stamp.at_us)
    inputs, inputs_bytes = _columns([(each.inputs, rows) for each, rows in groups], wants)
    callers, callers_bytes = _columns([(each.callers, rows) for each, rows in groups], wants)
    outputs, outputs_bytes = _columns([(each.outputs, rows) for each, rows in groups], wants)
    statuses = [each.statuses.take(rows, axis=0) for each, rows in groups if each.statuses is not None]
    samples = Samples(
        key=stamp.key,
        arm=stamp.arm,
        epoch=stamp.epoch,
        weight=stamp.weight,
        time_us=_stated(groups, stamp.time_input, time_us) if stamp.time_input else time_us,
        id_hash=held.id_hashes.take(owners),
        row=picked.numbers,
        inclusion=inclusion,
        queue_us=(taken_ns - held.arrival_ns.take(owners)) // NS_PER_US,
        execute_us=execute_ns // NS_PER_US,
        inputs=inputs,
        callers=callers,
        outputs=outputs,
        features=stamp.features if statuses else (),
        statuses=joined(statuses) if statuses else np.empty((total, 0), dtype=np.uint8),
    )
    return samples, total * ROW_BYTES + inputs_bytes + callers_bytes + outputs_bytes


def joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """One array of several; itself, where it is one."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _columns(
    groups: Sequence[tuple[Mapping[str, Array], Positions]], wants: Callable[[str, Array], bool]
) -> tuple[dict[str, Array], int]:
    made: dict[str, Array] = {}
    nbytes = 0
    for name, first in groups[0][0].items():
        if wants(name, first):
            made[name] = own = joined([arrays[name].take(rows, axis=0) for arrays, rows in groups])
            nbytes += own.nbytes
            if own.dtype == object:
                nbytes += sum(map(len, own.ravel().tolist()))
    return made, nbytes


def _stated(groups: Sequence[Group], name: str, otherwise: NDArray[np.int64]) -> NDArray[np.int64]:
    """When each row happened: what an input says, where it says it once for each row."""
    made = []
    for each, rows in groups:
        array = each.callers.get(name, each.inputs.get(name))
        if array is None or array.dtype != np.int64 or array.size != len(array):
            return otherwise
        made.append(array.reshape(-1).take(rows))
    return joined(made)


def rows_of(requests: Positions, spans: NDArray[np.int64]) -> tuple[Positions, Positions, NDArray[np.int32]]:
    """The rows that some requests own: for each its request, its place from the first row on, and its number in its request.

    >>> [part.tolist() for part in rows_of(np.array([0, 2]), np.array([4, 6, 9, 10]))]
    [[0, 0, 2], [0, 1, 5], [0, 1, 0]]
    """
    starts, counts = spans[requests] - spans[0], spans[requests + 1] - spans[requests]
    owners = np.repeat(requests, counts)
    numbers = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    return owners, np.repeat(starts, counts) + numbers, numbers.astype(np.int32)
