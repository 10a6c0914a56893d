"""One version in memory on its devices, and what the data plane is told of it. **Pure.**

Floor 4: a value that the engine, the door and the lifecycle hand each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from server.backends.base import Backend
from server.core.clock import NS_PER_US
from server.core.settings import ModelSettings
from server.core.signature import Signature
from server.core.tensors import plain_arrays
from server.core.validation import Constraints
from server.core.versions import VersionKey
from server.dataplane.interface import QueueRules
from server.features.interface import Features
from server.lifecycle.cache import AnswerCache
from server.lifecycle.found import Lease
from server.lifecycle.ledger import Reservation
from server.lifecycle.policy import Serve


@dataclass(frozen=True, slots=True)
class OnDevice:
    """A version on one more device: its backend there, what each bucket costs it, and what it holds of the device's memory."""

    backend: Backend
    costs_ns: tuple[int, ...]
    reservation: Reservation | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """A version in memory, proven but not yet known to anybody. `further`: the devices beside the first. `baseline`: what
    `ReadBaseline` read, nothing to the lifecycle."""

    backend: Backend
    buckets: tuple[int, ...]
    costs_ns: tuple[int, ...]
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    lease: Lease | None = None
    features: Features | None = None
    reservation: Reservation | None = None
    constraints: Constraints | None = None
    further: tuple[OnDevice, ...] = ()
    baseline: Any = None

    @property
    def backends(self) -> tuple[Backend, ...]:
        """On every device."""
        return (self.backend, *(each.backend for each in self.further))


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
    `constraints`: what requests must bring beside types and shapes; None: nothing. `baseline`: what the version is monitored by
    (`server.monitoring.baseline.Baseline`); None where it brought none, or is not monitored.

    A version on several devices is a replica on each of them. They have all in common but `queue_id`, `backend`, `costs_ns`,
    `device`, `reservation` and `memory_bytes`, and `sibling_of` is the queue of the first. One of them is published, and knows
    the others that serve as its `siblings`, and the devices that have been `lost`.
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
    constraints: Constraints | None = None
    baseline: Any = None
    memory_bytes: int = 0
    sibling_of: int = 0
    siblings: tuple["Replica", ...] = ()
    lost: tuple[str, ...] = ()

    @property
    def everywhere(self) -> tuple["Replica", ...]:
        """Itself and its siblings: one replica for each device that serves."""
        return (self, *self.siblings)

    @property
    def entrance(self) -> int:
        """The number by which requests enter the data plane; see `QueueRules.entrance`."""
        return self.sibling_of or self.queue_id

    def without(self, gone: "Replica") -> "Replica | None":
        """What is published once the device of `gone`, one of `everywhere`, has been lost; None where none is left."""
        left = [each for each in self.everywhere if each.queue_id != gone.queue_id]
        return replace(left[0], siblings=tuple(left[1:]), lost=(*self.lost, gone.device)) if left else None

    @property
    def notes(self) -> tuple[str, ...]:
        """How the backends execute it, where that is not a matter of course."""
        return tuple(dict.fromkeys(note for each in self.everywhere for note in getattr(each.backend, "notes", tuple)()))


def replica_of(queue_ids: Sequence[int], serve: Serve, loaded: Loaded, recorder: Any) -> Replica:
    """The replica that a load has brought into memory, with its siblings. `queue_ids`: one for each of its backends."""
    first = Replica(
        queue_id=queue_ids[0],
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
        constraints=loaded.constraints,
        baseline=loaded.baseline,
        memory_bytes=loaded.backend.memory_bytes(),
    )
    siblings = (
        replace(
            first,
            queue_id=queue_id,
            backend=each.backend,
            costs_ns=each.costs_ns,
            device=each.backend.device,
            reservation=each.reservation,
            memory_bytes=each.backend.memory_bytes(),
            sibling_of=first.queue_id,
        )
        for queue_id, each in zip(queue_ids[1:], loaded.further, strict=True)
    )
    return replace(first, siblings=tuple(siblings))


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
        sibling_of=replica.sibling_of,
    )
