"""What a server monitors of itself: sampling, sinks, verdicts, outcomes, and who is told. Roof: concrete classes meet here.

One of three ways, by the setting `sink`: this process judges; samples and outcomes go to a stream that `podium monitor` reads; or
nothing is sampled.
"""

import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from server.core.errors import Unsupported
from server.core.monitoring_settings import MonitoringSettings
from server.core.settings import ModelSettings
from server.core.versions import VersionKey
from server.lifecycle.published import Published
from server.lifecycle.replica import Replica
from server.monitoring.judging import Judging
from server.monitoring.lane import Lane
from server.monitoring.monitors import Monitors
from server.monitoring.outcome import Outcome
from server.monitoring.outcomes import Outcomes
from server.monitoring.reading import MonitoringReading
from server.monitoring.redis_sink import RedisOutcomes, RedisSink, RedisWriter
from server.monitoring.sampler import Plan, Sampler
from server.monitoring.sink import Sink
from server.monitoring.verdict import QualityReading, WindowVerdict
from server.registry.durable import write_atomically

_log = logging.getLogger("podium.monitoring")
_OUTCOMES_FILE = "outcomes.npz"


class Monitored:
    """Thread-safe. Ownership: of everything it makes; `close` it after the last batch."""

    def __init__(self, settings: MonitoringSettings) -> None:
        """Raises: Unsupported for what cannot work here; StoreError for a stream that is no URL."""
        self._settings = settings
        self._served: Mapping[VersionKey, tuple[ModelSettings, Any, str]] = {}
        self.sampler: Sampler | None = None
        self.outcomes: Outcomes | None = None
        self.forward: Callable[[Outcome], None] | None = None
        self._monitors: Monitors | None = None
        sinks: list[Sink] = []
        if settings.sink == "process":
            sinks.append(self._judging(settings))
        elif settings.sink == "redis":
            sinks.append(self._streaming(settings))
        if settings.parquet.dir and settings.sink != "none":
            sinks.append(self._keeping(settings))
        if sinks:
            self.sampler = Sampler(settings.seed, [Lane(sink, settings.buffer_rows, settings.buffer_bytes) for sink in sinks])
