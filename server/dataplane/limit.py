"""The bound on everything that is admitted and not yet answered, over all models. **Pure.**

A queue limit per model cannot keep a server from running out of memory: many models, or few requests with large tensors,
add up.
"""

from server.core.errors import Overloaded


class InflightLimit:
    """Counts open requests and the bytes of their inputs. Ownership: the data plane, under its lock."""

    __slots__ = ("bytes", "max_bytes", "max_requests", "requests")

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self.max_requests = max_requests
        self.max_bytes = max_bytes
        self.requests = 0
        self.bytes = 0

    def enter(self, nbytes: int) -> None:
        """Take a place. A single request larger than the whole bound may pass when nothing else is open.

        Raises: Overloaded, and nothing is counted.
        """
        if self.requests >= self.max_requests:
            raise Overloaded(f"Exceeds maximum queue size: {self.requests} requests are in flight in this server")
        if self.requests and self.bytes + nbytes > self.max_bytes:
            raise Overloaded(f"Exceeds maximum queue size: {self.bytes} bytes of inputs are in flight in this server")
        self.requests += 1
        self.bytes += nbytes

    def leave(self, nbytes: int) -> None:
        """Give the place of one ended request back."""
        self.requests -= 1
        self.bytes -= nbytes
