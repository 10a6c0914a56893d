"""Where keys are in a Redis cluster: its slots, asked for aside and whenever something was not where it should be.

Only the topology is asked here, by one command of the server; no call ever waits for it but the first. A slot on the move is
unanswered until it has arrived, instead of a second round trip within a budget that allows for one.
"""

import threading
import time
from collections.abc import Sequence

import hiredis
from redis.crc import key_slot

from feature_client.errors import StoreError, StoreTimeout
from feature_client.forking import start_anew_in_children
from feature_client.redis_address import Address
from feature_client.redis_channel import Reply, packed
from feature_client.redis_places import Node, Share
from feature_client.redis_replies import refused

SLOTS = 16384
_PAUSE_S = 0.2
"""Between two times that the topology is asked for."""
_ASK_S = 1.0


class Cluster:
    """The nodes of a cluster and their slots: `Places` of its keys. In a forked child it starts anew."""

    def __init__(self, address: Address, *, connections: int, connect_timeout_s: float) -> None:
        self.name = address.name
        self._address = address
        self._connections = connections
        self._connect_timeout_s = connect_timeout_s
        self._nodes: dict[tuple[str, int], Node] = {}
        self._by_slot: list[Node | None] = []
        self._closed = False
        self.start_anew()
        start_anew_in_children(self)

    def start_anew(self) -> None:
        """Ask again where keys are; what was known is good until the answer has come."""
        self._changed = threading.Condition()
        self._asking = False
        self._doubted = True
        self._not_before_s = 0.0
        self._failure = ""

    def shares(self, keys: Sequence[bytes], deadline_s: float) -> list[Share]:
        """As `Places.shares`."""
        by_slot = self._known(deadline_s)
        runs: dict[int, list[int]] = {}
        for index, key in enumerate(keys):
            runs.setdefault(key_slot(key), []).append(index)
        shares: dict[int, tuple[Node, list[list[int]]]] = {}
        for slot, run in runs.items():
            node = by_slot[slot]
            if node is not None:
                shares.setdefault(id(node), (node, []))[1].append(run)
        if len(keys) > sum(len(run) for _, node_runs in shares.values() for run in node_runs):
            self.doubt()
        return [Share(node, node_runs) for node, node_runs in shares.values()]

    def nodes(self, deadline_s: float) -> list[Node]:
        """As `Places.nodes`."""
        return list({id(node): node for node in self._known(deadline_s) if node is not None}.values())

    def doubt(self) -> None:
        """As `Places.doubt`."""
        with self._changed:
            self._doubted = True
            self._ask_aside()

    def close(self) -> None:
        """As `Places.close`."""
        with self._changed:
            self._closed = True
            for node in self._nodes.values():
                node.close()
            self._changed.notify_all()

    def _known(self, deadline_s: float) -> list[Node | None]:
        """The slots as known last; waits only while nothing at all is known."""
        if self._by_slot and not self._doubted:
            return self._by_slot
        with self._changed:
            while True:
                if self._closed:
                    raise StoreError(f"the store at {self.name} has been closed")
                self._ask_aside()
                if self._by_slot:
                    return self._by_slot
                if not self._asking:
                    raise StoreError(self._failure)
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    raise StoreTimeout(f"{self.name} did not answer in time")
                self._changed.wait(left_s)

    def _ask_aside(self) -> None:
        if not self._doubted or self._asking or self._closed or time.monotonic() < self._not_before_s:
            return
        thread = threading.Thread(target=self._ask, args=(self._changed,), name="store-slots", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            raise StoreError(f"{self.name} cannot be asked: this process starts no threads any more") from None
        self._asking = True
        self._doubted = False

    def _ask(self, changed: threading.Condition) -> None:
        found, failure = None, ""
        try:
            found = self._asked()
        except StoreError as error:
            failure = str(error)
        except Exception as error:  # noqa: BLE001  # whatever it is, those who wait must hear of it
            failure = f"{self.name} cannot be asked for its slots: {type(error).__name__}"
        with changed:
            self._asking = False
            self._not_before_s = time.monotonic() + _PAUSE_S
            if found is None:
                self._doubted, self._failure = True, failure
            elif not self._closed:
                self._take_over(found)
            changed.notify_all()

    def _asked(self) -> list[tuple[int, int, str, int]]:
        """Ranges of slots and their primaries, from the first node that tells: those known, and the URL's."""
        failure: StoreError = StoreError(f"{self.name} cannot be reached")
        for address in (*(node.address for node in tuple(self._nodes.values())), self._address):
            try:
                channel = address.connect(self._connect_timeout_s)
            except StoreError as error:
                failure = error
                continue
            try:
                channel.begin(packed(("CLUSTER", "SLOTS")), 1)
                replies = channel.finish(time.monotonic() + _ASK_S)
            except StoreError as error:
                failure = error
                continue
            finally:
                channel.close()
            if replies is None:
                failure = StoreTimeout(f"{address.name} did not tell its slots in time")
            elif isinstance(replies[0], hiredis.ReplyError):
                failure = refused(address.name, str(replies[0]), cluster=True)
            elif found := ranges(replies[0], address.host):
                return found
            else:
                failure = StoreError(f"{address.name} knows of no slots: its cluster is not formed")
        raise failure

    def _take_over(self, found: list[tuple[int, int, str, int]]) -> None:
        nodes: dict[tuple[str, int], Node] = {}
        by_slot: list[Node | None] = [None] * SLOTS
        for first, last, host, port in found:
            node = nodes.get((host, port)) or self._nodes.get((host, port))
            if node is None:
                node = Node(
                    self._address.at(host, port), connections=self._connections, connect_timeout_s=self._connect_timeout_s
                )
            nodes[host, port] = node
            by_slot[first : last + 1] = [node] * (last + 1 - first)
        gone = [node for at, node in self._nodes.items() if at not in nodes]
        self._nodes, self._by_slot = nodes, by_slot
        for node in gone:
            node.close()


def ranges(reply: Reply, asked_host: str) -> list[tuple[int, int, str, int]]:
    """First slot, last slot, host and port of the primary, from the reply to CLUSTER SLOTS.

    `asked_host` stands in where a node does not say under which name it is reached. Slots whose node nobody knows are left out.
    Raises: ValueError, TypeError, IndexError where the reply is none.
    """
    found = []
    for entry in reply:
        first, last, primary = int(entry[0]), int(entry[1]), entry[2]
        host = (primary[0] or b"").decode() or asked_host
        if host != "?" and 0 <= first <= last < SLOTS:
            found.append((first, last, host, int(primary[1])))
    return found
