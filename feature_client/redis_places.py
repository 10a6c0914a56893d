"""Where keys are: on one server, or on the nodes of a cluster by their slots. What reads and writes asks no further."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from feature_client.redis_address import Address
from feature_client.redis_link import Link

_WRITING_CONNECT_S = 1.0


class Node:
    """A server: connections for calls in a hurry, and one for writing, which takes what time it takes."""

    def __init__(self, address: Address, *, connections: int, connect_timeout_s: float) -> None:
        self.address = address
        self.name = address.name
        self.reading = Link(address, connections=connections, connect_timeout_s=connect_timeout_s)
        self.writing = Link(address, connections=1, connect_timeout_s=max(connect_timeout_s, _WRITING_CONNECT_S))

    def close(self) -> None:
        """Close its connections. Idempotent."""
        self.reading.close()
        self.writing.close()


@dataclass(frozen=True)
class Share:
    """The keys of one call that one node has. `runs`: their positions in the call, by what one command may hold together."""

    node: Node
    runs: Sequence[Sequence[int]]


class Places(Protocol):
    """Which node has which keys. Thread-safe."""

    def shares(self, keys: Sequence[bytes], deadline_s: float) -> list[Share]:
        """The call's keys by node; keys that are nowhere are in none. Raises: StoreError when nobody can say."""
        ...

    def nodes(self, deadline_s: float) -> list[Node]:
        """All nodes that have keys. Raises: StoreError."""
        ...

    def doubt(self) -> None:
        """Something was not where it should be: ask again, aside, for later calls."""
        ...

    def close(self) -> None:
        """Close all nodes. Idempotent."""
        ...


class SinglePlace:
    """Everything is on one server."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def shares(self, keys: Sequence[bytes], deadline_s: float) -> list[Share]:
        """As `Places.shares`."""
        return [Share(self._node, (range(len(keys)),))]

    def nodes(self, deadline_s: float) -> list[Node]:
        """As `Places.nodes`."""
        return [self._node]

    def doubt(self) -> None:
        """As `Places.doubt`: there is nothing to doubt."""

    def close(self) -> None:
        """As `Places.close`."""
        self._node.close()
