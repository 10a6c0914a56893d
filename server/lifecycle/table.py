"""The one place where versions change state: what is, what is in memory, the published table and the gauge of what is READY,
always in step.

Floor 4: every change happens under one lock and ends with one new `Published`; nothing here takes time or decides. Any
thread may read; the manager's thread makes all changes but one: a backend's death is noted by whoever meets it.
"""

import threading
from collections.abc import Callable, Mapping, Set
from dataclasses import replace

from server.core.errors import DeviceLost
from server.core.versions import State, VersionKey, advance
from server.lifecycle.metrics import Metrics
from server.lifecycle.policy import Actual, Failure, Identity
from server.lifecycle.published import EMPTY, Published, publish
from server.lifecycle.replica import Replica

_UNKNOWN = Actual(State.UNKNOWN)


class Table:
    """State per version. Thread-safe."""

    def __init__(self, metrics: Metrics, on_publish: Callable[[Published], None] = lambda published: None) -> None:
        """`on_publish` is told of every new table before anybody else can read it, under the lock."""
        self._metrics = metrics
        self._on_publish = on_publish
        self._lock = threading.Lock()
        self._actual: dict[VersionKey, Actual] = {}
        self._replicas: dict[VersionKey, Replica] = {}
        self._aliases: Mapping[str, Mapping[str, int]] = {}
        self._starting = False
        self.published: Published = EMPTY
        self.lost: Mapping[str, str] = {}
        """Devices that nothing can be executed on any more, and why. Replaced as a whole, so any thread may read it."""

    def actual(self) -> dict[VersionKey, Actual]:
        """Every known version as it is now: a copy."""
        with self._lock:
            return dict(self._actual)

    def start(self, starting: bool) -> None:
        """Whether versions are still being brought into service for the first time: until then, who asks for one that is not
        there is told to wait."""
        with self._lock:
            self._starting = starting
            self._publish()

    def know(self, aliases: Mapping[str, Mapping[str, int]], on_disk: Set[VersionKey]) -> None:
        """Take over the models' aliases, and forget versions that are neither in memory nor on disk."""
        with self._lock:
            self._aliases = {model: dict(names) for model, names in aliases.items()}
            for key in [key for key, state in self._actual.items() if state.state is State.UNAVAILABLE]:
                if key not in on_disk:
                    del self._actual[key]
            self._publish()

    def forgive(self, model: str) -> None:
        """Forget the model's failures: an operator wants another attempt, or none."""
        with self._lock:
            for key, state in self._actual.items():
                if key.model == model and state.failure is not None:
                    self._actual[key] = replace(state, failure=None)

    def loading(self, key: VersionKey) -> None:
        """A load begins. A READY version stays READY while its new form is loaded."""
        with self._lock:
            state = self._actual.get(key, _UNKNOWN)
            if state.state is not State.READY:
                self._actual[key] = replace(state, state=advance(state.state, State.LOADING), reason="")
                self._publish()

    def load_failed(self, key: VersionKey, failure: Failure) -> None:
        """The load failed: what serves (a version being reloaded) goes on serving."""
        with self._lock:
            state = self._actual[key]
            if state.state is State.LOADING:
                state = replace(state, state=advance(state.state, State.UNAVAILABLE), reason=failure.reason)
            self._actual[key] = replace(state, failure=failure)
            self._publish()

    def ready(self, replica: Replica, identity: Identity) -> Replica | None:
        """Publish a replica whose queue is open and whose metrics were added. Returns the one it replaces, which nobody
        finds any more. Raises: DeviceLost where a device of its own was lost meanwhile; then nothing has changed.
        """
        with self._lock:
            for each in replica.everywhere:
                if each.device in self.lost:
                    raise DeviceLost(self.lost[each.device])
            state = self._actual[replica.key].state
            if state is State.UNAVAILABLE:
                state = advance(state, State.LOADING)  # the old replica died while this one was loaded
            if state is not State.READY:
                advance(state, State.READY)
            old = self._replicas.get(replica.key)
            self._replicas[replica.key] = replica
            self._actual[replica.key] = Actual(State.READY, identity, reason="; ".join(replica.notes))
            self._metrics.mark_ready(replica.key, True)
            self._publish()
            return old

    def leave(self, key: VersionKey) -> Replica | None:
        """READY to UNLOADING, reported first. Returns the replica, or None if it has left READY already."""
        with self._lock:
            replica = self._replicas.pop(key, None)
            if replica is not None:
                state = self._actual[key]
                self._actual[key] = replace(state, state=advance(state.state, State.UNLOADING), identity=None)
                self._metrics.mark_ready(key, False)
                self._publish()
            return replica

    def unloaded(self, key: VersionKey, remark: str = "") -> None:
        """The replica that left is closed, its memory given back, or as much of it as `remark` says."""
        with self._lock:
            state = self._actual[key]
            self._actual[key] = replace(state, state=advance(state.state, State.UNAVAILABLE), reason=f"unloaded{remark}")
            self._publish()

    def dead(self, replica: Replica, reason: str) -> bool:
        """The backend can execute nothing any more. Its version stays READY where it has another device to serve on.

        Returns: False if this replica does not serve (it is being replaced or unloaded).
        """
        with self._lock:
            serving = self._replicas.get(replica.key)
            if serving is None or replica.queue_id not in [each.queue_id for each in serving.everywhere]:
                return False
            self._bury(next(each for each in serving.everywhere if each.queue_id == replica.queue_id), reason)
            self._publish()
            return True

    def lose(self, device: str, reason: str) -> list[Replica] | None:
        """Nothing can be executed on a device any more: every replica on it leaves READY in one step, and none becomes READY
        on it again. Returns them; None if that was known.
        """
        with self._lock:
            if device in self.lost:
                return None
            self.lost = {**self.lost, device: reason}
            serving = [each for replica in self._replicas.values() for each in replica.everywhere]
            gone = [replace(replica, siblings=()) for replica in serving if replica.device == device]
            for replica in gone:
                self._bury(replica, reason)
            self._publish()
            return gone

    def _bury(self, replica: Replica, reason: str) -> None:
        state = self._actual[replica.key]
        left = self._replicas[replica.key].without(replica)
        if left is not None:
            self._replicas[replica.key] = left
            said = "; ".join(filter(None, (state.reason, f"does not serve on {replica.device} any more: {reason}")))
            self._actual[replica.key] = replace(state, reason=said)
            return
        del self._replicas[replica.key]
        # what is READY has an identity
        failure = Failure(state.identity, 1, 0, reason, dead=True) if state.identity is not None else None
        self._actual[replica.key] = Actual(advance(state.state, State.UNAVAILABLE), None, failure, reason)
        self._metrics.mark_ready(replica.key, False)

    def _publish(self) -> None:
        states = {key: state.state for key, state in self._actual.items()}
        coming = {
            key.model: state.failure.reason for key, state in self._actual.items() if state.failure and state.failure.dead
        }
        published = publish(self._replicas, states, self._aliases, self.published, coming, starting=self._starting)
        self._on_publish(published)
        self.published = published
