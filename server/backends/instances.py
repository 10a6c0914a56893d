"""Several instances of one version behind the face of one backend.

Floor 2. A backend is used by one thread at a time; this one by as many as it has instances, each of which gets one of its own.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from queue import LifoQueue
from typing import cast

from server.backends.base import Backend, DecoupledBackend
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
