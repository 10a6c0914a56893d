"""What the engine asks of a data plane, whichever kind it is. Pure: names, no behaviour.

The door's side (how requests get in) belongs to each kind: the python kind has `submit` and `cancel`, a native kind takes
requests from its own sockets. The engine's side is this file, and one conformance suite runs against every kind.

Law: a ticket that was admitted ends exactly once, with outputs, an error, expiry or cancellation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from server.core.errors import BackendFailed, NotReady, PodiumError
from server.core.signature import Signature
from server.core.tensors import Array, Shapes, plain_arrays
from server.core.versions import VersionKey

Allocate = Callable[[Shapes], dict[str, Array]]
"""Makes the arrays of a batch, unfilled. What it returns goes to the backend as it is."""


class QueueClosed(NotReady):
    """The version left service between its choice and the ticket's entry: choose again."""


@dataclass(frozen=True, slots=True)
class QueueRules:
    """Everything the data plane needs to know of one version.

    Units: `buckets` in rows, ascending, the last is the largest batch. `costs_ns` is the measured time of one execution
    per bucket, 0 where it was not measured; of each size class in turn, where the version has several. `queue_id` names this
    queue alone: while a version is being reloaded, its old and its new replica have a queue each. `instances` batches may run
    at once; `share` is the part of the device's time that the version may claim before others, 0 none. `handle` is the engine's
    own reference, handed back with every batch and never looked into. `allocate` makes the arrays that batches are gathered
    into: where its device reads them fastest. `sibling_of`: the first queue of the version, where it has one on each of several
    devices; 0: this is the first, or the only one.
    """

    queue_id: int
    key: VersionKey
    signature: Signature
    device: str
    buckets: tuple[int, ...]
    costs_ns: tuple[int, ...]
    padding: bool
    max_requests: int
    early_drop: bool
    queue_delay_ns: int
    handle: Any
    decoupled: bool = False
    instances: int = 1
    share: float = 0.0
    allocate: Allocate = plain_arrays
    sibling_of: int = 0

    @property
    def entrance(self) -> int:
        """The number by which requests enter: that of the first of all queues of this version, open still or not."""
        return self.sibling_of or self.queue_id

    def class_costs_ns(self, size_class: int) -> tuple[int, ...]:
        """The costs of one size class, per bucket."""
        count = len(self.buckets)
        return self.costs_ns[size_class * count : (size_class + 1) * count]

    @property
    def size_classes(self) -> int:
        """How many size classes have costs of their own; 1 where nothing is padded but rows."""
        return len(self.costs_ns) // len(self.buckets)

    def padded(self, rows: int) -> int:
        """How many rows are executed for so many."""
        return next(size for size in self.buckets if size >= rows) if self.padding else rows


@dataclass(slots=True)
class Execution:
    """When a batch was taken and executed, for those of its callers who want to know. Units: monotonic ns; rows.

    One for all requests of a batch. `features_ns`: how long its features took, before `started_ns`. `lead_ns`: the part of the
    time before `started_ns` in which another batch may be executing.
    Ownership: the engine writes it before `finish`, nobody afterwards.
    """

    taken_ns: int
    started_ns: int = 0
    ran_ns: int = 0
    rows: int = 0
    features_ns: int = 0
    lead_ns: int = 0


