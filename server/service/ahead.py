"""A batch that was given to its device before its turn.

Floor 5, on the engine's thread: what is staged behind a running batch is on its way to the device already, so that the device
goes from one to the next without asking anybody.
"""

from collections.abc import Callable, Mapping

from server.backends.base import Pending
from server.core.tensors import Array


class Ahead:
    """Begun when made, whatever comes of it; called once, for its outputs, when it is its turn."""

    def __init__(
        self, begin: Callable[[Mapping[str, Array]], Pending], inputs: Mapping[str, Array], computed: Callable[[], None]
    ) -> None:
        """`computed` is called once the device is free for what follows."""
        self._pending: Pending | None = None
        self._error: Exception | None = None
        self._computed = computed
        try:
            self._pending = begin(inputs)
        except Exception as error:  # noqa: BLE001 - raised when it is its turn, where all that fails is dealt with
            # its traceback leads to this frame, which has it: a circle that would hold the batch until a collection
            self._error = error.with_traceback(None)

    def __call__(self) -> Mapping[str, Array]:
        """The outputs. Raises: as `Backend.run`."""
        pending, self._pending = self._pending, None
        if pending is None:
            raise self._error or RuntimeError("its outputs were given away")
        pending.wait()
        self._computed()
        return pending.outputs()
