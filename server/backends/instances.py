"""Several instances of one version behind the face of one backend.

Floor 2. A backend is used by one thread at a time; this one by as many as it has instances, each of which gets one of its own.
"""

import threading
import weakref
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from queue import LifoQueue
from typing import Any, cast

import numpy as np

from server.backends.base import Backend, DecoupledBackend, Pending, PipelinedBackend
from server.core.tensors import Array


class Instances:
    """A `Backend` (and a `DecoupledBackend` where its members are). Thread-safe.

    The instance used last is used next: with little to do the others' memory and caches stay out of the way.
    """

    def __init__(self, members: Sequence[Backend]) -> None:
        self.signature = members[0].signature
        self.platform = members[0].platform
        self.device = members[0].device
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
    """The same as a `PipelinedBackend`, of members that are. A batch goes to the member with the fewest on their way."""

    def __init__(self, members: Sequence[Backend]) -> None:
        super().__init__(members)
        self._pipelines = [cast(PipelinedBackend, member) for member in members]
        self._lock = threading.Lock()
        self._under_way = [0] * len(members)

    def arrays(self, shapes: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> dict[str, Array]:
        """See `PipelinedBackend.arrays`: all members are on one device, and what is fast for one is for all."""
        return self._pipelines[0].arrays(shapes)

    def begin(self, inputs: Mapping[str, Array]) -> Pending:
        """See `PipelinedBackend.begin`."""
        with self._lock:
            index = min(range(len(self._under_way)), key=lambda each: self._under_way[each])
            self._under_way[index] += 1
        try:
            return _OnItsWay(self._pipelines[index].begin(inputs), self, index)
        except BaseException:
            self.arrived(index)
            raise

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Backend.run`."""
        pending = self.begin(inputs)
        pending.wait()
        return pending.outputs()

    def arrived(self, index: int) -> None:
        """A batch of this member is not on its way any more."""
        with self._lock:
            self._under_way[index] -= 1


class _OnItsWay:
    """A member's `Pending`. It counts until it has its outputs, or nobody wants it any more."""

    def __init__(self, pending: Pending, owner: PipelinedInstances, index: int) -> None:
        self._pending = pending
        self._arrived = weakref.finalize(self, owner.arrived, index)
        self._arrived.atexit = False

    def wait(self) -> None:
        """See `Pending.wait`."""
        try:
            self._pending.wait()
        except BaseException:
            # now: who is told keeps this alive by the traceback
            self._arrived()
            raise

    def outputs(self) -> dict[str, Array]:
        """See `Pending.outputs`."""
        try:
            return self._pending.outputs()
        finally:
            self._arrived()


def together(members: Sequence[Backend]) -> Backend:
    """The instances of a version on one device as one backend; pipelined where they are."""
    if len(members) == 1:
        return members[0]
    return PipelinedInstances(members) if all(hasattr(member, "begin") for member in members) else Instances(members)
