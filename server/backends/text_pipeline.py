"""The microbatches of one batch on their way through a device that works by itself. Floor 2, beside its one user.

A device takes a number of batches before it makes its caller wait. Whoever holds one of them must never wait for another, or
two callers wait for each other for ever; so only the first microbatch waits, the others go where there is room, and what found
none goes when an earlier one of the same batch has come back.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from server.backends.base import Pending
from server.core.tensors import Array

Begin = Callable[[], Pending]
Take = Callable[[Mapping[str, Array]], None]


class Batches:
    """A `Pending` over several. `room` has as many permits as the device takes batches; one is held for each that is open."""

    def __init__(
        self, steps: Sequence[tuple[Begin, Take]], outputs: dict[str, Array], room: threading.BoundedSemaphore
    ) -> None:
        """Hands over what there is room for. Each `Take` puts the answers of its `Begin` into `outputs`. Raises: as `begin`."""
        self._waiting = deque(steps)
        self._open: deque[tuple[Pending, Take]] = deque()
        self._outputs = outputs
        self._room = room
        self._hand_over()

    def wait(self) -> None:
        """See `Pending.wait`: until the last one has been executed. Raises: as `Backend.run`."""
        # all but the last come back here: what follows is handed over while that one executes
        while self._waiting or len(self._open) > 1:
            self._collect()
            self._hand_over()
        try:
            for pending, _ in self._open:
                pending.wait()
        except BaseException:
            self._drop()
            raise

    def outputs(self) -> dict[str, Array]:
        """See `Pending.outputs`. Raises: as `Backend.run`."""
        while self._open:
            self._collect()
        return self._outputs

    def _hand_over(self) -> None:
        """Begin what there is room for: at least one, if none is open."""
        while self._waiting and self._room.acquire(blocking=not self._open):
            begin, take = self._waiting.popleft()
            try:
                self._open.append((begin(), take))
            except BaseException:
                self._room.release()
                self._drop()
                raise

    def _collect(self) -> None:
        try:
            pending, take = self._open[0]
            pending.wait()
            take(pending.outputs())
        except BaseException:
            self._drop()
            raise
        del pending
        self._open.popleft()
        self._room.release()

    def _drop(self) -> None:
        """What is open is nobody's any more. The device has let go of each before its permit returns."""
        while self._open:
            self._open.popleft()
            self._room.release()

    def __del__(self) -> None:
        self._drop()
