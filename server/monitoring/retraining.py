"""Models that ask to be trained again: the dull loop around `triggers`, the outbox and its couriers.

Floor 4. `consider` is called by whoever judges windows, and waits for nothing but the disk. In its folder are the events that
wait, and what is remembered of each model.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from server.core.clock import US_PER_S
from server.core.monitoring_settings import DeliverySettings, ModelMonitoring
from server.core.versions import VersionKey
from server.monitoring.delivery import Courier, Destination
from server.monitoring.event_command import EventCommand
from server.monitoring.events import Event
from server.monitoring.outbox import Outbox
from server.monitoring.triggers import Watch, asked, due, noted, without
from server.monitoring.verdict import QualityReading, WindowVerdict
from server.monitoring.webhook import Webhook
from server.registry.durable import write_atomically

_SAVE_US = 60 * US_PER_S
"""How old what is remembered may be on disk, where no event was raised since."""
_JOIN_S = 1.0
_STATE = "state.json"
_WATCHES = TypeAdapter(dict[str, Watch])
_log = logging.getLogger("podium.monitoring")

OpenRedis = Callable[[str, str], Destination]
"""By URL and stream: `server.monitoring.redis_events.RedisEvents`, loaded by name."""


def destinations_of(settings: DeliverySettings, open_redis: OpenRedis) -> list[Destination]:
    """Every place that is stated. Raises: ValueError for a key file without a key, StoreError for no URL of Redis."""
    found: list[Destination] = []
    if settings.webhook:
        found.append(Webhook(settings.webhook, Path(settings.hmac_key_file), settings.timeout_s))
    if settings.redis:
        found.append(open_redis(settings.redis, settings.stream))
    if settings.command:
        found.append(EventCommand(settings.command, settings.timeout_s))
    return found


class Retraining:
    """All models of a process. Thread-safe.

    `folder`: below `monitoring.dir`; None where that is not stated: then events that wait do not outlive the process.
    `retry_max_s`: the longest wait between two attempts. `now_us`: the wall clock, microseconds since 1970.
    Raises: OSError for a folder that cannot be used.
    """

    def __init__(
        self, destinations: Sequence[Destination], folder: Path | None, retry_max_s: float, now_us: Callable[[], int]
    ) -> None:
        self._folder = folder
        self._now_us = now_us
        self._lock = threading.Lock()  # guards what follows, but not what it holds: the outbox has its own
        self._served: dict[VersionKey, ModelMonitoring] = {}
        self._unkept: set[str] = set()
        self._saved_us = 0
        self._closed = False
        self._counting = threading.Lock()  # its own: who asks for counts does not wait for a disk
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._outbox = Outbox(folder, [each.name for each in destinations])
        self._watches = self._restored()
        self._destinations = tuple(destinations)
        self._couriers = [Courier(self._outbox, each, retry_max_s, self._told) for each in destinations]
        if destinations and folder is None:
            _log.warning("retrain events that wait are in memory alone: monitoring.dir is not stated")
        for courier in self._couriers:
            courier.start()

    def serve(self, key: VersionKey, settings: ModelMonitoring) -> None:
        """A version serves from now on. Of several, the newest one's settings decide for its model."""
        with self._lock:
            self._served[key] = settings
            self._watches.setdefault(key.model, Watch(self._now_us()))

    def leave(self, key: VersionKey) -> None:
        """It serves no more. What its model has asked for stays known. Idempotent."""
        with self._lock:
            self._served.pop(key, None)
            if key.model in self._watches:
                self._watches[key.model] = without(self._watches[key.model], key)

    def consider(self, verdicts: Sequence[WindowVerdict], qualities: Sequence[QualityReading], now_us: int) -> list[Event]:
        """Raise what is due after these verdicts, the oldest first, and readings; of versions that serve.

        Returns: the events that were raised; each is on disk, if there is a folder.
        """
        raised: list[Event] = []
        with self._lock:
            waiting = self._outbox.models()
            for model, keys in groupby(sorted(self._served), key=lambda key: key.model):
                newest = list(keys)[-1]
                of_model = [each for each in verdicts if each.key in self._served and each.key.model == model]
                readings = [each for each in qualities if each.key in self._served and each.key.model == model]
                watch = self._watches[model] = noted(self._watches[model], of_model, readings)
                settings = self._served[newest]
                event = due(watch, settings, newest, of_model, readings, now_us, is_open=model in waiting)
                if event is not None and self._keep(event):
                    self._watches[model] = asked(watch, event.time_us)
                    raised.append(event)
            if raised or now_us - self._saved_us >= _SAVE_US:
                self._save(now_us)
        if raised:
            for courier in self._couriers:
                courier.wake()
        return raised

    def events(self) -> Mapping[tuple[str, str, str], int]:
        """By model, reason and result: "raised"; "unkept", where it could not be; of attempts, one for each destination,
        "received", "failed" and "rejected"; "delivered", once the last of them has received it."""
        with self._counting:
            return dict(self._counts)

    @property
    def waiting(self) -> int:
        """Events that somebody has yet to receive."""
        return len(self._outbox)

    def close(self) -> None:
        """Try nothing any more; what waits is tried by the next process. Takes no longer than some seconds. Idempotent."""
        for courier in self._couriers:
            courier.stop()
        for courier in self._couriers:
            courier.join(_JOIN_S)
        for destination in self._destinations:
            destination.close()
        for courier in self._couriers:
            courier.join(_JOIN_S)
        with self._lock:
            if not self._closed:
                self._save(self._now_us())
            self._closed = True

    def _keep(self, event: Event) -> bool:
        """Whether an event is where it cannot be lost. What could not be kept was not raised: it will be due again."""
        try:
            kept, reason = self._outbox.put(event), "too many wait"
        except OSError as error:
            kept, reason = False, str(error)
        about = {"model": event.model, "event_id": event.id, "reason": event.reason}
        if kept:
            self._unkept.discard(event.model)
            self._count(event, "raised")
            _log.warning("a model asks to be trained again", extra=about)
        elif event.model not in self._unkept:
            self._unkept.add(event.model)
            self._count(event, "unkept")
            _log.error("a retrain event could not be kept", extra={**about, "problem": reason})
        return kept

    def _told(self, event: Event, result: str) -> None:
        """How an attempt of a courier ended."""
        if result == "delivered":
            self._count(event, "received")
        self._count(event, result)

    def _count(self, event: Event, result: str) -> None:
        with self._counting:
            self._counts[event.model, event.reason, result] += 1

    def _restored(self) -> dict[str, Watch]:
        """What an earlier process remembered. An event that waits was asked for, whatever became of the rest."""
        watches: dict[str, Watch] = {}
        path = None if self._folder is None else self._folder / _STATE
        if path is not None and path.exists():
            try:
                watches = _WATCHES.validate_json(path.read_bytes())
            except ValidationError as error:
                _log.error("what was remembered of retraining cannot be read", extra={"path": str(path), "reason": str(error)})
        for model, event in self._outbox.models().items():
            watches[model] = asked(watches.get(model, Watch(event.time_us)), event.time_us)
        return watches

    def _save(self, now_us: int) -> None:
        if self._folder is None:
            return
        try:
            write_atomically(self._folder / _STATE, _WATCHES.dump_json(self._watches))
            self._saved_us = now_us
        except OSError as error:
            _log.error("what is remembered of retraining cannot be written", extra={"reason": str(error)})
