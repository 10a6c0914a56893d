"""What a device that works by itself offers to the pipeline that feeds it. Pure: names, no behaviour. Floor 2.

Work is put on streams, which execute in order, each by itself; an event on one orders another behind it. `torch_cuda` is the
real one. Tensors are torch's, and opaque here.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

Result = TypeVar("Result")


class Event(Protocol):
    """A moment on a stream."""

    def wait(self) -> None:
        """Block this thread until the device has come so far, without keeping the interpreter. Raises: what failed on it."""
        ...


class Stream(Protocol):
    """A line of work that is executed in order."""

    def enqueue(self, work: Callable[[], object]) -> None:
        """Put work at its end: copies, and replays of graphs, of which the host needs to know nothing yet."""
        ...

    def call(self, work: Callable[[], Result]) -> Result:
        """Put work at its end whose result (the shapes of its tensors, say) the host needs now."""
        ...

    def event(self) -> Event:
        """The moment at which everything that was put here so far has been executed."""
        ...

    def after(self, event: Event) -> None:
        """What is put here from now on waits for an event of another stream."""
        ...


class Graph(Protocol):
    """Captured work: replayed on the same memory, with one launch."""

    results: list[Any]
    """Its tensors, which every replay overwrites."""

    def replay(self) -> None:
        """Execute it, on the stream whose work calls this."""
        ...


class Device(Protocol):
    """One device. Thread-safe, except where said."""

    name: str

    def stream(self) -> Stream:
        """A stream of its own."""
        ...

    def host_bytes(self, nbytes: int) -> Any:
        """A uint8 tensor in host memory that the device copies from and to by itself."""
        ...

    def bytes(self, nbytes: int) -> Any:
        """A uint8 tensor in the device's memory. Raises: what the device raises when it is full."""
        ...

    def capture(self, work: Callable[[], list[Any]], pool: object) -> Graph:
        """Capture work as a graph whose memory is shared with the others of the same pool, of which one runs at a time.

        Raises: whatever says that the work cannot be captured.
        """
        ...

    def pool(self) -> object:
        """A new pool for graphs."""
        ...

    def trim(self) -> None:
        """Give memory back that nobody uses."""
        ...
