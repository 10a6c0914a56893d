"""Retraining as the settings of one process say: to whom events go, and of which versions. Roof.

What is to be reached by models is told here too, for scrapes: both a server and `podium monitor` ask.
"""

import importlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from feature_client.errors import StoreError
from server.core.clock import NS_PER_US
from server.core.errors import Unsupported
from server.core.monitoring_settings import ModelMonitoring, MonitoringSettings
from server.core.versions import VersionKey
from server.monitoring.delivery import Destination
from server.monitoring.retraining import Retraining, destinations_of
from server.monitoring.verdict import QualityReading, WindowVerdict
from server.telemetry.monitoring_readings import Objective

_FOLDER = "retrain"


class Retrain:
    """Thread-safe, but for `follow`, which one thread calls. Ownership: `close` it at the end."""

    def __init__(self, settings: MonitoringSettings) -> None:
        """Raises: Unsupported for destinations that cannot be used; OSError for a folder that cannot."""
        try:
            destinations = destinations_of(settings.retrain, _redis)
        except (StoreError, ValueError) as error:
            raise Unsupported(f"[monitoring.retrain]: {error}") from None
        folder = Path(settings.dir) / _FOLDER if settings.dir else None
        self._retraining = Retraining(destinations, folder, settings.retrain.retry_max_s, lambda: time.time_ns() // NS_PER_US)
        self.events = self._retraining.events
        self._followed: dict[VersionKey, ModelMonitoring] = {}

    def follow(self, served: Mapping[VersionKey, ModelMonitoring]) -> None:
        """Which versions serve, and what they ask for."""
        for key in self._followed.keys() - served.keys():
            self._retraining.leave(key)
        for key, settings in served.items():
            if self._followed.get(key) is not settings:
                self._retraining.serve(key, settings)
        self._followed = dict(served)

    def consider(self, verdicts: Sequence[WindowVerdict], qualities: Sequence[QualityReading], now_us: int) -> None:
        """Raise what is due. About once a second, also without verdicts."""
        self._retraining.consider(verdicts, qualities, now_us)

    def close(self) -> None:
        """What waits to be delivered is tried by the next process. Idempotent."""
        self._retraining.close()


def _redis(url: str, stream: str) -> Destination:
    module: Any = importlib.import_module("server.monitoring.redis_events")
    made: Destination = module.RedisEvents(url, stream)
    return made


def objectives(served: Mapping[VersionKey, ModelMonitoring]) -> dict[VersionKey, Objective]:
    """What versions are to reach, of those that state it."""
    made = {}
    for key, settings in served.items():
        quality = settings.quality
        if quality is not None and quality.objective and quality.at_least is not None:
            made[key] = Objective(quality.objective, "at_least", quality.at_least)
        elif quality is not None and quality.objective and quality.at_most is not None:
            made[key] = Objective(quality.objective, "at_most", quality.at_most)
    return made