@dataclass(slots=True)
class Batch:
    """Rows of one version, gathered and ready to run.

    Shapes: B requests, N rows (`spans[-1]`), P >= N rows after padding. `inputs` `[P, ...]`; `spans` int64 `[B + 1]`: request i
    owns rows `spans[i]:spans[i + 1]`; `arrival_ns`, `deadline_ns` int64 `[B]` (deadline 2**62 where there is none); `id_hashes`
    uint64 `[B]`, see `id_hash`.
    `elements`: what the requests brought in inputs whose free dimensions are padded.
    `staged`: taken while the device was still busy. `fault`: why the rows could not be gathered; there is nothing to run
    then, only tickets to end. A batch of a decoupled version holds one request.
    Ownership: the engine thread that took it, until `finish`; `tickets` is the data plane's and opaque to the engine.
    """

    rules: QueueRules
    inputs: dict[str, Array]
    spans: NDArray[np.int64]
    arrival_ns: NDArray[np.int64]
    deadline_ns: NDArray[np.int64]
    id_hashes: NDArray[np.uint64]
    released: str
    tickets: Sequence[Any]
    execution: Execution
    fault: BackendFailed | None = None
    token: int = 0
    staged: bool = False
    elements: int = 0

    @property
    def padding_elements(self) -> int:
        """Of the same inputs, the elements that are executed only as padding: of dimensions, and of rows."""
        specs = self.rules.signature.padded_inputs
        return sum(self.inputs[spec.name].size for spec in specs if spec.name in self.inputs) - self.elements

    @property
    def rows(self) -> int:
        """N, without padding."""
        return int(self.spans[-1])

    @property
    def padded_rows(self) -> int:
        """P: the rows that are executed."""
        if not self.rules.signature.max_batch or not self.inputs:
            return self.rows
        return len(next(iter(self.inputs.values())))


@dataclass(frozen=True, slots=True)
class Part:
    """The result of requests `first:last` of a batch: outputs whose row 0 is the first row of request `first`, or an error.

    Outputs may have more rows than the requests own (padding); the surplus is ignored.
    """

    first: int
    last: int
    outputs: Mapping[str, Array] | None
    error: PodiumError | None = None


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """One queue at an instant. Open requests are the waiting ones and those in a running batch."""

    waiting_requests: int
    waiting_rows: int
    open_requests: int

    def __add__(self, other: "QueueSnapshot") -> "QueueSnapshot":
        """Two queues of one version."""
        return QueueSnapshot(
            self.waiting_requests + other.waiting_requests,
            self.waiting_rows + other.waiting_rows,
            self.open_requests + other.open_requests,
        )


class DataPlane(Protocol):
    """The engine's side of a data plane. Thread-safe."""

    kind: str

    def open(self, rules: QueueRules) -> None:
        """Begin to admit requests for a version. A request enters one of the open queues of its entrance.

        Raises: ValueError if there is a queue of this id.
        """
        ...

    def take(self, device: str) -> Batch | None:
        """Block until a batch for `device` can run (or be staged behind one that does), and take it; None after `stop`."""
        ...

    def enter_device(self, batch: Batch) -> None:
        """Block until a staged batch may run; returns at once for any other."""
        ...

    def leave_device(self, batch: Batch) -> None:
        """The batch has run: the device is free for the next one while this one's answers are dealt out. Idempotent, and
        implied by `finish`."""
        ...

    def respond(self, batch: Batch, outputs: Mapping[str, Array]) -> bool:
        """One more answer to the one request of a taken batch of a decoupled version; `finish` ends it.

        Where much waits for its caller already, it takes its time: the device is slowed down, not held.
        Returns: False when its caller has gone, and nobody waits for more.
        Raises: BackendFailed when its caller reads so slowly that there is no room for more.
        """
        ...

    def finish(self, batch: Batch, parts: Sequence[Part], *, ran_rows: int, ran_ns: int) -> NDArray[np.bool_]:
        """End every ticket of a taken batch, and learn from its cost.

        Returns: bool `[B]`, True where the caller was still there to be answered.
        Raises: ValueError unless `parts` cover the batch's requests exactly, in order.
        """
        ...

    def close(self, queue_id: int, *, move: bool = False) -> None:
        """Admit nothing more to a queue; what is open still runs. Its siblings go on admitting, and with `move` they are given
        what waits in it, each request if one of them takes it. Idempotent.
        """
        ...

    def fail(self, queue_id: int, reason: str) -> None:
        """Close a queue whose device is lost, and end what has yet to reach it: with NotReady what waits, with DeviceLost what
        is staged, which is counted with its batch. What executes ends with that. Idempotent."""
        ...

    def wait_idle(self, queue_id: int, timeout_s: float) -> bool:
        """Wait until a closed queue has no open ticket, then forget it; False if the time ran out first."""
        ...

    def snapshot(self, queue_id: int) -> QueueSnapshot | None:
        """A queue right now, or None if there is no such queue."""
        ...

    def stop(self) -> None:
        """End every waiting ticket with ShuttingDown and let every `take` return None. Idempotent."""
        ...
