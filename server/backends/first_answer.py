"""A decoupled version tried out as if it gave one answer: the first. **Pure** over a backend. Floor 2.

Warm-up and golden examples ask for one answer; how long a stream of them would go on, and whether it ever ends, nobody knows.
"""

from collections.abc import Mapping
from contextlib import closing

from server.backends.base import DecoupledBackend
from server.core.errors import BackendFailed
from server.core.tensors import Array


class FirstAnswer:
    """A `Backend` over a decoupled one. Ownership: the backend stays its caller's, who closes it."""

    def __init__(self, backend: DecoupledBackend) -> None:
        self._backend = backend
        self.signature = backend.signature
        self.platform = backend.platform
        self.device = backend.device

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The first answer. Raises: BackendFailed also where there is none, which content of another kind may change."""
        with closing(self._backend.stream(inputs)) as answers:
            for outputs in answers:
                return outputs
        raise BackendFailed("the model gave no answer")

    def memory_bytes(self) -> int:
        """See `Backend`."""
        return self._backend.memory_bytes()

    def close(self) -> None:
        """See `Backend`."""
        self._backend.close()
