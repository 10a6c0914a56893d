"""Several instances of one version behind the face of one backend.

Floor 2. A backend is used by one thread at a time; this one by as many as it has instances, each of which gets one of its own.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from queue import LifoQueue
from threading import Lock
from typing import cast

from server.backends.base import Backend, DecoupledBackend, Pending, PipelinedBackend
from server.core.tensors import Array, Shapes


class Instances:
    """A `Backend` (and a `DecoupledBackend` where its members are). Thread-safe.

    The instance used last is used next: with little to do the others' memory and caches stay out of the way.
    """

    def __init__(self, members: Sequence[Backend]) -> None:
        self.signature = members[0].signature
        self.platform = members[0].platform
        self.device = members[0].device
        self.pads_rows = getattr(members[0], "pads_rows", False)
        self._members = tuple(members)
        self._idle: LifoQueue[Backend] = LifoQueue()
        for member in reversed(members):
            self._idle.put(member)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Backend.run`."""
        with self._one() as member:
            return member.run(inputs)

    def stream(self, inputs: Mapping[str, Array]) -> Generator[dict[str, Array], None, None]:
        """See `DecoupledBackend.stream`."""
        with self._one() as member:
            yield from cast(DecoupledBackend, member).stream(inputs)

    def notes(self) -> tuple[str, ...]:
        """See `PreparedBackend.notes`: those of any instance."""
        told = [note for member in self._members for note in getattr(member, "notes", tuple)()]
        return tuple(dict.fromkeys(told))

    def take_elements(self) -> tuple[int, int] | None:
        """What instances count themselves, for the calling thread and since it last asked; None where they do not."""
        counted = [member.take_elements() for member in self._members if hasattr(member, "take_elements")]
        return (sum(own for own, _ in counted), sum(padding for _, padding in counted)) if counted else None

    def memory_bytes(self) -> int:
        """Of all instances."""
        return sum(member.memory_bytes() for member in self._members)

    def close(self) -> None:
        """Close every instance, whatever becomes of the others. Raises: the first error of one."""
        errors = []
        for member in self._members:
            try:
                member.close()
            except Exception as error:  # noqa: BLE001 - raised below
                errors.append(error)
        if errors:
            raise errors[0]

    @contextmanager
    def _one(self) -> Generator[Backend, None, None]:
        member = self._idle.get()
        try:
            yield member
        finally:
            self._idle.put(member)


class PipelinedInstances(Instances):
    """A `PipelinedBackend`: each batch goes to the instance that has the fewest on their way."""

    def __init__(self, members: Sequence[PipelinedBackend]) -> None:
        super().__init__(members)
        self._pipelined = tuple(members)
        self._open = [0] * len(members)
        self._lock = Lock()

    def arrays(self, shapes: Shapes) -> dict[str, Array]:
        """See `PipelinedBackend.arrays`: instances of one device read the same memory."""
        return self._pipelined[0].arrays(shapes)

    def begin(self, inputs: Mapping[str, Array]) -> "PendingOfOne":
        """See `PipelinedBackend.begin`."""
        with self._lock:
            place = self._open.index(min(self._open))
            self._open[place] += 1
        try:
            return PendingOfOne(self._pipelined[place].begin(inputs), self, place)
        except BaseException:
            self.ended(place)
            raise

    def ended(self, place: int) -> None:
        """A batch of an instance is no longer on its way."""
        with self._lock:
            self._open[place] -= 1


class PendingOfOne:
    """A `Pending` that its instance no longer counts when it ends, or is dropped."""

    def __init__(self, pending: Pending, owner: PipelinedInstances, place: int) -> None:
        self._pending = pending
        self._owner: PipelinedInstances | None = owner
        self._place = place

    def wait(self) -> None:
        """See `Pending.wait`."""
        self._pending.wait()

    def outputs(self) -> dict[str, Array]:
        """See `Pending.outputs`."""
        try:
            return self._pending.outputs()
        finally:
            self._end()

    def _end(self) -> None:
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.ended(self._place)

    def __del__(self) -> None:
        self._end()


def instances_of(members: Sequence[Backend]) -> Instances:
    """Several instances as one backend, which can do what they can."""
    if all(callable(getattr(member, "begin", None)) for member in members):
        return PipelinedInstances(cast(Sequence[PipelinedBackend], members))
    return Instances(members)
