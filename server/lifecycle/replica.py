"""One version in memory on one device, and what the data plane is told of it. **Pure.**

Floor 4: a value that the engine, the door and the lifecycle hand each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.backends.base import Backend
from server.core.clock import NS_PER_US
from server.core.settings import ModelSettings
from server.core.signature import Signature
from server.core.versions import VersionKey
from server.dataplane.interface import QueueRules, plain_arrays
from server.features.interface import Features
from server.lifecycle.cache import AnswerCache
from server.lifecycle.found import Lease
from server.lifecycle.ledger import Reservation
from server.lifecycle.policy import Serve


@dataclass(frozen=True, slots=True)
class Loaded:
    """A version in memory, proven but not yet known to anybody."""

    backend: Backend
    buckets: tuple[int, ...]
    costs_ns: tuple[int, ...]
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    lease: Lease | None = None
    features: Features | None = None
    reservation: Reservation | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Replica:
    """One version in memory on one device. Compared by identity: a reload of the same version is another replica.

    Units: `buckets` in rows, ascending; `costs_ns` per bucket, 0 where it was not measured; of each size class in turn.
    `labels` by output, then by index.
    Ownership: `backend` is the engine thread's until the queue `queue_id` is idle, then the lifecycle closes it.
    `recorder` is the telemetry's recorder of this version, the same before and after a reload. `cache` (None: the model has
    none) is the door's, and goes with the replica: what another load would answer is not known from it. `lease` on the
    version's folder is released once the backend is closed. With `features`, `signature` is theirs: what callers bring.
    `reservation`: what it holds of its device's memory, released as the backend is closed; None where the device does not tell.
    """

    queue_id: int
    key: VersionKey
    backend: Backend
    signature: Signature
    settings: ModelSettings
    buckets: tuple[int, ...]
    costs_ns: tuple[int, ...]
    device: str
    recorder: Any
    stamp: str
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    cache: AnswerCache | None = None
    lease: Lease | None = None
    features: Features | None = None
    reservation: Reservation | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """How the backend executes it, where that is not a matter of course."""
        told: tuple[str, ...] = getattr(self.backend, "notes", tuple)()
        return told


def replica_of(queue_id: int, serve: Serve, loaded: Loaded, recorder: Any) -> Replica:
    """The replica that a load has brought into memory."""
    return Replica(
        queue_id=queue_id,
        key=serve.found.key,
        backend=loaded.backend,
        signature=loaded.backend.signature if loaded.features is None else loaded.features.signature,
        settings=serve.settings,
        buckets=loaded.buckets,
        costs_ns=loaded.costs_ns,
        device=loaded.backend.device,
        recorder=recorder,
        stamp=serve.found.stamp,
        labels=loaded.labels,
        cache=AnswerCache(serve.settings.cache.max_bytes) if serve.settings.cache.max_bytes else None,
        lease=loaded.lease,
        features=loaded.features,
        reservation=loaded.reservation,
    )


def queue_rules(replica: Replica) -> QueueRules:
    """What the data plane must know of a replica. The replica itself is the handle that comes back with every batch."""
    settings = replica.settings
    return QueueRules(
        queue_id=replica.queue_id,
        key=replica.key,
        signature=replica.signature,
        device=replica.device,
        buckets=replica.buckets,
        costs_ns=replica.costs_ns,
        # an answer says nothing of which rows it holds, so padding could not be told from them; and a backend that
        # fills up parts of a batch itself has no use for rows that fill up the batch
        padding=settings.batching.padding and not settings.decoupled and not getattr(replica.backend, "pads_rows", False),
        max_requests=settings.queue.max_requests,
        # how long a stream of answers takes says nothing about the next one
        early_drop=settings.queue.early_drop and not settings.decoupled,
        queue_delay_ns=settings.batching.max_queue_delay_us * NS_PER_US,
        handle=replica,
        decoupled=settings.decoupled,
        instances=settings.instances,
        share=settings.queue.share,
        allocate=getattr(replica.backend, "arrays", plain_arrays),
    )
